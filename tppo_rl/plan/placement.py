"""Presets of placement: from the GPUs that there are to the shares of engines and learners.

    preset          engines                                       learners
    colocated       one on each GPU, 0.6 of it for Ray            one on each GPU, 0.4 of it for Ray
    disaggregated   the other GPUs of the machine                 half of the GPUs, more where the model needs them
    cluster         the other GPUs of all nodes                   half of the GPUs, on one node where they fit

Ray fills a GPU with fractions until it is full. With more than half of a GPU for each engine no two engines come to one, and
what is left of each GPU is room for one learner. Env-runners start first. Over several nodes this does not hold: Ray chooses a node
by the sum of what is free on its GPUs, and a share that fits none of them waits there for ever.

A user's own values win. What contradicts the preset or the GPUs is refused by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from tppo_rl.config.options import Options
from tppo_rl.config.sections.models import SEPARATE, SHARED
from tppo_rl.config.sections.placement import PLACEMENT_DEFAULTS
from tppo_rl.core.errors import OptionError, OptionWarning
from tppo_rl.core.gpus import Gpus
from tppo_rl.plan.card_memory import CardNeeds, card_needs, engine_sleeps
from tppo_rl.plan.memory import GIB
from tppo_rl.plan.model_shape import Shape

ENGINE_SHARE = 0.6
_DIGITS = 4
"""Decimals of a share of a GPU; Ray counts in ten-thousandths."""


@dataclass(frozen=True)
class Placed:
    """Options with the shares of their placement."""

    options: Options
    set_here: dict[str, Any]
    """What the preset has set, by key; keys of the engine as `engine.key`."""
    gpus: Gpus
    needs: CardNeeds

    @property
    def utilization(self) -> float:
        """The engine's share of its GPUs' memory."""
        return float(self.options.rollout.engine.arguments["gpu_memory_utilization"])

    @property
    def values(self) -> dict[str, Any]:
        """What the preset has set, by the keys of options."""
        keys = {key.partition(".")[0] for key in self.set_here}
        flat = self.options.flat()
        return {key: flat[key] for key in flat if key in keys}


def place(given: Mapping[str, Any], defaults: Mapping[str, Any], gpus: Gpus) -> Placed:
    """Fills in the shares that a user has left out.

    Args:
        given: The user's options, by key; `placement` is one of them.
        defaults: Those of the algorithm that differ from T-PPO's, by key.
        gpus: What there is.

    Raises:
        OptionError: a contradiction, or models that do not fit; names key, value and what would be right.
    """
    return _Placing(given, defaults, gpus).placed()


class _Placing:
    """The steps of one placement."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], gpus: Gpus) -> None:
        self.given, self.defaults, self.gpus = dict(given), dict(defaults), gpus
        self.set_here = {key: value for key, value in PLACEMENT_DEFAULTS.items() if key not in given}
        self.preset = str(given["placement"])
        self.shape_of = cache(Shape.of)

    @property
    def options(self) -> Options:
        """The options as far as they are known."""
        values = self.defaults | self.given
        engine = dict(values.get("engine") or {})
        for key, value in self.set_here.items():
            section, _, name = key.partition(".")
            if name:
                engine[name] = value
            else:
                values[section] = value
        return Options.of(values | ({"engine": engine} if engine else {}))

    def placed(self) -> Placed:
        if self.preset != "cluster" and len(self.gpus.nodes) > 1:
            self._refuse_preset(f"is for one machine, and {self._there()}; set placement to 'cluster'")
        if self.preset == "colocated":
            self._colocate()
        else:
            self._set_apart()
        self._warn_of_idle()
        self._shard_if_needed()
        options = self.options
        needs = self._needs(options)
        if "gpu_memory_utilization" not in options.rollout.engine.arguments:
            self.set_here["engine.gpu_memory_utilization"] = self._utilization(options, needs)
        else:
            self._check_utilization(options, needs)
        return Placed(self.options, self.set_here, self.gpus, needs)

    # Numbers and shares

    def _colocate(self) -> None:
        options, total = self.options, self.gpus.total
        parallel = _parallel(options)
        if parallel > 1:
            self._refuse(
                "engine.tensor_parallel_size",
                parallel,
                "shares each GPU between one engine and one learner; remove the key, or set placement to 'disaggregated'",
            )
        if (evaluating := options.evaluation.evaluation_num_env_runners) > 0:
            self._refuse(
                "evaluation_num_env_runners",
                evaluating,
                "has no GPU left for them; set it to 0, so that the engines of training answer",
            )
        for key in ("num_env_runners", "num_learners"):
            other = self.given.get("num_learners" if key == "num_env_runners" else "num_env_runners")
            number = self._number(key, default=min(int(other or total), total))
            if number > total:
                self._refuse(
                    key, number, f"gives each of them a GPU of its own, and {self._there()}; set it to {total} or less"
                )
        engines, learners = self.options.rollout.num_env_runners, self.options.learners.num_learners
        if learners > 1 and engines != total:
            self._refuse(
                "num_env_runners",
                engines,
                f"needs an engine on each GPU where there are several learners, or two learners could come to one GPU, and "
                f"{self._there()}; set it to {total}, or hide GPUs with CUDA_VISIBLE_DEVICES",
            )
        self._share(engines, learners)
        options = self.options
        if (
            "enable_sleep_mode" not in options.rollout.engine.arguments
            and options.pipeline.mode == "sync"
            and _able_to_sleep(options)
        ):
            self.set_here["engine.enable_sleep_mode"] = True

    def _share(self, engines: int, learners: int) -> None:
        of_engine, of_learner = "num_gpus_per_env_runner", "num_gpus_per_learner"
        given = self.given
        if of_engine not in given:
            left = 1 - float(given.get(of_learner, 1 - ENGINE_SHARE))
            self.set_here[of_engine] = round(left, _DIGITS)
        if of_learner not in given:
            self.set_here[of_learner] = round(1 - float(given.get(of_engine, ENGINE_SHARE)), _DIGITS)
        engine, learner = self.options.rollout.num_gpus_per_env_runner, self.options.learners.num_gpus_per_learner
        theirs = of_engine if of_engine in given else of_learner
        value = given.get(theirs)
        if not 0 < engine < 1 or not 0 < learner < 1 or engine + learner > 1 + 10.0**-_DIGITS:
            self._refuse(
                theirs,
                value,
                f"shares a GPU, and engine and learner would take {engine:g} and {learner:g} of it; leave both shares out "
                f"({ENGINE_SHARE:g} and {1 - ENGINE_SHARE:g}), or give two above 0 that are 1 together",
            )
        if engines > 1 and engine <= 0.5:
            self._refuse(
                theirs,
                value,
                f"would let two engines of {engine:g} come to one GPU; give engines more than 0.5 and learners the rest",
            )
        if learners > 1 and engine + 2 * learner <= 1:
            self._refuse(
                theirs,
                value,
                f"would let two learners of {learner:g} come to one GPU; give learners what engines leave: {1 - engine:g}",
            )

    def _set_apart(self) -> None:
        nodes, total = self.gpus.nodes, self.gpus.total
        options = self.options
        parallel = _parallel(options)
        if parallel > nodes[0]:
            self._refuse(
                "engine.tensor_parallel_size",
                parallel,
                f"has an engine on one node, and the largest has {nodes[0]}; set it to {nodes[0]} or less",
            )
        evaluating = options.evaluation.evaluation_num_env_runners
        least = 1 + parallel * (evaluating + 1)
        if least > total:
            self._refuse_preset(
                f"needs {least} GPUs at least, for a learner and {evaluating + 1} x {parallel} of engines, and {self._there()}; "
                + (
                    "lower engine.tensor_parallel_size or evaluation_num_env_runners"
                    if least > 2
                    else "set placement to 'colocated'"
                )
            )
        for key, each in (("num_gpus_per_env_runner", parallel), ("num_gpus_per_learner", 1)):
            if key not in self.given:
                self.set_here[key] = each
            elif self.given[key] != each:
                why = (
                    "engine.tensor_parallel_size says so" if each > 1 else "shares of one are for placement 'colocated'"
                )
                self._refuse(key, self.given[key], f"gives each of them {each} whole ({why}); leave it out")
        self._count_apart(parallel, evaluating)

    def _count_apart(self, parallel: int, evaluating: int) -> None:
        most = self.gpus.total - parallel * (evaluating + 1)
        if "num_env_runners" in self.given:
            engines = self._number("num_env_runners", default=1)
            learners = self._number("num_learners", default=max(1, self.gpus.total - parallel * (evaluating + engines)))
        else:
            learners = self._number("num_learners", default=self._least_learners(most))
            engines = self._number("num_env_runners", default=max(1, self._room_for_engines(learners) - evaluating))
        if learners <= self.gpus.total and engines + evaluating <= self._room_for_engines(learners):
            return
        key, right = "num_learners", most
        if "num_env_runners" in self.given:
            left = self._room_for_engines(int(self.given.get("num_learners", 1))) - evaluating
            key, right = ("num_env_runners", left) if left > 0 else (key, most)
        self._refuse(
            key,
            self.options.value(key),
            f"would put {_some(engines + evaluating, 'engine')} x {parallel} and {_some(learners, 'learner')} on GPUs of their own, and {self._there()}; "
            f"set it to {right} or less",
        )

    def _warn_of_idle(self) -> None:
        options, total = self.options, self.gpus.total
        engines, learners = options.rollout.num_env_runners, options.learners.num_learners
        answering = options.evaluation.evaluation_num_env_runners
        parallel = _parallel(options)
        taken = max(engines, learners) if self.preset == "colocated" else parallel * (engines + answering) + learners
        if taken < total:
            each = f" x {parallel}" if parallel > 1 else ""
            warnings.warn(
                f"placement={self.preset!r}: {total - taken} of {total} GPUs ({self.gpus.source}) have nothing to do beside "
                f"{_some(engines + answering, 'engine')}{each} and {_some(learners, 'learner')}: num_env_runners={engines}, "
                f"num_learners={learners}; leave out what you do not need to set, and the placement fills all GPUs",
                OptionWarning,
                stacklevel=2,
            )

    def _room_for_engines(self, learners: int) -> int:
        """Engines beside so many learners, which fill the largest nodes first; none spans nodes."""
        parallel, room = _parallel(self.options), 0
        for node in self.gpus.nodes:
            taken = min(learners, node)
            learners -= taken
            room += (node - taken) // parallel
        return room

    def _least_learners(self, most: int) -> int:
        """Half of the GPUs, on one node where they fit, or as many as the model needs."""
        usual = max(1, min(self.gpus.total // 2, self.gpus.nodes[0], most))
        for number in range(usual, most + 1):
            if self._fits(self._with_learners(number)):
                return number
        return usual

    def _with_learners(self, number: int) -> Options:
        changes: dict[str, Any] = {"num_learners": number}
        if number > 1 and self._may_shard():
            changes["distributed"] = "fsdp"
        return self.options.replace(**changes)

    def _may_shard(self) -> bool:
        return "distributed" not in self.given and self.options.models.critic != SHARED

    def _shard_if_needed(self) -> None:
        """Whole copies of the weights where they leave an engine room for all slots: they need no gathering."""
        options = self.options
        if not self._may_shard() or options.learners.num_learners < 2:
            return
        needs = self._needs(options)
        room = needs.kv_tokens(self.gpus.memory, self._largest(options, needs))
        if not self._fits(options) or (self.preset == "colocated" and room < needs.slot_tokens):
            self.set_here["distributed"] = "fsdp"

    def _number(self, key: str, *, default: int) -> int:
        if key not in self.given:
            self.set_here[key] = default
            return default
        number = int(self.given[key])
        if number < 1:
            who = "the engine" if key == "num_env_runners" else "the learner"
            self._refuse(key, number, f"needs an actor for {who}, or Ray does not count its GPU; set it to 1 or more")
        return number

    # Memory

    def _needs(self, options: Options) -> CardNeeds:
        return card_needs(options, self.shape_of)

    def _largest(self, options: Options, needs: CardNeeds) -> float:
        return needs.share_for_engine(
            self.gpus.memory, colocated=self.preset == "colocated", asleep=engine_sleeps(options)
        )

    def _fits(self, options: Options) -> bool:
        needs = self._needs(options)
        given = options.rollout.engine.arguments.get("gpu_memory_utilization")
        share = self._largest(options, needs) if given is None else min(given, self._largest(options, needs))
        return share > 0 and share * self.gpus.memory >= needs.engine_least

    def _utilization(self, options: Options, needs: CardNeeds) -> float:
        if not self._fits(options):
            raise OptionError(
                f"placement={self.preset!r}: policy_model={options.models.policy_model!r} does not fit on GPUs of "
                f"{_gib(self.gpus.memory)} ({self.gpus.source}): a learner takes {_gib(needs.peak)}, {_gib(needs.held)} of it all the time, "
                f"and an engine {_gib(needs.engine_least)} at least; {self._what_fits()}"
            )
        return self._largest(options, needs)

    def _check_utilization(self, options: Options, needs: CardNeeds) -> None:
        key, value = "engine.gpu_memory_utilization", options.rollout.engine.arguments["gpu_memory_utilization"]
        largest = self._largest(options, needs)
        if self.preset == "colocated" and value > largest:
            beside = needs.held if engine_sleeps(options) else needs.peak
            remedy = f"give {largest:g} or less" if largest > 0 else self._what_fits()
            raise OptionError(
                f"{key}={value!r}: beside it a learner takes {_gib(beside)} of {_gib(self.gpus.memory)} ({self.gpus.source}); {remedy}"
            )
        if value * self.gpus.memory < needs.engine_least:
            raise OptionError(
                f"{key}={value!r}: is {_gib(value * self.gpus.memory)} of {_gib(self.gpus.memory)} ({self.gpus.source}), and the engine needs "
                f"{_gib(needs.engine_least)} at least; leave it out"
            )

    def _what_fits(self) -> str:
        """The first change of options, or else the first few of them together, with which models fit."""
        changes = list(self._changes())
        for number in range(1, len(changes) + 1):
            for tried in [*([change] for change in changes if number == 1), changes[:number]]:
                if self._fit_with(tried):
                    needed = self._needed_of(tried)
                    return "this would fit: " + ", ".join(
                        f"{key}: {_plain(value)}"
                        for change in needed
                        for key, value in change.items()
                        if key != "engine" and value != self.options.value(key)
                    )
        return "take a smaller model, a larger GPU, or more of them"

    def _needed_of(self, changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leaves out what models fit without; what costs training most comes last, and goes first."""
        needed = changes
        for change in reversed(changes):
            fewer = [other for other in needed if other is not change]
            if self._fit_with(fewer):
                needed = fewer
        return needed

    def _fit_with(self, changes: list[dict[str, Any]]) -> bool:
        return self._fits(self.options.replace(**{key: value for change in changes for key, value in change.items()}))

    def _changes(self) -> Iterator[dict[str, Any]]:
        options = self.options
        colocated = self.preset == "colocated"
        if colocated and options.pipeline.mode == "async" and "mode" not in self.given and _able_to_sleep(options):
            # In sync mode the preset lets the engine sleep.
            yield {"mode": "sync", "engine": {"enable_sleep_mode": True} | options.flat()["engine"]}
        if not options.learners.gradient_checkpointing:
            yield {"gradient_checkpointing": True}
        if options.compute.micro_batch_tokens > 1024:
            yield {"micro_batch_tokens": max(1024, options.compute.micro_batch_tokens // 8)}
        if (
            options.models.dtype == "bfloat16"
            and options.models.weights_dtype == "float32"
            and options.models.lora is None
        ):
            yield {"weights_dtype": "bfloat16"}
        if options.models.lora is not None:
            return
        if options.models.critic == SHARED:
            if options.learners.num_learners > 1 and "distributed" not in self.given:
                yield {"critic": SEPARATE, "critic_lora": None, "distributed": "fsdp"}
            # Adapters of both have one copy of the frozen weights without it.
            yield {"lora": {"rank": 16}, "critic": SEPARATE, "critic_lora": None}
            return
        if options.models.critic == SEPARATE and options.learners.distributed != "fsdp":
            yield {"critic": SHARED}
            yield {"lora": {"rank": 16}, "critic": SEPARATE}
            return
        yield {"lora": {"rank": 16}}

    # Words

    def _there(self) -> str:
        nodes = self.gpus.nodes
        where = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
        return (
            f"there {'is 1 GPU' if self.gpus.total == 1 else f'are {self.gpus.total} GPUs'}{where} ({self.gpus.source})"
        )

    def _refuse(self, key: str, value: Any, reason: str) -> NoReturn:
        raise OptionError(f"{key}={value!r}: placement={self.preset!r} {reason}")

    def _refuse_preset(self, reason: str) -> NoReturn:
        raise OptionError(f"placement={self.preset!r}: {reason}")


def _parallel(options: Options) -> int:
    return int(options.rollout.engine.arguments.get("tensor_parallel_size") or 1)


def _able_to_sleep(options: Options) -> bool:
    engine = options.rollout.engine
    return (
        engine.type == "vllm"
        and not engine.arguments.get("multiprocessing")
        and options.pipeline.kv_on_update == "recompute"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(one)}" for key, one in value.items()) + "}"
    return str(value)


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
