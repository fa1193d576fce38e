"""Writes what can be read off the code: `python docs/generate.py`, or with `--check` only says what is stale.

    tppo_rl/config/sections/, core/registry.py         ─▶ docs/configuration.md     options, algorithms
    core/metric_table.py, learner/metrics.py, alarms   ─▶ docs/metrics.md           metrics, alarms
    algorithms/builder.py, sections                    ─▶ algorithms/builder.pyi    signatures for editors and type checkers
    plan/memory.py                                     ─▶ docs/guide.md             memory by model and length

It does not import Ray: modules that need it are read as text.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tppo_rl.config.options import OPTIONS, RENAMED_KEYS, RENAMED_VALUES, SECTIONS, OptionField, Options  # noqa: E402
from tppo_rl.config.section import Pair, Section  # noqa: E402
from tppo_rl.config.sections.optimizer import Schedule  # noqa: E402
from tppo_rl.core.algorithm_spec import AlgorithmSpec  # noqa: E402
from tppo_rl.core.metric_table import METRICS  # noqa: E402
from tppo_rl.core.registry import ALGORITHMS, PartSpec  # noqa: E402
from tppo_rl.core.reward_parts import RewardParts  # noqa: E402
from tppo_rl.observability import alarms  # noqa: E402
from tppo_rl.plan.memory import GIB, Memory, memory_of  # noqa: E402

BUILDER = ROOT / "algorithms" / "builder.py"
LEARNER_METRICS = ROOT / "tppo_rl" / "learner" / "metrics.py"
NOTE = "Written by docs/generate.py from the code; do not edit."

_SCHEDULE = get_args(Schedule)[0]
_PAIR = get_args(Pair)[0]
_OWN_METHODS = {"environment": "environment"}
"""Sections whose builder method is RLlib's own."""


# Types


class Words(NamedTuple):
    """One type, twice."""

    reader: str
    """For the docs."""
    python: str
    """For the stub."""


def type_words(info: FieldInfo) -> list[Words]:
    """The types that an option may have, in the order in which they are declared."""
    return [_words(kind, bounds) for kind, bounds in _alternatives(info.annotation, info.metadata)]


def _alternatives(kind: Any, metadata: Sequence[Any] = ()) -> Iterator[tuple[Any, list[Any]]]:
    if kind == _SCHEDULE:
        yield Schedule, []
    elif get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        yield from _alternatives(inner, [*metadata, *more])
    elif get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one, metadata)
    else:
        yield kind, [bound for item in metadata for bound in getattr(item, "metadata", [item])]


def _words(kind: Any, bounds: Sequence[Any]) -> Words:
    simple = {
        type(None): Words("`null`", "None"),
        bool: Words("`true` or `false`", "bool"),
        str: Words("text", "str"),
        Schedule: Words("number or schedule", "float | Sequence[Sequence[float]]"),
        PartSpec: Words("a name, a place, or a mapping of `type` and arguments", "str | Mapping[str, Any]"),
        RewardParts: Words(
            "a name, a place, a mapping of `type` and arguments, or a list of these",
            "str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]",
        ),
        _PAIR: Words("two numbers", "Sequence[float]"),
        tuple[str, ...]: Words("text, or a list of them", "str | Sequence[str]"),
        tuple[int | str, ...]: Words("text, integer, or a list of them", "int | str | Sequence[int | str]"),
    }
    if kind in simple:
        return simple[kind]
    if kind in (int, float):
        name = "integer" if kind is int else "number"
        return Words(" ".join(filter(None, [name, _bound_words(bounds, kind)])), kind.__name__)
    if get_origin(kind) is Literal:
        values = get_args(kind)
        return Words(" or ".join(f"`{value}`" for value in values), f"Literal[{', '.join(map(_quoted, values))}]")
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Section)):
        return Words("mapping", "Mapping[str, Any]")
    raise ValueError(f"an option of the type {kind!r}, for which docs/generate.py has no words; add some to `_words`")


