"""One update: a batch of fragments with its targets in, new weights, metrics and a report per fragment out.

    agree on token counts (all-reduce)
      -> policy: minibatches of window tokens     (frozen while the critic warms up)
      -> critic: minibatches of the value batch    (none where nothing finished anywhere; at the same time: `parallel_critic`)
      -> metrics and staleness histogram (all-reduce)

Learners hold shares of different sizes, also empty ones. Everything that decides how many collective calls follow is
agreed on first, so every learner makes the same ones in the same order and none waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch

from tppo_rl.config.options import Options
from tppo_rl.core.schedules import LearningRate, rate_at
from tppo_rl.kernels.denormals import flushed_subnormals
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import Collective, SingleLearner
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.contexts import check_contexts
from tppo_rl.learner.critic_step import CRITIC_SUMS, CriticStep
from tppo_rl.learner.loss_scale import scale_losses
from tppo_rl.learner.memory_limit import MicroBatchLimit
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.metrics import STATISTIC_MAXIMA, STATISTIC_SUMS, add_statistics, scalars
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.optimizers import GradientStep, StepReport, make_adamw, ramped_lr, trainable
from tppo_rl.learner.packing import check_packing
from tppo_rl.learner.policy_step import POLICY_MAXIMA, POLICY_SUMS, PolicyStep
from tppo_rl.learner.sharding import ShardedGradientStep, is_sharded, shard
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.value_batches import empty_value_batch
from tppo_rl.learner.weight_guard import WeightGuard

FRAGMENT_REPORT_SCHEMA = pa.schema(
    [
        pa.field("episode_id", pa.int64(), nullable=False),
        pa.field("window_index", pa.int32(), nullable=False),
        pa.field("trained_tokens", pa.int32(), nullable=False),
        pa.field("boundary_value", pa.float32()),
        pa.field("held_value", pa.float32()),
        pa.field("mean_value", pa.float32()),
        pa.field("values", pa.list_(pa.float32())),
        pa.field("advantages", pa.list_(pa.float32())),
        pa.field("left_out_advantages", pa.list_(pa.float32())),
    ]
)
"""One row per fragment of this learner's share but those in hindsight; values are the critic's before the update (null
without a critic).

`trained_tokens`: sampled tokens that the update consumed, also where the policy was frozen. `boundary_value`: V(s_l)
after the last token, also where the episode ended. `held_value`: V(s_{l-1}). `mean_value`: mean V(s_t) of the window. `values`
and `advantages`: V(s_t) and A_t of each sampled token, both null where no episodes are recorded. `left_out_advantages`: what
`unfinished_advantage_scale` left out of each, null where it left out nothing and without hindsight.
"""


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What an update reports."""

    metrics: dict[str, float]
    """Global scalars, the same on all learners; names and units in `tppo_rl.learner.metrics`."""
    staleness_histogram: np.ndarray
    """int64 [max + 1], global: number of window tokens by staleness (policy version before the update - version)."""
    fragment_report: pa.Table
    """`FRAGMENT_REPORT_SCHEMA`, of this learner's share."""


