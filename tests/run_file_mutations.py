"""Run files that chance has broken: as trees, as texts and as bytes, by seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from datetime import date
from importlib import resources
from typing import Any

import yaml
from data_sets import NOT_SHIPPED

from tppo_rl.config.foreign_sources import rllib_keys, vllm_engine_args
from tppo_rl.config.options import OPTIONS
from tppo_rl.config.yaml_text import parse_yaml

SHIPPED = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(resources.files("tppo_rl.configs").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".yaml")
}
TREES = {name: parse_yaml(text) for name, text in SHIPPED.items()}

PLACES = [
    ".:x", ":x", "x:", ":", "::", "no_such_module:x", "x.py:y", "json:loads", "os.path:", "tppo_rl:", "a/b.py:c.d", "..:x", "a..b:c",
    "GymV26Environment-v0", "phys2d/CartPole-v0", "CartPole-v1", "tppo_rl/Dataset-v0", "tppo_rl/ReasoningGym-v0",
    "tppo_rl/GuessNumber-v0", "tppo_rl/Verifiers-v0", "tppo_rl/OpenEnv-v0", "tppo_rl.envs.calculator:Calculator",
]  # fmt: skip
TEXTS = [
    "", " ", "x", "nan", "12:30", "010", "1e-4", "None", "separate", "[/b]", "[red]", "{prompt}", "\x07", "ä\u202e", "x" * 5000,
    "../..", "/", "~nobody/x", "-1", "auto", "vllm", "async", "sync", "TPPO", "GRPO", "asha", "pbt", "random", "training_iteration",
    *PLACES,
]  # fmt: skip
NUMBERS = [
    float("nan"), float("inf"), float("-inf"), -1, 0, 1, 2, 3, 1.5, -0.0, 100, 1000, 10**9, 10**12, 2**32, 2**62, 1e-300, 5e-324, 1e300, -1e12,
]  # fmt: skip
WORDS = [
    "grid_search",
    "choice",
    "uniform",
    "quniform",
    "loguniform",
    "randint",
    "qrandint",
    "lograndint",
    "gird_search",
]


def odd(rng: random.Random, depth: int = 0) -> Any:  # noqa: PLR0911
    """Returns a value that some option has not expected."""
    if rng.random() < 0.01:
        return rng.choice([date(2001, 1, 1), b"\xff", {1, 2}, 10**400, "\0", "\ud800"])
    kind = rng.randrange(16 if depth < 3 else 9)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice(NUMBERS)
    if kind < 9:
        return rng.choice([None, True, False, [], {}])
    if kind < 11:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 13:
        return {odd_key(rng): odd(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind < 14:
        return {"type": odd(rng, depth + 1), odd_key(rng): odd(rng, depth + 1)}
    return search_space(rng, depth)


def search_space(rng: random.Random, depth: int) -> Any:
    """Returns a search word with values that are seldom right."""
    number = rng.choice([0, 1, 2, 2, 3])
    arguments: Any = [odd(rng, depth + 2) for _ in range(number)]
    if rng.random() < 0.4:
        arguments = [rng.choice(NUMBERS) for _ in range(number)]
    if rng.random() < 0.1:
        arguments = list(range(rng.choice([100, 10_000])))
    return {rng.choice(WORDS): arguments if rng.random() < 0.9 else odd(rng, depth + 1)}


def odd_key(rng: random.Random) -> Any:
    """Returns a key: mostly one that is known somewhere."""
    known = [list(OPTIONS), sorted(rllib_keys()), sorted(vllm_engine_args()), WORDS]
    others = [
        "run",
        "env",
        "stop",
        "config",
        "seeds",
        "num_samples",
        "tune_config",
        "checkpoint_config",
        "scheduler",
        "search_alg",
    ]
    if rng.random() < 0.1:
        return rng.choice(
            [None, 1, 1.5, True, "", "x", "a.b", "\0", date(2001, 1, 1), "split", "type", "weight", "name"]
        )
    return rng.choice(rng.choice([*known, known[0], known[0], others]))


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every mapping or list of a tree with each of its keys."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def change_tree(rng: random.Random, tree: Any) -> None:
    """Changes one place of a tree."""
    found = list(nodes(tree))
    if not found:
        return
    parent, key = rng.choice(found)
    mappings = [value for value in (above[below] for above, below in found) if isinstance(value, dict)]
    how = rng.randrange(14)
    if how == 0:
        del parent[key]
    elif how < 4:
        parent[key] = odd(rng)
    elif how == 4 and mappings:
        rng.choice(mappings)[odd_key(rng)] = odd(rng)
    elif how == 5 and mappings:
        # A whole section moves, or a key of one.
        rng.choice(mappings)[key if isinstance(parent, dict) else odd_key(rng)] = copy.deepcopy(parent[key])
    elif how < 11:
        configs = [value["config"] for value in mappings if isinstance(value.get("config"), dict)]
        change_config(rng, rng.choice(configs) if configs else {})
    else:
        bodies = [value for value in mappings if "run" in value]
        change_body(rng, rng.choice(bodies) if bodies else {})


def change_config(rng: random.Random, config: dict[str, Any]) -> None:
    """Gives an option a value that is not its own: an odd one, another option's, or a mapping that it may take."""
    key = rng.choice(list(OPTIONS))
    how = rng.randrange(8)
    if how < 3:
        config[key] = odd(rng)
    elif how == 3:
        config[key] = OPTIONS[rng.choice(list(OPTIONS))].default
    elif how == 4:
        config[key] = {rng.choice(["grid_search", "choice"]): [odd(rng, 2) for _ in range(rng.choice([1, 2, 3, 30]))]}
    elif how == 5:
        config["engine"] = {
            rng.choice([*sorted(vllm_engine_args()), "type", "device", "kv_cache_gib", "linear"]): odd(rng, 2)
        }
    elif how == 6:
        config[rng.choice(sorted(rllib_keys()))] = odd(rng)
    else:
        inner = {
            "lora": ["rank", "alpha", "target_modules"],
            "sampling": ["temperature"],
            "rewards": ["type", "weight", "name", "pattern", "most", "verifier", "model"],
            "policy_loss": ["type", "cap"],
            "advantage_estimator": ["type"],
            "trackers": ["wandb", "mlflow", "trackio"],
            "env_config": ["max_operands", "task", "task_config", "source", "answer", "verifier", "preset", "heldout", "columns", "tail_exponent"],
        }  # fmt: skip
        key = rng.choice(list(inner))
        changed = dict(config[key]) if isinstance(config.get(key), dict) else {}
        config[key] = changed | {
            name: odd(rng, 2) for name in rng.sample(inner[key], k=rng.randint(1, min(3, len(inner[key]))))
        }
        if key == "env_config" and rng.random() < 0.5:
            config["env"] = rng.choice(PLACES)
        if key == "rewards" and rng.random() < 0.7:
            config[key] = {
                **config[key],
                "type": rng.choice(["format", "length", "model", "verifier", "calculation", "zero_one", *PLACES]),
            }


