from importlib import resources
from pathlib import Path

import pytest
import yaml
from data_sets import NOT_SHIPPED, write_lines

from tppo_rl.config.run_files import Experiment, apply_override, check_experiment, load_run_file, make_experiment
from tppo_rl.core.errors import OptionError

SHIPPED = sorted(path.name for path in resources.files("tppo_rl.configs").iterdir() if path.name.endswith(".yaml"))
BODY = {
    "run": "TPPO",
    "env": "tppo_rl/ArithmeticChain-v0",
    "stop": {"training_iteration": 1},
    "config": {"policy_model": "tppo_rl/arithmetic-chain"},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_run_file_is_sound(name: str) -> None:
    with resources.as_file(resources.files("tppo_rl.configs") / name) as path:
        assert load_run_file(path, NOT_SHIPPED.get(name, []))


def test_shipped_run_files_are_found() -> None:
    assert "quickstart.yaml" in SHIPPED


def test_several_experiments_of_one_file_are_read_in_order(tmp_path: Path) -> None:
    text = "".join(
        f"{name}:\n  run: TPPO\n  env: tppo_rl/ArithmeticChain-v0\n  stop: {{training_iteration: 2}}\n"
        f"  config: {{policy_model: tppo_rl/arithmetic-chain, lr: {lr}}}\n"
        for name, lr in (("first", "1e-4"), ("second", "2.5E-5"))
    )
    first, second = load_run_file(write(tmp_path, text))
    assert (first.name, second.name) == ("first", "second")
    assert first.config["lr"] == 1e-4
    assert second.config["lr"] == 2.5e-5
    assert not first.is_sweep


def test_grids_are_points_and_every_point_is_checked() -> None:
    body = BODY | {
        "config": BODY["config"] | {"window_length": {"grid_search": [8, 16]}, "lambda_": {"grid_search": [0.9, 1.0]}}
    }
    experiment = make_experiment("grid", body)
    assert experiment.is_sweep
    assert [(point["window_length"], point["lambda_"]) for point in experiment.points()] == [
        (8, 0.9),
        (8, 1.0),
        (16, 0.9),
        (16, 1.0),
    ]
    body["config"]["window_length"] = {"grid_search": [8, 999]}
    with pytest.raises(OptionError, match="window_length=999: longer than max_response_length"):
        make_experiment("grid", body)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ["config", "seed"], 7),
        ("lr=3e-5", ["config", "lr"], 3e-5),
        ("config.lr=3e-5", ["config", "lr"], 3e-5),
        ("env_config.max_operands=9", ["config", "env_config", "max_operands"], 9),
        ("stop.training_iteration=5", ["stop", "training_iteration"], 5),
        ("num_samples=3", ["num_samples"], 3),
        ("env=tppo_rl/GuessNumber-v0", ["env"], "tppo_rl/GuessNumber-v0"),
        ("mode=sync", ["config", "mode"], "sync"),
        ("window_length={grid_search: [4, 8]}", ["config", "window_length"], {"grid_search": [4, 8]}),
    ],
)
def test_overrides_reach_their_key(override: str, path: list[str], value: object) -> None:
    body: dict = {"config": {"env_config": {"tail_exponent": 2.0}}, "stop": {}}
    apply_override(body, override)
    target: object = body
    for part in path:
        target = target[part]  # type: ignore[index]
    assert target == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [b", "not valid YAML"),
        (
            "a:\n  run: TPPO\n  config: {lr: 1e-4\n  stop: {training_iteration: 1}\n",
            "line 4, column 7: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got ':'\n"
            "      stop: {training_iteration: 1}\n          ^",
        ),
        ("", "must map experiment names"),
        ("- 1", "must map experiment names"),
        ("a: 3", "an experiment is a mapping"),
        ("a: {run: TPO, stop: {training_iteration: 1}}", "a.run='TPO': unknown name, did you mean TPPO"),
        ("a: {run: TPPO, stopp: {}}", "a.stopp={}: unknown option, did you mean a.stop"),
        ("a: {run: TPPO}", "a.stop={}: the run would never end"),
        (
            "a: {run: TPPO, stop: {training_iteration: soon}}",
            "a.stop.training_iteration='soon': input should be a valid integer or a valid number",
        ),
        ("a: {run: TPPO, stop: [5]}", "a.stop=[5]: input should be a valid dictionary"),
        ("a: {run: TPPO, seeds: few, stop: {training_iteration: 1}}", "a.seeds='few': input should be a valid integer"),
        (
            "a: {run: TPPO, stop: {training_iterations: 5, time_total_s: 60}}",
            "a.stop.training_iterations=5: results have no such key; did you mean training_iteration?",
        ),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: not valid YAML: the key 'a' is given twice, first in line 1"),
        ("null: {run: TPPO}", "experiment=None: its name must be a text"),
        ("12: {run: TPPO}", "experiment=12: its name must be a text"),
        ("'': {run: TPPO}", "experiment='': names the folder of its results"),
        ("../x: {run: TPPO}", "experiment='../x': names the folder of its results; give a name without slashes"),
        ("'a[/b]': {run: TPPO}", "experiment='a[/b]': names the folder of its results"),
        ("..: {run: TPPO}", "experiment='..': names the folder"),
        (
            f"{'x' * 300}: {{run: TPPO}}",
            "names the folder of its results; give a name without slashes and brackets, of at most 200 bytes",
        ),
        ("a: {run: TPPO, stop: {training_iteration: .nan}}", "a.stop.training_iteration=nan: must be a finite number"),
        ("a: {run: TPPO, stop: {time_total_s: -.inf}}", "a.stop.time_total_s=-inf: must be a finite number"),
        ("a: {run: TPPO, stop: {nonsense: 1}}", "a.stop.nonsense=1: results have no such key; take one of"),
        (
            "a: {run: TPPO, stop: {nonsense: 1}, config: {engine: {max_num_seqs: 4}, policy_loss: {type: cispo}}}",
            "a.stop.nonsense=1: results have no such key; take one of",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, max_failures: 2}",
            "a.max_failures=2: a run goes on from its newest checkpoint, and saves none on its way",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, checkpoint_config: {checkpoint_frequency: -1}}",
            "a.checkpoint_config.checkpoint_frequency=-1: input should be greater than or equal to 0",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, checkpoint_config: {in_background: true}}",
            "a.checkpoint_config.in_background=true: the only checkpoint is that of the end",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, checkpoint_config: {in_background: true, checkpoint_frequency: 1}, seeds: 2}",
            "a.checkpoint_config.in_background=true: trials of a sweep hand their checkpoints to Tune",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, seeds: 1000000000}",
            "a.seeds=1000000000: input should be less than",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, seeds: [0, 4294967296]}",
            "a.seeds=[0, 4294967296]: input should be a valid integer or less than or equal to 2147483647",
        ),
        (
            "a: {run: TPPO, stop: {training_iteration: 1}, seeds: [-1]}",
            "a.seeds=[-1]: input should be a valid integer or greater than or equal to 0",
        ),
        (
            "a: {run: TPPO, num_samples: 1000000000, stop: {training_iteration: 1}}",
            "a.num_samples=1000000000: input should be less",
        ),
        ("a: {run: TPPO, num_samples: 0, stop: {training_iteration: 1}}", "a.num_samples=0"),
        ("a: {run: TPPO, stop: {training_iteration: 1}, config: {lr: {grid_search: []}}}", "at least one value"),
        (
            "a: {run: TPPO, env: A, stop: {training_iteration: 1}, config: {env: B}}",
            "env='A' and config.env='B' differ",
        ),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        load_run_file(write(tmp_path, text))
    assert message in str(error.value)


