"""Keys of results: what is misspelled is named before a run, what is missing after its first iteration."""

from __future__ import annotations

import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.core.result_keys import check_limits, check_spelling, lookup

RESULT = {"training_iteration": 1, "policy": {"surprise": 2.0}, "rollout": {}, "fraction": 0.5}


def test_a_known_key_and_an_own_one_pass() -> None:
    for key in (
        "training_iteration",
        "rollout/accuracy",
        "heldout_latest/greedy/accuracy",
        "policy/surprise",
        "fraction",
    ):
        check_spelling("stop", 1, key)


@pytest.mark.parametrize("key", ["training_iterations", "rollout/acuracy", "time_total", "heldout_latest/sampled/acc"])
def test_a_misspelled_key_is_named_with_the_right_one(key: str) -> None:
    with pytest.raises(OptionError, match=r"results have no such key; did you mean "):
        check_spelling("stop", 1, key)


def test_a_key_that_no_result_has_is_refused_where_nothing_can_add_it() -> None:
    with pytest.raises(
        OptionError, match=r"^stop\.nonsense=1: results have no such key; take one of .*training_iteration"
    ):
        check_spelling("stop.nonsense", 1, "nonsense", may_be_new=False)
    for key in ("training_iteration", "learners/default_policy/entropy", "run/refills", "rewards/format"):
        check_spelling("stop", 1, key, may_be_new=False)


def test_each_missing_key_is_found_beside_right_ones() -> None:
    # Accuracy is a metric that this iteration has no value for; a later one may.
    stop = {"training_iteration": 5, "policy/surprise": 9.0, "rollout/accuracy": 0.9}
    check_limits(RESULT, stop, "run.stop")
    with pytest.raises(
        OptionError, match=r"^run\.stop\.nothing=1: results have no such key; they have fraction, training_it"
    ):
        check_limits(RESULT, {**stop, "nothing": 1}, "run.stop")
    assert lookup(RESULT, "policy/surprise") == 2.0