def change_body(rng: random.Random, body: dict[str, Any]) -> None:
    """Changes how often an experiment runs, until when, and how a sweep chooses."""
    how = rng.randrange(6)
    if how == 0:
        body["seeds"] = rng.choice([odd(rng), 10**9, 10**6, 3, [0, 2**32], list(range(3000))])
    elif how == 1:
        body[rng.choice(["num_samples", "stop", "tune_config", "checkpoint_config", "env", "run"])] = odd(rng)
    elif how == 2:
        keys = ["training_iteration", "time_total_s", "rollout/accuracy", "x", "", "a/b", 1, None]
        body["stop"] = {rng.choice(keys): odd(rng, 2) for _ in range(rng.randrange(3))}
    elif how == 3:
        keys = ["checkpoint_frequency", "checkpoint_at_end", "num_to_keep", "in_background", "x"]
        body["checkpoint_config"] = {rng.choice(keys): odd(rng, 2) for _ in range(2)}
    else:
        words = ["num_samples", "metric", "mode", "scheduler", "search_alg", "max_concurrent_trials", "time_budget_s"]
        body["tune_config"] = {rng.choice(words): odd(rng) for _ in range(2)}
        if rng.random() < 0.7:
            arguments = [
                "grace_period",
                "max_t",
                "time_attr",
                "reduction_factor",
                "hyperparam_mutations",
                "perturbation_interval",
                "metric",
            ]
            scheduler = {
                "type": rng.choice(["asha", "pbt", "fifo"]),
                **{rng.choice(arguments): odd(rng, 2) for _ in range(2)},
            }
            if scheduler["type"] == "pbt" and rng.random() < 0.7:
                scheduler["hyperparam_mutations"] = {
                    rng.choice(["lr", "clip_low", *OPTIONS]): odd(rng) for _ in range(2)
                }
            body["tune_config"] |= {"scheduler": scheduler, "num_samples": rng.choice([1, 2, 4, 10**9])}
        if rng.random() < 0.3:
            body["tune_config"]["search_alg"] = {
                "type": rng.choice(["random", "optuna", "hyperopt"]),
                odd_key(rng): odd(rng, 2),
            }


