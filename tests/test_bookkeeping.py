"""The algorithm's books without engine and learners: its methods on a stand-in for the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import make_fragment
from ray.rllib.core import DEFAULT_MODULE_ID

from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.learner.hindsight import HindsightBuffer
from tppo_rl.learner.update import FRAGMENT_REPORT_SCHEMA
from tppo_rl.observability.totals import RunTotals
from tppo_rl.rollout.ledger import Ledger


def stand_in(version: int, **config: Any) -> Any:
    values = {
        "gamma": 1.0,
        "hindsight": True,
        "boundary_value": "hold",
        "critic_warmup_updates": 2,
        "kl_coef": 0.0,
        "kl_in": "loss",
    }
    return SimpleNamespace(
        config=SimpleNamespace(**(values | config)),
        _version=version,
        _ledger=Ledger(seed=0),
        _hindsight=HindsightBuffer(1.0),
    )


@pytest.mark.parametrize(("version", "due"), [(1, []), (2, [0.75])])
def test_a_window_that_a_frozen_policy_was_not_trained_on_has_no_hindsight(version: int, due: list[float]) -> None:
    algorithm = stand_in(version)
    window = make_fragment(context=[9], tokens=[1, 2])
    last = make_fragment(context=[9, 1, 2], tokens=[3], rewards=[1.0], window_index=1, terminated=True)
    report = FRAGMENT_REPORT_SCHEMA.empty_table().from_pylist(
        [
            {
                "episode_id": 0,
                "window_index": 0,
                "trained_tokens": 2,
                "boundary_value": 0.5,
                "held_value": 0.25,
                "mean_value": 0.0,
            }
        ],
        schema=FRAGMENT_REPORT_SCHEMA,
    )
    (closed,) = TPPO._close_boundaries(algorithm, [window, last], report)
    assert closed.return_after == 1.0
    assert [fragment.hindsight_residual for fragment in algorithm._hindsight.take()] == due


def test_a_checkpoint_of_another_group_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets go on in the old groups: larger ones would never be complete, and the step would never end."""
    monkeypatch.setattr("ray.rllib.algorithms.algorithm.Algorithm.set_state", lambda self, state: None)
    algorithm = object.__new__(TPPO)
    algorithm.config = SimpleNamespace(group_size=8)
    nothing = table_from_fragments([])
    saved = {
        "ledger": Ledger(seed=0, group_size=4).state(),
        "queue": nothing,
        "hindsight": nothing,
        "held": nothing,
        "accounts": {},
        "evaluations": {},
    }
    with pytest.raises(OptionError, match=r"^group_size=8: .*group_size=4"):
        algorithm.set_state({"tppo": saved})


def book(closed: Sequence[ClosedBoundary] = (), **config: Any) -> Any:
    """Books an update without a metric of its first minibatch."""
    values = {"trained_tokens": 3.0, "staleness_max": 0.0}
    algorithm = stand_in(0, mode="sync", **config)
    fragment = make_fragment(terminated=True)
    algorithm._ledger.report(1, [fragment], num_tokens_sampled=3, num_open_tokens=0)
    algorithm.metrics = SimpleNamespace(peek_results=lambda result: result, aggregate=lambda results, key: None)
    algorithm._queue = algorithm._groups = SimpleNamespace(num_tokens=0)
    algorithm._log_values = {}
    algorithm._accounts = RunTotals(largest_ratio_deviation=0.5)
    algorithm._close_boundaries = lambda fragments, reports: closed
    algorithm.iteration = 0
    algorithm.written = []
    algorithm._run_log = lambda: SimpleNamespace(
        histogram=lambda *values: None, boundary_errors=lambda *errors: algorithm.written.append(errors)
    )
    result = {
        "fragment_report": FRAGMENT_REPORT_SCHEMA.empty_table(),
        "staleness_histogram": [3],
        DEFAULT_MODULE_ID: values,
    }
    TPPO._book(algorithm, [fragment], [result])
    return algorithm


@pytest.mark.parametrize(("kl_coef", "kl_in", "known"), [(0.1, "reward", False), (0.1, "loss", True)])
def test_values_with_kl_are_not_compared_with_returns_without_it(kl_coef: float, kl_in: str, known: bool) -> None:
    boundary = ClosedBoundary(0, Boundary(0.2, 0.3, 0.1), 1.0, 4)
    algorithm = book([boundary], kl_coef=kl_coef, kl_in=kl_in)
    assert ("critic/boundary_error_held" in algorithm._log_values) == known
    assert algorithm.written == ([(1, [boundary])] if known else [])


def test_an_update_whose_first_minibatch_is_of_hindsight_alone_is_booked() -> None:
    """Ratios before the first step are of windows that are trained for the first time: here there are none."""
    algorithm = book()
    assert algorithm._accounts.largest_ratio_deviation == 0.5
    assert algorithm._log_values["tokens/trained"] == 3
