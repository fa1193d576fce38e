"""The shares of a placement: for one machine and more, with options of the user's own, and what is refused."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.algorithms.grpo import SPEC as GRPO
from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import SECTIONS
from tppo_rl.core.errors import OptionError, OptionWarning
from tppo_rl.core.gpus import parse_gpus
from tppo_rl.plan.card_memory import CardNeeds, card_needs, engine_sleeps
from tppo_rl.plan.memory import GIB
from tppo_rl.plan.placement import Placed, place
from tppo_rl.plan.roofline import SHAPES

TINY = "tppo_rl/arithmetic-chain"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with the configs of published models, by name."""
    folders = {}
    for name in ("qwen2.5-1.5b", "qwen2.5-7b"):
        folder = tmp_path_factory.mktemp(name)
        config = {"model_type": "qwen2", "tie_word_embeddings": name != "qwen2.5-7b", **SHAPES[name]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        folders[name] = str(folder)
    return folders


def placed(placement: str, gpus: str, **given: Any) -> Placed:
    return place({"placement": placement, "policy_model": TINY, **given}, SPEC.options, parse_gpus(gpus))


def shares(found: Placed) -> tuple[int, float, int, float]:
    options = found.options
    return (
        options.rollout.num_env_runners,
        options.rollout.num_gpus_per_env_runner,
        options.learners.num_learners,
        options.learners.num_gpus_per_learner,
    )


@pytest.mark.parametrize(
    ("placement", "gpus", "expected"),
    [
        ("colocated", "h100", (1, 0.6, 1, 0.4)),
        ("colocated", "2 x h100", (2, 0.6, 2, 0.4)),
        ("colocated", "8 x h100", (8, 0.6, 8, 0.4)),
        ("disaggregated", "2 x h100", (1, 1, 1, 1)),
        ("disaggregated", "3 x h100", (2, 1, 1, 1)),
        ("disaggregated", "8 x h100", (4, 1, 4, 1)),
        ("cluster", "2 x 8 x h100", (8, 1, 8, 1)),
        ("cluster", "4 x 2 x h100", (6, 1, 2, 1)),
        ("cluster", "2 x h100", (1, 1, 1, 1)),
    ],
)
def test_shares_of_a_machine(placement: str, gpus: str, expected: tuple[int, float, int, float]) -> None:
    found = placed(placement, gpus)
    assert shares(found) == expected
    assert found.options.models.dtype == "bfloat16"
    assert 0 < found.utilization <= 0.9


@pytest.mark.parametrize(
    ("placement", "given", "expected"),
    [
        ("colocated", {"num_env_runners": 1, "num_learners": 1}, (1, 0.6, 1, 0.4)),
        ("colocated", {"num_gpus_per_env_runner": 0.7}, (8, 0.7, 8, 0.3)),
        ("colocated", {"num_gpus_per_learner": 0.3}, (8, 0.7, 8, 0.3)),
        ("colocated", {"num_learners": 1}, (1, 0.6, 1, 0.4)),
        ("disaggregated", {"num_learners": 2}, (6, 1, 2, 1)),
        ("disaggregated", {"num_env_runners": 2}, (2, 1, 6, 1)),
        ("disaggregated", {"num_env_runners": 2, "num_learners": 1}, (2, 1, 1, 1)),
        ("disaggregated", {"engine": {"tensor_parallel_size": 2}}, (2, 2, 4, 1)),
        ("disaggregated", {"evaluation_num_env_runners": 1}, (3, 1, 4, 1)),
        ("disaggregated", {"engine": {"tensor_parallel_size": 4}, "num_learners": 3}, (1, 4, 3, 1)),
    ],
)
def test_what_a_user_sets_wins(placement: str, given: dict[str, Any], expected: tuple[int, float, int, float]) -> None:
    found = placed(placement, "8 x h100", **given)
    assert shares(found) == expected
    assert not {key for key in given if key != "engine"} & set(found.set_here)


@pytest.mark.parametrize(
    ("placement", "given", "words"),
    [
        ("disaggregated", {"num_env_runners": 2, "num_learners": 2}, r"4 of 8 GPUs \(.*\) have nothing to do beside 2 engines and 2 learners"),
        ("disaggregated", {"num_env_runners": 1, "engine": {"tensor_parallel_size": 2}, "num_learners": 5}, "1 of 8 GPUs"),
        ("colocated", {"num_env_runners": 6, "num_learners": 1}, "2 of 8 GPUs"),
        ("disaggregated", {}, None),
        ("colocated", {}, None),
    ],
)  # fmt: skip
def test_gpus_that_stay_idle_are_told(placement: str, given: dict[str, Any], words: str | None) -> None:
    with pytest.warns(OptionWarning, match=words) if words else warnings.catch_warnings(action="error"):
        placed(placement, "8 x h100", **given)


def test_number_formats_and_engine_keys_of_a_user_win() -> None:
    engine = {"gpu_memory_utilization": 0.25, "enable_sleep_mode": False, "max_num_seqs": 9}
    found = placed("colocated", "h100", dtype="float32", mode="sync", engine=engine)
    assert found.options.models.dtype == "float32"
    assert found.options.rollout.engine.arguments == engine
    assert found.values.keys() == {"num_env_runners", "num_learners", "num_gpus_per_env_runner", "num_gpus_per_learner"}


def test_what_was_placed_is_left_as_it_is_by_a_second_time() -> None:
    for placement in ("colocated", "disaggregated", "cluster"):
        first = placed(placement, "4 x h100", mode="sync", engine={"max_num_seqs": 9})
        again = place(first.options.flat(), SPEC.options, first.gpus)
        assert again.options == first.options
        assert again.set_here == {}


@pytest.mark.parametrize(
    ("placement", "gpus", "given", "words"),
    [
        ("disaggregated", "h100", {}, ["placement='disaggregated'", "needs 2 GPUs", "there is 1 GPU", "'colocated'"]),
        ("disaggregated", "2 x 8 x h100", {}, ["placement='disaggregated'", "16 GPUs on 2 nodes", "'cluster'"]),
        ("colocated", "2 x 8 x h100", {}, ["placement='colocated'", "16 GPUs on 2 nodes", "'cluster'"]),
        ("colocated", "2 x h100", {"num_env_runners": 3}, ["num_env_runners=3", "2 GPUs", "2 or less"]),
        ("colocated", "2 x h100", {"num_learners": 3}, ["num_learners=3", "2 or less"]),
        ("colocated", "h100", {"num_learners": 0}, ["num_learners=0", "an actor for the learner", "1 or more"]),
        ("colocated", "h100", {"num_env_runners": 0, "mode": "sync"}, ["num_env_runners=0", "the engine"]),
        ("colocated", "4 x h100", {"num_env_runners": 2}, ["num_env_runners=2", "set it to 4"]),
        ("colocated", "2 x h100", {"num_gpus_per_env_runner": 0.5}, ["num_gpus_per_env_runner=0.5", "two engines"]),
        ("colocated", "h100", {"num_gpus_per_env_runner": 1}, ["num_gpus_per_env_runner=1", "leave both shares out"]),
        (
            "colocated",
            "h100",
            {"num_gpus_per_env_runner": 0.7, "num_gpus_per_learner": 0.5},
            ["num_gpus_per_env_runner=0.7", "0.7 and 0.5", "1 together"],
        ),
        (
            "colocated",
            "2 x h100",
            {"num_gpus_per_env_runner": 0.6, "num_gpus_per_learner": 0.2},
            ["num_gpus_per_env_runner=0.6", "two learners of 0.2", "0.4"],
        ),
        (
            "colocated",
            "2 x h100",
            {"engine": {"tensor_parallel_size": 2}},
            ["engine.tensor_parallel_size=2", "'disaggregated'"],
        ),
        ("colocated", "h100", {"evaluation_num_env_runners": 1}, ["evaluation_num_env_runners=1", "set it to 0"]),
        ("disaggregated", "8 x h100", {"num_learners": 8}, ["num_learners=8", "7 or less"]),
        ("disaggregated", "8 x h100", {"num_env_runners": 8}, ["num_env_runners=8", "7 or less"]),
        (
            "disaggregated",
            "8 x h100",
            {"num_env_runners": 6, "num_learners": 4},
            ["num_env_runners=6", "6 engines x 1 and 4 learners", "set it to 4 or less"],
        ),
        ("disaggregated", "8 x h100", {"num_gpus_per_learner": 0.5}, ["num_gpus_per_learner=0.5", "'colocated'"]),
        (
            "disaggregated",
            "8 x h100",
            {"num_gpus_per_env_runner": 1, "engine": {"tensor_parallel_size": 2}},
            ["num_gpus_per_env_runner=1", "2 whole", "tensor_parallel_size"],
        ),
        ("cluster", "2 x 2 x h100", {"engine": {"tensor_parallel_size": 4}}, ["tensor_parallel_size=4", "2 or less"]),
        (
            "disaggregated",
            "2 x h100",
            {"num_learners": 1, "distributed": "fsdp"},
            ["distributed='fsdp'", "num_learners"],
        ),
        (
            "colocated",
            "h100",
            {"engine": {"gpu_memory_utilization": 0.97}},
            ["engine.gpu_memory_utilization=0.97", "give 0.9 or less"],
        ),
        (
            "colocated",
            "h100",
            {"engine": {"gpu_memory_utilization": 0.01}},
            ["engine.gpu_memory_utilization=0.01", "the engine needs", "leave it out"],
        ),
    ],
)
def test_contradictions_are_refused_by_name(placement: str, gpus: str, given: dict[str, Any], words: list[str]) -> None:
    def whole_check() -> None:
        check_options(placed(placement, gpus, **given).options.flat(), SPEC)

    with pytest.raises(OptionError) as error:
        whole_check()
    assert all(word in str(error.value) for word in words), str(error.value)


GPU_TEXTS = st.sampled_from(
    ["h100", "2 x h100", "3 x h100", "8 x h100", "2 x 8 x h100", "3 x 2 x h100", "5 x 1 x h100"]
)


@given(
    st.sampled_from(["colocated", "disaggregated", "cluster"]),
    GPU_TEXTS,
    st.fixed_dictionaries(
        {},
        optional={
            "num_env_runners": st.integers(1, 9),
            "num_learners": st.integers(1, 9),
            "num_gpus_per_env_runner": st.sampled_from([0.2, 0.5, 0.55, 0.8, 1, 2]),
            "num_gpus_per_learner": st.sampled_from([0.1, 0.3, 0.45, 1, 2]),
            "evaluation_num_env_runners": st.integers(0, 2),
            "engine": st.sampled_from([{"tensor_parallel_size": 2}, {"gpu_memory_utilization": 0.5}]),
        },
    ),
)
def test_shares_never_take_more_than_there_is(placement: str, gpus: str, given: dict[str, Any]) -> None:
    try:
        found = placed(placement, gpus, **given)
    except OptionError:
        return
    engines, engine, learners, learner = shares(found)
    evaluating = found.options.evaluation.evaluation_num_env_runners
    assert (engines + evaluating) * engine + learners * learner <= found.gpus.total + 1e-9
    assert min(engines, learners) >= 1
    if placement == "colocated":
        # Ray fills a GPU until no further share fits: none may get two engines, or two learners.
        assert engine + learner <= 1 + 1e-9
        assert engines == 1 or 2 * engine > 1
        assert learners == 1 or (engines == found.gpus.total and engine + 2 * learner > 1)
    else:
        # No engine stands on two nodes, with the learners on the largest ones.
        assert engine == int(engine)
        assert learner == 1
    assert all(found.options.flat()[key] == value for key, value in given.items() if key != "engine")
    assert 0 < found.utilization <= 1


@given(st.integers(0, 300), st.integers(0, 200), st.integers(8, 160), st.booleans(), st.booleans())
def test_the_engine_and_the_learner_fit_the_card_together(
    held: int, passing: int, card: int, colocated: bool, asleep: bool
) -> None:
    needs = CardNeeds(held * GIB // 4, (held + passing) * GIB // 4, 0, 0, 1, 1)
    share = needs.share_for_engine(card * GIB, colocated=colocated, asleep=asleep)
    assert share <= 0.9
    if share <= 0:
        return
    resident = needs.held if asleep else needs.peak
    if colocated:
        assert share * card * GIB + GIB + 1.1 * resident <= card * GIB * (1 + 1e-9)
    assert 1.1 * needs.peak + GIB * (3 if colocated and asleep else 1) <= card * GIB


def test_the_share_by_hand() -> None:
    needs = CardNeeds(
        held=40 * GIB, peak=50 * GIB, engine_least=0, engine_fixed=8 * GIB, kv_bytes_per_token=1024, slot_tokens=1
    )
    # 1 for the process; 80 - 1 - 55 = 24 and 80 - 1 - 44 = 35 of 80.
    assert needs.share_for_engine(80 * GIB, colocated=True, asleep=False) == 0.3
    assert needs.share_for_engine(80 * GIB, colocated=True, asleep=True) == 0.43
    assert needs.share_for_engine(80 * GIB, colocated=False, asleep=False) == 0.9
    # The learner alone: 55 + 1 of 50; and 55 + 1 + 2 of 57.
    assert needs.share_for_engine(50 * GIB, colocated=False, asleep=False) < 0
    assert needs.share_for_engine(57 * GIB, colocated=True, asleep=True) < 0
    assert needs.kv_tokens(80 * GIB, 0.3) == 16 * 2**20
    assert needs.kv_tokens(80 * GIB, 0.05) == 0


def test_an_engine_that_sleeps_gets_more(models: dict[str, str]) -> None:
    awake, asleep = (
        placed("colocated", "h100", policy_model=models["qwen2.5-1.5b"], mode=mode) for mode in ("async", "sync")
    )
    assert not engine_sleeps(awake.options)
    assert engine_sleeps(asleep.options)
    assert asleep.set_here["engine.enable_sleep_mode"] is True
    assert awake.utilization < asleep.utilization
    kept = placed("colocated", "h100", policy_model=models["qwen2.5-1.5b"], mode="sync", kv_on_update="keep")
    assert "engine.enable_sleep_mode" not in kept.set_here
    assert kept.utilization == awake.utilization


def test_an_algorithm_that_is_synchronous_sleeps_by_itself() -> None:
    found = place({"placement": "colocated", "policy_model": TINY}, GRPO.options, parse_gpus("h100"))
    assert engine_sleeps(found.options)


def test_learners_share_their_weights_where_whole_copies_do_not_fit(models: dict[str, str]) -> None:
    small, large = (placed("disaggregated", "8 x h100", policy_model=models[name]) for name in models)
    assert small.options.learners.distributed == "ddp"
    assert large.options.learners.distributed == "fsdp"
    assert large.options.learners.num_learners > small.options.learners.num_learners
    # One learner fewer would not fit.
    fewer = large.options.replace(num_learners=large.options.learners.num_learners - 1)
    assert card_needs(fewer).share_for_engine(large.gpus.memory, colocated=False, asleep=False) < 0
    with pytest.raises(OptionError, match=r"does not fit .*this would fit: "):
        placed("disaggregated", "8 x h100", policy_model=models["qwen2.5-7b"], distributed="ddp")


@pytest.mark.parametrize(
    ("gpus", "given"),
    [
        ("h100", {}),
        ("2 x 24 GiB", {}),
        ("40 GiB", {"mode": "sync"}),
        ("h100", {"critic": "qwen2.5-1.5b"}),
        ("h100", {"critic": "shared", "critic_lora": {"rank": 8}}),
        ("8 x h100", {"placement": "disaggregated", "critic": "shared", "critic_lora": {"rank": 8}}),
    ],
    ids=str,
)
def test_what_would_fit_does(models: dict[str, str], gpus: str, given: dict[str, Any]) -> None:
    model = models["qwen2.5-7b" if "h100" in gpus else "qwen2.5-1.5b"]
    values = {"placement": "colocated", "policy_model": model} | given
    values["critic"] = models.get(str(given.get("critic")), given.get("critic", "separate"))
    with pytest.raises(OptionError) as error:
        placed(gpus=gpus, **values)
    message = str(error.value)
    assert message.startswith(f"placement={values['placement']!r}: policy_model={model!r} does not fit on GPUs of ")
    _, _, remedy = message.rpartition("this would fit: ")
    changes = parse_changes(remedy)
    assert "critic" not in changes or given.get("critic") != "qwen2.5-1.5b"
    found = placed(gpus=gpus, **values | changes)
    assert found.utilization * found.gpus.memory >= found.needs.engine_least
    for section in SECTIONS:
        getattr(found.options, section).check(found.options)


def test_a_critic_on_the_policy_is_not_sharded_behind_its_back(models: dict[str, str]) -> None:
    found = placed("disaggregated", "8 x h100", policy_model=models["qwen2.5-1.5b"], critic="shared")
    assert found.options.learners.distributed == "ddp"


def parse_changes(text: str) -> dict[str, Any]:
    from tppo_rl.config.yaml_text import parse_yaml

    return dict(parse_yaml("{" + text + "}"))


def test_nothing_helps_a_card_that_is_too_small(models: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="take a smaller model, a larger GPU, or more of them"):
        placed("colocated", "2 GiB", policy_model=models["qwen2.5-7b"])