def test_results_may_have_keys_of_the_users() -> None:
    own = {"policy_loss": "tppo_rl.learner.policy_losses:clipped"}
    make_experiment("a", BODY | {"stop": {"own": 1}, "config": BODY["config"] | own})


def test_a_missing_file_and_a_malformed_override_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such run file"):
        load_run_file(tmp_path / "nothing.yaml")
    with pytest.raises(OptionError, match="must be key=value"):
        make_experiment("a", BODY, ["seed"])
    with pytest.raises(OptionError, match="no such run file"):
        load_run_file(Path("x" * 5000))
    for override in ("config=3", "config.=3", ".=3", "a..b=3"):
        with pytest.raises(
            OptionError, match=r"^--set '.*': '.*' names no option; write for example --set config\.seed=1"
        ):
            make_experiment("a", BODY, [override])
    with pytest.raises(
        OptionError, match=r"^config\.seed=1: config holds None, which has no keys; set config to a mapping"
    ):
        make_experiment("a", BODY | {"config": None}, ["seed=1"])
    with pytest.raises(OptionError, match="which has no keys"):
        make_experiment("a", BODY, ["policy_model.x=1"])


def test_an_experiment_does_not_change_the_mapping_it_was_made_of() -> None:
    before = repr(BODY)
    experiment = make_experiment("a", BODY, ["seed=3"])
    assert isinstance(experiment, Experiment)
    assert experiment.config["seed"] == 3
    assert repr(BODY) == before


def test_data_at_a_relative_place_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    rows = [{"prompt": f"double {k}", "answer": 2 * k} for k in range(40)]
    write_lines(tmp_path / "rows.jsonl", [*rows, {"prompt": "double"}])
    monkeypatch.chdir(tmp_path)
    data = {"source": "rows.jsonl", "answer": "answer", "bad_rows": "skip"}
    config = {"policy_model": "tppo_rl/arithmetic-chain", "env_config": data}
    run = {"run": "TPPO", "env": "tppo_rl/Dataset-v0", "stop": {"training_iteration": 1}, "config": config}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"doubling": run}), encoding="utf-8")
    (experiment,) = load_run_file(tmp_path / "run.yaml", [])
    check_experiment(experiment)
    assert len([warning for warning in recwarn if "1 bad row" in str(warning.message)]) == 1