class UpdateStep:
    """Trains a policy and, where there is one, its critic. Each has its own trained weights, optimizer, clipping."""

    def __init__(
        self,
        policy: Policy,
        critic: Critic | None,
        options: Options,
        collective: Collective | None = None,
        cache: ContextCache | None = None,
        reference: Policy | None = None,
    ) -> None:
        """Makes the optimizers and brings all learners to the weights of learner 0.

        Args:
            policy: On its final device; sharded already, or to be sharded.
            critic: As the policy; None trains no values, and targets must come without them.
            options: See `Options`.
            collective: The other learners; None means that there are none.
            cache: Keeps the policy's contexts from update to update; None computes them anew.
            reference: Is not trained, and sharded like the other two; None: there is none.

        Raises:
            ValueError: `options.compute.packing` with a model that does not keep packed sequences apart, or no
                `options.compute.context_gradient` with one that cannot go on after a context.
            ValueError: the models are to be sharded, and there is one learner.
            ValueError: `options.critic.parallel_critic` with several learners.
        """
        self.options = options
        self._collective: Collective = collective or SingleLearner()
        self._policy_updates = 0
        self._trained_tokens = 0
        if options.learners.distributed == "fsdp" and self._collective.size == 1:
            raise ValueError("distributed='fsdp' will not do: there is one learner, nothing to shard over; use 'ddp'")
        if options.critic.parallel_critic and self._collective.size > 1:
            raise ValueError(
                "parallel_critic=True will not do: several learners exchange gradients in one order; set it to False"
            )
        self._critic_thread = (
            ThreadPoolExecutor(1, thread_name_prefix="critic") if options.critic.parallel_critic else None
        )
        for model in (policy, critic):
            # Slices of all learners are of the same files.
            for parameter in trainable(model.parameters()) if model is not None and not is_sharded(model) else ():
                self._collective.broadcast_(parameter.data)
            if options.compute.packing and model is not None:
                check_packing(model)
            if model is not None and (
                options.compute.context_cache_tokens
                or (isinstance(model, Policy) and not options.compute.context_gradient)
            ):
                check_contexts(model)
        for model in (policy, critic, reference) if options.learners.distributed == "fsdp" else ():
            if model is not None and not is_sharded(model):
                shard(model)
        self.policy_optimizer = self._adamw(policy, options.optimizer.lr)
        self.policy_gradients = self._gradients(self.policy_optimizer, options.optimizer.grad_clip, "policy")
        self._limit = MicroBatchLimit(options.compute.micro_batch_tokens, halves=options.learners.distributed != "fsdp")
        self._policy_step = PolicyStep(policy, self.policy_gradients, options, self._collective, self._limit, cache)
        self.critic_optimizer: torch.optim.Optimizer | None = None
        self.critic_gradients: GradientStep | ShardedGradientStep | None = None
        self._critic_step: CriticStep | None = None
        if critic is not None:
            self.critic_optimizer = self._adamw(critic, options.critic.critic_lr)
            self.critic_gradients = self._gradients(self.critic_optimizer, options.critic.critic_grad_clip, "critic")
            self._critic_step = CriticStep(critic, self.critic_gradients, options, self._collective, self._limit)
        self._policy_guard = self._guard(self.policy_optimizer, "policy", "lr")
        self._critic_guard = (
            None if self.critic_optimizer is None else self._guard(self.critic_optimizer, "critic", "critic_lr")
        )

    @flushed_subnormals()
    def run(
        self, batch: TrainBatch, targets: Targets, policy_version: int, *, policy_is_frozen: bool = False
    ) -> UpdateResult:
        """Trains both models on one batch.

        Args:
            batch: This learner's share of the fragments; may be empty.
            targets: Advantages and value targets of the same batch.
            policy_version: Version of the weights before the update; no token may be newer.
            policy_is_frozen: Whether the critic trains alone, as in the first `critic_warmup_updates`.

        Raises:
            RunError: the update has left weights that are no good (`weight_guard`).
        """
        options = self.options
        frozen = policy_is_frozen or policy_version < options.critic.critic_warmup_updates
        metric_sums = MetricSums(
            (*POLICY_SUMS, *CRITIC_SUMS, *STATISTIC_SUMS), (*POLICY_MAXIMA, *STATISTIC_MAXIMA, *_SECONDS.values())
        )
        value_batch = targets.value_batch or empty_value_batch()
        counts = torch.stack([batch.window.lengths.sum(), value_batch.tokens.lengths.sum()])
        window_tokens, value_tokens = self._collective.sum_(counts).tolist()
        add_statistics(metric_sums, batch, targets, policy_version, options)
        shuffle = (options.run.seed or 0, policy_version, self._collective.rank)
        lr = ramped_lr(
            rate_at(options.optimizer.lr, self._trained_tokens),
            self._policy_updates,
            options.optimizer.lr_warmup_updates,
        )
        critic_lr = rate_at(options.critic.critic_lr, self._trained_tokens)

        def train_policy() -> list[StepReport]:
            return self._policy_step.run(
                batch,
                targets,
                version=policy_version,
                global_tokens=window_tokens,
                lr=lr,
                frozen=frozen,
                generator=np.random.default_rng(shuffle),
                metric_sums=metric_sums,
            )

        def train_critic() -> list[StepReport]:
            if self._critic_step is None:
                return []
            generator = np.random.default_rng((*shuffle, 1))
            return self._critic_step.run(
                value_batch, global_tokens=value_tokens, lr=critic_lr, generator=generator, metric_sums=metric_sums
            )

        guards = [guard for guard in (self._policy_guard, self._critic_guard) if guard is not None]
        for guard in guards:
            guard.before()
        # The critic's thread was started in here, and so takes subnormal numbers as 0 as well.
        policy, critic = both(_timed(train_policy), _timed(train_critic), self._critic_thread)
        for guard, trained, rate in zip(guards, (policy, critic), (lr, critic_lr), strict=False):
            guard.after(trained.reports, rate)
        self._policy_updates += bool(policy.reports)
        self._trained_tokens += window_tokens
        for name, seconds in zip(_SECONDS.values(), (targets.seconds, policy.seconds, critic.seconds), strict=True):
            metric_sums.largest(name, seconds)

        totals = metric_sums.reduce(self._collective)
        loss_totals = metric_sums.reduce_metrics(self._collective)
        metrics = scalars(totals, loss_totals, options, policy.reports, critic.reports)
        metrics |= {name: totals[maximum] for name, maximum in _SECONDS.items()}
        metrics["learning_rate"] = 0.0 if frozen else lr
        if self._critic_step is not None:
            metrics["critic_learning_rate"] = critic_lr
        histogram = self._staleness_histogram(batch, policy_version, int(max(-1.0, totals["staleness_max"])))
        report = fragment_report(batch, targets, with_tokens=options.run.record_episodes > 0)
        return UpdateResult(metrics, histogram, report)

    def get_state(self) -> dict[str, Any]:
        """Returns the counters that the next update depends on, beside weights and optimizers.

        The shuffling has no state: it is drawn from seed, policy version and learner.
        """
        return {"policy_updates": self._policy_updates, "trained_tokens": self._trained_tokens}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from the counters of `get_state`."""
        self._policy_updates = int(state["policy_updates"])
        self._trained_tokens = int(state["trained_tokens"])
        for guard in (self._policy_guard, self._critic_guard):
            if guard is not None:
                guard.forget()

    def _adamw(self, model: torch.nn.Module, lr: LearningRate) -> torch.optim.AdamW:
        optimizer = make_adamw(
            model.parameters(),
            lr=rate_at(lr, 0),
            betas=self.options.optimizer.adam_betas,
            weight_decay=self.options.optimizer.weight_decay,
        )
        if self.options.models.dtype == "float16":
            scale_losses(optimizer)
        return optimizer

    def _gradients(
        self, optimizer: torch.optim.Optimizer, max_norm: float | None, name: str
    ) -> GradientStep | ShardedGradientStep:
        step = ShardedGradientStep if self.options.learners.distributed == "fsdp" else GradientStep
        return step(optimizer, max_norm=max_norm, collective=self._collective, name=name)

    def _guard(self, optimizer: torch.optim.Optimizer, name: str, lr_key: str) -> WeightGuard:
        most = self.options.optimizer.max_skipped_updates
        return WeightGuard(optimizer, self._collective, name=name, lr_key=lr_key, most_skipped=most)

    def _staleness_histogram(self, batch: TrainBatch, version: int, largest: int) -> np.ndarray:
        staleness = version - batch.versions[batch.window.mask & ~batch.hindsight[:, None]]
        assert not len(staleness) or int(staleness.min()) >= 0, "a token is newer than the trainer's weights"
        return self._collective.sum_(torch.bincount(staleness, minlength=largest + 1)).numpy()


class _Training(NamedTuple):
    reports: list[StepReport]
    seconds: float


def _timed(train: Callable[[], list[StepReport]]) -> Callable[[], _Training]:
    def timed() -> _Training:
        start = time.perf_counter()
        reports = train()
        return _Training(reports, time.perf_counter() - start)

    return timed


_T = TypeVar("_T")


def both(first: Callable[[], _T], second: Callable[[], _T], thread: Executor | None) -> tuple[_T, _T]:
    """Returns the results of both: the second one's of the given thread, meanwhile, or without one of this thread, afterwards.

    Both have ended when it returns or raises.
    """
    if thread is None:
        return first(), second()
    meanwhile = thread.submit(second)
    try:
        result = first()
    finally:
        wait([meanwhile])
    return result, meanwhile.result()


_SECONDS = {
    "values_seconds": "values_seconds_max",
    "policy_seconds": "policy_seconds_max",
    "critic_seconds": "critic_seconds_max",
}


def fragment_report(batch: TrainBatch, targets: Targets, *, with_tokens: bool = False) -> pa.Table:
    """Returns the report of this learner's fragments, in the order of the batch; those in hindsight have had theirs.

    Args:
        batch: The fragments.
        targets: What was estimated for them.
        with_tokens: Whether the value and the advantage of each token are wanted.
    """
    lengths = batch.window.lengths
    columns: list[Any] = [batch.episode_ids, batch.window_indices, lengths.numpy()]
    if targets.values is None or not len(batch):
        columns += [pa.nulls(len(batch), pa.float32())] * 3
    else:
        held = targets.values.window.gather(1, lengths[:, None] - 1)[:, 0]
        mean = targets.values.window.sum(dim=1) / lengths
        columns += [targets.values.after.numpy(), held.numpy(), mean.numpy()]
    values = None if targets.values is None else targets.values.window
    left_out = targets.left_out if targets.left_out is not None and bool(targets.left_out.any()) else None
    for of_tokens, wanted in ((values, with_tokens), (targets.advantages, with_tokens), (left_out, True)):
        if wanted and of_tokens is not None and len(batch):
            columns.append(_rows(of_tokens, lengths))
        else:
            columns.append(pa.nulls(len(batch), pa.list_(pa.float32())))
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, FRAGMENT_REPORT_SCHEMA, strict=True)]
    report = pa.Table.from_arrays(arrays, schema=FRAGMENT_REPORT_SCHEMA)
    return report.filter(pa.array(~batch.hindsight.numpy()))


def _rows(padded: torch.Tensor, lengths: torch.Tensor) -> pa.ListArray:
    """The first `lengths[i]` numbers of each row of float32 [B, T]."""
    inside = torch.arange(padded.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], lengths.cumsum(0).numpy()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(padded[inside].detach().float().cpu().numpy()))