def _bound_words(bounds: Sequence[Any], kind: type) -> str:
    found = {
        name: getattr(bound, name) for bound in bounds for name in ("gt", "ge", "lt", "le") if hasattr(bound, name)
    }
    if kind is int and "gt" in found:
        found["ge"] = found.pop("gt") + 1
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " and ".join(f"{signs[name]} {found[name]:g}" for name in signs if name in found)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def written(value: Any) -> str:
    """A value as YAML has it, on one line."""
    constants = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return constants[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return str(value)


# The builder's methods, read as text


def builder_constant(name: str) -> Any:
    """A constant of `algorithms/builder.py`, which imports Ray."""
    for node in ast.parse(BUILDER.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                assert node.value is not None
                return ast.literal_eval(node.value)
    raise ValueError(f"{BUILDER} has no constant {name}")


def method_of_section() -> dict[str, str]:
    """The builder's method that sets the options of each section."""
    methods = {section: name for name, (sections, _) in builder_constant("METHODS").items() for section in sections}
    return methods | _OWN_METHODS


def stub() -> str:
    """`algorithms/builder.pyi`."""
    first = builder_constant("FIRST")
    lines = [
        f"# {NOTE}",
        "from collections.abc import Mapping, Sequence",
        "from typing import Any, Literal, Self",
        "",
        "from ray.rllib.algorithms.algorithm_config import AlgorithmConfig",
        "",
        "METHODS: dict[str, tuple[tuple[str, ...], str]]",
        "FIRST: dict[str, str]",
        "",
        "def option_keys(method: str) -> list[str]: ...",
        "",
        "class OptionBuilder(AlgorithmConfig):",
    ]
    for name, (sections, meaning) in builder_constant("METHODS").items():
        keys = [key for section in sections for key in SECTIONS[section].model_fields]
        lines += [f"    def {name}(", "        self,"]
        if name in first:
            keys.remove(first[name])
            lines.append(f"        {_parameter(first[name])},")
        lines += ["        *,", *(f"        {_parameter(key)}," for key in keys)]
        lines += ["        **kwargs: Any,", "    ) -> Self:", f'        """{meaning}"""', ""]
    return "\n".join(lines)


def _parameter(key: str) -> str:
    return f"{key}: {' | '.join(words.python for words in type_words(OPTIONS[key].info))} = ..."


# Configuration


_CONFIGURATION = """\
# Configuration

Every option of a run, with its type, its default and its meaning. `tppo-rl options` prints the same list, and
`tppo-rl options --run DAPO` prints it with the defaults of another algorithm.

An option has one name everywhere:

=== "YAML"

    ```yaml
    my_run:
      run: TPPO
      env: tppo_rl/ArithmeticChain-v0
      stop: {training_iteration: 5}
      config:
        policy_model: tppo_rl/arithmetic-chain
        max_response_length: 320
        lr: 1e-4
    ```

=== "Python"

    ```python
    config = (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0")
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(max_response_length=320)
        .training(lr=1e-4)
    )
    ```

=== "Command line"

        tppo-rl train file configs/quickstart.yaml --set max_response_length=320 --set lr=1e-4

Rules that hold for all options:

- An unknown key, a wrong type and a value out of bounds are refused before anything starts. The message names key, value and
  remedy.
- Options that do not go together are refused with the reason.
- Some options are read under a condition only. They say "Read only with …", and a value of yours is refused where the condition does
  not hold.
- Options with the mark *perturbable* may change between the run that saved a checkpoint and the run that goes on from it. PBT
  may change these, and no others. `--resume` takes every change that does not alter models or what a checkpoint holds, and says which there are: open responses
  and windows in the queue were sampled with the values of before.
- `None` in a description is `null` in YAML.
- *A name, a place* stands for an object: a registered name such as `cispo`, `module:object`, or `file.py:object`
  (see [Extending](extending.md)).
- A *schedule* is a list of pairs `[[tokens, rate], …]` over the tokens trained, with straight lines between them.
- RLlib's own options go beside these. An RLlib option that nothing here reads is refused.

The defaults are those of T-PPO. [What each algorithm changes](#what-each-algorithm-changes) stands at the end.
"""


def configuration() -> str:
    """`docs/configuration.md`."""
    parts = [f"<!-- {NOTE} -->\n", _CONFIGURATION]
    methods = method_of_section()
    for name, section in SECTIONS.items():
        title = name.replace("_", " ").capitalize()
        parts.append(f"## {title}\n\n{section.__doc__} Builder: `.{methods[name]}(…)`.\n")
        parts += [_option_entry(key, OPTIONS[key]) for key in section.model_fields]
    parts.append(
        "## What each algorithm changes\n\n"
        "`run` names an algorithm. Each one is T-PPO with other defaults; some options are fixed, because another value would be "
        "another algorithm. What the algorithms do is on the page [Algorithms](algorithms.md).\n"
    )
    parts += [_algorithm_entry(ALGORITHMS.find(name)) for name in ALGORITHMS]
    parts.append(_renamed())
    return "\n".join(parts)


def _option_entry(key: str, option: OptionField) -> str:
    types = ", or ".join(words.reader for words in type_words(option.info))
    notes = [f"Read only with {option.read_with.words}."] if option.read_with is not None else []
    notes += ["*Perturbable.*"] if option.perturbable else []
    head = f"`{key}`{{#{key}}} · {types} · default `{written(option.default)}`"
    return f"{head}\n:   {' '.join([option.description, *notes])}\n"


def _algorithm_entry(spec: AlgorithmSpec) -> str:
    head = f"### {spec.name}\n\n{spec.title[0].upper()}{spec.title[1:]}, {spec.paper}.\n"
    changed = {key: value for key, value in spec.options.items() if value != OPTIONS[key].default}
    reasons = spec.reasons
    if not changed and not reasons:
        return f"{head}\nAll options have the defaults above.\n"
    rows = [f"| `{key}` | `{written(value)}` | {_cell(reasons.get(key, ''))} |" for key, value in changed.items()]
    rows += [
        f"| `{key}` | `{written(spec.options[key])}` | {_cell(reason)} |"
        for key, reason in reasons.items()
        if key not in changed
    ]
    return "\n".join([head, "| option | value | fixed, because |", "|---|---|---|", *rows, ""])


def _renamed() -> str:
    rows = [f"| `{old}` | `{new}` |" for old, new in RENAMED_KEYS.items()]
    rows += [f"| `{key}: {old}` | `{key}: {new}` |" for (key, old), new in RENAMED_VALUES.items()]
    head = "## Old names\n\nThese names of the last release work for one more release, with a warning.\n"
    return "\n".join([head, "| old | new |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# Metrics and alarms

_METRICS = """\
# Metrics and alarms

Every iteration writes these metrics. The same name stands in three places:

- TensorBoard: the tag, over sampled tokens. Weights & Biases, MLflow and trackio get the same, and some responses as tables, where
  `trackers` names them: `trackers: {wandb: {project: words}}`. Each has a package of its own, such as `pip install wandb`.
- `result.json`: a path, such as `result["rollout"]["return_mean"]`.
- `progress.csv`: a column, where the first result of the run has it.

A metric that has no value in an iteration is left out. Fractions are from 0 to 1. Log-probs and divergences are in nats.

The [alarms](#alarms) warn where a metric shows that a run goes wrong. [Troubleshooting](troubleshooting.md) begins with what you
see.
"""
_GROUPS = {
    "tokens": "What became of every token. `sampled = trained + queued + in_flight + dropped` holds in every iteration.",
    "rollout": "Episodes and slots. An asynchronous run begins with new episodes only, and short ones finish first: the first "
    "iterations show short responses, and too high an accuracy where short means easy.",
    "reward_failures": "Responses that could not be scored. Every part of the reward adds `rewards/<name>`, the mean of what it gave, and "
    "`reward_failures/<name>`; see [Rewards](rewards.md#what-is-logged).",
    "staleness": "How old tokens are when they are trained.",
    "policy": "The policy's update. A policy loss of your own adds `policy/<name>` for every metric that it returns.",
    "hindsight": "Windows that are trained once more when their episode has ended (`hindsight`).",
    "critic": "The critic's update and its errors at window ends.",
    "mismatch": "Whether engine and trainer agree: log-probs of the same tokens under both.",
    "alarm": "1 while the alarm is on. What each one means stands [below](#alarms).",
    "learner": "What an update processes.",
    "time": "Wall-clock of the parts of an iteration.",
    "heldout": "Held-out evaluations, written to TensorBoard when they are made. In `result.json` the last one stands under "
    "`heldout_latest/sampled/…` and `heldout_latest/greedy/…`, the first one under `heldout_before/…`.",
}


def metrics() -> str:
    """`docs/metrics.md`."""
    parts = [f"<!-- {NOTE} -->\n", _METRICS]
    groups = list(dict.fromkeys(metric.name.partition("/")[0] for metric in METRICS))
    missing = set(groups) ^ set(_GROUPS)
    if missing:
        raise ValueError(f"groups of metrics and those that docs/generate.py describes differ by {sorted(missing)}")
    for group in groups:
        rows = [
            f"| `{metric.name}` | {_cell(metric.definition)}{f' ({metric.unit})' if metric.unit else ''} |"
            for metric in METRICS
            if metric.name.startswith(f"{group}/")
        ]
        parts.append(
            "\n".join([f"## {group}\n\n{_GROUPS[group]}\n", "| metric | meaning (unit) |", "|---|---|", *rows, ""])
        )
    parts += [_alarms(), _of_learner()]
    return "\n".join(parts)


_ALARM_TRIGGERS: dict[str, tuple[str, Sequence[dict[str, float]]]] = {
    "few_finished_episodes": (
        f"a value batch has fewer than {alarms.FEW_EPISODES:g} finished episodes",
        [{"critic/finished_episodes": 2.0, "critic/loss": 0.1}],
    ),
    "explained_variance": (
        f"`critic/explained_variance` is {alarms.COLLAPSE:g} below its best, and not above 0.5",
        [{"critic/explained_variance": 0.6}, {"critic/explained_variance": 0.1}],
    ),
    "boundary_error": (
        f"`critic/boundary_error_held` is above {alarms.LEAST_ERROR:g} and {alarms.GROWTH:g} times its least",
        [{"critic/boundary_error_held": 0.1}, {"critic/boundary_error_held": 0.4}],
    ),
    "wrong_differences": (
        f"`critic/difference_slope` was negative in {alarms.WRONG_SIGNS} of its last {alarms.SLOPES} values (0 does not count), and "
        f"`policy/unfinished_fraction` is at least {alarms.SHARE:g}",
        [{"critic/difference_slope": -0.5, "policy/unfinished_fraction": 0.5}] * alarms.SLOPES,
    ),
    "slot_occupancy": (
        f"`rollout/slot_occupancy` is below {alarms.OCCUPANCY:g}; not where whole responses are trained",
        [{"rollout/slot_occupancy": 0.6}],
    ),
    "learner_idle": (
        f"`time/waiting_for_fragments` is above {alarms.IDLE:g} of `time/iteration`; async only",
        [{"time/waiting_for_fragments": 5.0, "time/iteration": 10.0}],
    ),
    "env_runner_idle": (
        f"`rollout/env_runner_idle_fraction` is above {alarms.IDLE:g}; async only",
        [{"rollout/env_runner_idle_fraction": 0.5}],
    ),
}
"""Of each alarm when it goes on, and metrics that make it go on, one after another."""


def _alarms() -> str:
    names = alarms.Alarms().names()
    if set(names) != set(_ALARM_TRIGGERS):
        raise ValueError(f"alarms and those that docs/generate.py describes differ: {names}")
    head = (
        "## Alarms\n\n"
        "Alarms look at running averages over some updates (half of the weight lies on the last three). None goes on before "
        "update 10. A run warns once when an alarm goes on, and writes `alarm/<name>` in every iteration. The warning names the "
        "settings to look at.\n"
    )
    rows = [f"| `alarm/{name}` | {_cell(_ALARM_TRIGGERS[name][0])} | {_cell(_example(name))} |" for name in names]
    mismatch = (
        "`mismatch/alarm` goes on where engine and trainer differ by more than `log_prob_diff_alarm` on tokens of the trainer's "
        "own version. Its warning names `kv_on_update`, `dtype` and `sampling`.\n"
    )
    return "\n".join(
        [head, "| metric | it goes on when | an example of its warning |", "|---|---|---|", *rows, "", mismatch]
    )


def _example(name: str) -> str:
    """The warning of an alarm."""
    watcher = alarms.Alarms(patience=1)
    before, *after = _ALARM_TRIGGERS[name][1]
    watcher.watch(before)
    for _ in range(20):
        for values in after or [before]:
            seen = {alarm.name: alarm.message for alarm in watcher.watch(values)}
    return seen[name]


def _of_learner() -> str:
    docstring = ast.get_docstring(ast.parse(LEARNER_METRICS.read_text(encoding="utf-8")))
    assert docstring is not None
    rows = [line for line in docstring.splitlines() if line.startswith("|")][2:]
    named = {metric.learner_key: metric.name for metric in METRICS if metric.learner_key}
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    table = [f"| {_code(names)} | {_cell(meaning.strip())} | {_shown_as(names, named)} |" for names, meaning in cells]
    head = (
        "## The learner's own names\n\n"
        "RLlib's results hold what learners report under `learners/default_policy/…`, by the names of the update step "
        "(`tppo_rl/learner/metrics.py`). Some of them are not in the tables above.\n"
    )
    return "\n".join([head, "| name | meaning | metric above |", "|---|---|---|", *table, ""])


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _shown_as(names: str, named: dict[str, str]) -> str:
    stem = names.partition(", ")[0].rpartition("_")[0]
    full = [stem + name if name.startswith("_") else name for name in names.split(", ")]
    return ", ".join(f"`{named[name]}`" for name in full if name in named) or "-"


# Memory by model and length

_SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                     "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
    "Qwen2.5-0.5B": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                     "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-1.5B": {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
                     "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-7B": {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                   "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    "Qwen2.5-32B": {"model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
                    "intermediate_size": 27648, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
_RESPONSES = (1024, 8192, 32768)
_TABLE_MARK = "<!-- Written by docs/generate.py -->"
"""In the guide; what follows is the table."""


def memory_table() -> str:
    """`docs/guide.md` with its table: what learner and engine take, by the formulas that a run prints."""
    lines = [
        f"| model | learner | {' | '.join(f'engine, responses of {length:,}' for length in _RESPONSES)} |",
        f"|---|---|{'---|' * len(_RESPONSES)}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in _SHAPES.items():
            (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
            plain = _memory(folder, _RESPONSES[0])
            small = _memory(
                folder, _RESPONSES[0], gradient_checkpointing=True, critic_layers=shape["num_hidden_layers"] // 4
            )
            engines = [f"{_memory(folder, length).of('env-runner') / GIB:.1f}" for length in _RESPONSES]
            learner = f"{plain.of('learner') / GIB:.1f} ({small.of('learner') / GIB:.1f})"
            lines.append(f"| {name} | {learner} | {' | '.join(engines)} |")
    before, mark, _ = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").partition(_TABLE_MARK)
    assert mark, "the guide has lost the mark of its table"
    return before + "\n".join([mark, "", *lines])


def _memory(folder: str, response: int, **options: Any) -> Memory:
    return memory_of(
        Options.of(
            policy_model=folder,
            dtype="bfloat16",
            num_envs_per_env_runner=64,
            num_env_runners=1,
            num_learners=1,
            num_gpus_per_env_runner=1,
            num_gpus_per_learner=1,
            max_prompt_length=512,
            max_response_length=response,
            micro_batch_tokens=16384,
            **options,
        )
    )


# Files

PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "configuration.md": configuration,
    ROOT / "docs" / "metrics.md": metrics,
    ROOT / "docs" / "guide.md": memory_table,
    ROOT / "algorithms" / "builder.pyi": stub,
}


def main(arguments: Sequence[str]) -> int:
    """Writes the files, or with `--check` returns 1 where one is stale."""
    stale = 0
    for path, make in PAGES.items():
        new = make().rstrip("\n") + "\n"
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        if new == old:
            continue
        stale += 1
        name = path.relative_to(ROOT)
        if "--check" in arguments:
            changes = list(
                difflib.unified_diff(old.splitlines(), new.splitlines(), "now", "generated", lineterm="", n=0)
            )
            print(f"{name} is stale ({len(changes)} lines of changes); run `python docs/generate.py`")
            print("\n".join(f"    {line}" for line in changes[:20]))
        else:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
