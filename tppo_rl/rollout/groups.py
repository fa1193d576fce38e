"""Groups of responses to one prompt, which are compared with one another when all of them have ended.

    tickets ─▶ env-runners ─▶ whole episodes ─▶ GroupBuffer ─▶ complete groups ─┬─ returns differ ─▶ update
       ▲                                                                        └─ all equal ──▶ dropped, counted
       └──────────────────── as many new prompts as were dropped ◀───────────────────┘

A response that is left out of training, because it could not be scored or was cut off, is missed by its group: the group is
complete without it, and smaller. To sample another one instead would let the others wait for it, until they are stale.

The way back is dynamic sampling (DAPO, arXiv 2503.14476, section 3.2). Plain Python, tested without Ray.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tppo_rl.core.fragments import Fragment

Group = list[Fragment]


class GroupBuffer:
    """Whole episodes that wait for the others of their group; many wait only after a loss of env-runners."""

    def __init__(self, group_size: int, left_out: Mapping[int, int] | None = None) -> None:
        """Begins without episodes.

        Args:
            group_size: Number of responses to a prompt.
            left_out: `left_out` of a buffer that was saved.
        """
        self.group_size = group_size
        """Number of responses to a prompt."""
        self._waiting: defaultdict[int, Group] = defaultdict(list)
        self._oldest: dict[int, int] = {}
        """Oldest version of each waiting group, which every poll of the controller asks for."""
        self._left_out: Counter[int] = Counter(left_out or {})

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of the waiting episodes."""
        return sum(len(fragment) for fragment in self.fragments())

    def add(self, fragments: Iterable[Fragment]) -> list[Group]:
        """Adds finished episodes and returns the groups that they complete."""
        complete = []
        for fragment in fragments:
            self._wait(fragment)
            if self._is_complete(fragment.prompt_index):
                complete.append(self._pop(fragment.prompt_index))
        # Groups whose last response was left out.
        complete += [self._pop(prompt) for prompt in list(self._left_out) if self._is_complete(prompt)]
        return [group for group in complete if group]

    def leave_out(self, prompt_index: int) -> None:
        """Makes the group of a prompt complete without one of its responses."""
        self._left_out[prompt_index] += 1

    @property
    def left_out(self) -> dict[int, int]:
        """Number of responses that open groups miss, by prompt."""
        return dict(self._left_out)

    def pop_older_than(self, version: int) -> list[Fragment]:
        """Removes and returns the waiting episodes with a token older than a version; their groups miss them."""
        taken = []
        for prompt in [prompt for prompt, oldest in self._oldest.items() if oldest < version]:
            group = self._waiting.pop(prompt)
            del self._oldest[prompt]
            for fragment in group:
                if fragment.oldest_version < version:
                    taken.append(fragment)
                    self.leave_out(prompt)
                else:
                    self._wait(fragment)
        return taken

    @property
    def oldest_version(self) -> int | None:
        """Policy version of the oldest token that waits; None if none does."""
        return min(self._oldest.values(), default=None)

    def _wait(self, fragment: Fragment) -> None:
        prompt, version = fragment.prompt_index, fragment.oldest_version
        self._waiting[prompt].append(fragment)
        self._oldest[prompt] = min(version, self._oldest.get(prompt, version))

    def _is_complete(self, prompt_index: int) -> bool:
        return len(self._waiting.get(prompt_index, ())) + self._left_out[prompt_index] >= self.group_size

    def _pop(self, prompt_index: int) -> Group:
        del self._left_out[prompt_index]
        self._oldest.pop(prompt_index, None)
        return self._waiting.pop(prompt_index, [])

    def fragments(self) -> list[Fragment]:
        """Returns the waiting episodes."""
        return [fragment for group in self._waiting.values() for fragment in group]


@dataclass
class GroupSample:
    """Groups for one update, and the groups that were dropped."""

    groups: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    """Groups without variance that others replace."""
    num_complete: int = 0
    """Number of complete groups that were sampled."""
    num_without_variance: int = 0
    """Number of complete groups whose returns (or correctness) are all equal, whether they were dropped or not."""
    rounds: int = 0

    @property
    def fragments(self) -> list[Fragment]:
        """Fragments of the groups to train."""
        return [fragment for group in self.groups for fragment in group]


def has_variance(group: Group, *, by_correctness: bool = False) -> bool:
    """Whether the returns of a group's responses differ.

    With `by_correctness`: whether some are right and some are wrong, if the environment says which are right.
    """
    if by_correctness and all(fragment.correct is not None for fragment in group):
        return len({bool(fragment.correct) for fragment in group}) > 1
    returns = [float(fragment.context_rewards.sum() + fragment.rewards.sum()) for fragment in group]
    return max(returns) > min(returns)


def sample_groups(
    sample: Callable[[int], list[Fragment]],
    buffer: GroupBuffer,
    *,
    num_groups: int,
    group_size: int,
    replace: bool,
    max_rounds: int,
    by_correctness: bool = False,
) -> GroupSample:
    """Samples groups for one update.

    Args:
        sample: Generates a number of whole episodes, the next ones of open groups first; it may return fewer.
        buffer: Holds episodes of groups that are not complete, also from earlier calls.
        num_groups: Number of groups to sample.
        group_size: Number of responses to a prompt.
        replace: Whether to drop groups without variance and sample others instead.
        max_rounds: Most rounds of replacing; then the update takes the groups that there are. If no group has variance, it
            takes those of the last round, which change nothing where advantages are relative.
        by_correctness: Whether to look at the variance of correctness, as in DAPO, or of returns. A penalty for length makes
            returns differ even in groups that are all right or all wrong.

    Returns:
        At least one group.
    """
    result = GroupSample()
    while True:
        complete = buffer.add(sample((num_groups - len(result.groups)) * group_size))
        useful = [group for group in complete if has_variance(group, by_correctness=by_correctness)]
        result.rounds += 1
        result.num_complete += len(complete)
        result.num_without_variance += len(complete) - len(useful)
        last_round = not replace or result.rounds >= max_rounds
        kept = complete if not replace or (last_round and not result.groups and not useful) else useful
        result.groups += kept
        result.dropped += [group for group in complete if not any(group is other for other in kept)]
        if result.groups and (last_round or len(result.groups) >= num_groups):
            return result