def change_text(rng: random.Random, text: str) -> str:  # noqa: PLR0911
    """Changes a text at one place."""
    lines = text.splitlines(keepends=True) or [""]
    at, line = rng.randrange(len(text) + 1), rng.randrange(len(lines))
    snippet = rng.choice(SNIPPETS)
    how = rng.randrange(9)
    if how == 0:
        return text[:at] + text[at + rng.choice([1, 1, 5, 50]) :]
    if how == 1:
        return text[:at] + rng.choice(list(":{}[],&*!|>%@`'\"#-?\t\n 0123456789.eE~<=_\0\x85\ufeff")) + text[at:]
    if how == 2:
        return text[:at] + snippet + text[at:]
    if how == 3:
        return "".join(lines[:line] + lines[line + 1 :])
    if how == 4:
        return "".join([*lines[: line + 1], *lines[line:]])
    if how == 5:
        other = rng.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
        return "".join(lines)
    if how == 6:
        indent = lines[line][: len(lines[line]) - len(lines[line].lstrip())]
        return "".join([*lines[:line], indent, snippet, "\n", *lines[line:]])
    if how == 7:
        key, colon, _ = lines[line].partition(": ")
        return "".join([*lines[:line], key, colon, snippet, "\n", *lines[line + 1 :]])
    return (
        text[:at] + text[at:][::-1]
        if rng.random() < 0.2
        else text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]
    )


SNIPPETS = [
    "[" * 1000, "{a: " * 1000, "[" * 40 + "]" * 40, "- " * 500, "&a [*a]", "&b {b: *b}", "<<: *config", "&c {<<: *c}", "*nothing", "<<: 3", "<<: [1]",
    "&l [1, 2, 3]", "seeds: 1000000000", "seeds: [1, 1]", "seeds: -1", "lr: 1e400", "lr: .nan", "lr: " + "9" * 5000, "seed: 0x" + "f" * 5000, "seed: 12:30",
    "seed: 010", "x: 2001-99-99", "? [a, b] : c", "? {a: b}", "!!python/object:os.system x", "!!int x", "!!float x", "!!binary x", "!!timestamp x",
    "!!set {a, b}", "!!omap [a: 1]", "!!null x", "!!bool x", "!unknown x", "%YAML 9.9", "---", "...", "\u2028", "lr: {grid_search: [1e-4, 1e-5]}",
    "run: TPPO", "config: {}", "stop: {training_iteration: 1}", "- 1", "null: 1", "1: 2", '"\\ud800": "\\0"', "lr: |", "lr: >", "'", '"', "@", "`",
    "a: &x [1,1,1,1,1,1,1,1]\nb: &y [*x,*x,*x,*x,*x,*x,*x,*x]\nc: &z [*y,*y,*y,*y,*y,*y,*y,*y]\nd: [*z,*z,*z,*z,*z,*z,*z,*z]",
]  # fmt: skip


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Sometimes returns a file in another encoding, or with a byte of none."""
    how = rng.randrange(60)
    if how == 0:
        at = rng.randrange(len(data) + 1)
        return data[:at] + bytes([rng.randrange(256)]) + data[at:]
    if how == 1:
        return data.decode("utf-8", "ignore").encode(
            rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]), "ignore"
        )
    return data


def override(rng: random.Random) -> str:
    """Returns a text for `--set`."""
    keys = [
        "config",
        "stop",
        "seeds",
        "env",
        "run",
        "lr",
        "config.lr",
        "stop.x",
        "env_config",
        "env_config.x.y",
        "a.",
        ".a",
        "",
        "..",
        "tune_config.scheduler",
    ]
    key = rng.choice([*keys, rng.choice(list(OPTIONS))])
    value = rng.choice(
        ["3", "null", "[]", "{}", "{a: 1}", "x", "1e400", "{grid_search: [1]}", *SNIPPETS[:12], str(rng.choice(TEXTS))]
    )
    return f"{key}={value}" if rng.random() < 0.9 else key


def mutated(seed: int) -> tuple[bytes, list[str]]:
    """Returns a shipped run file with one to three faults, and what `--set` adds."""
    rng = random.Random(seed)
    name = rng.choice(list(SHIPPED))
    text = SHIPPED[name]
    number = rng.choice([1, 1, 1, 2, 3])
    if rng.random() < 0.75:
        tree = copy.deepcopy(TREES[name])
        if rng.random() < 0.8 and len(tree) > 1:
            kept = rng.choice(list(tree))
            tree = {kept: tree[kept]}
        for _ in range(number):
            change_tree(rng, tree)
        text = yaml.dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False)
    else:
        for _ in range(number):
            text = change_text(rng, text)
    overrides = list(NOT_SHIPPED.get(name, []))
    if rng.random() < 0.1:
        overrides.append(override(rng))
    data = text.encode("utf-8", "surrogatepass")
    return change_bytes(rng, data), overrides
