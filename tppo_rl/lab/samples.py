"""Responses, states on their way, and continuations from these states; kept as Parquet.

    responses.parquet       a row for each response:     prompt, tokens, reward, verdict
    states.parquet          a row for each state:        position, weight, returns of response and continuations
    continuations.parquet   a row for each continuation: state, half, tokens after the state, return

A state is a response's prompt and its first `position` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tppo_rl.maths.value_quality import States

RESPONSES, STATES, CONTINUATIONS = "responses.parquet", "states.parquet", "continuations.parquet"
_TOKENS = pa.list_(pa.int32())
_RESPONSES = pa.schema(
    [
        pa.field("episode_id", pa.int64(), nullable=False),
        pa.field("problem", pa.int64(), nullable=False),
        pa.field("prompt", _TOKENS, nullable=False),
        pa.field("tokens", _TOKENS, nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("correct", pa.bool_()),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)
_CONTINUATIONS = pa.schema(
    [
        pa.field("state", pa.int64(), nullable=False),
        pa.field("half", pa.uint8(), nullable=False),
        pa.field("tokens", _TOKENS, nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class Response:
    """One answer of the policy."""

    episode_id: int
    problem: int
    """Number of the problem in its split."""
    prompt: np.ndarray
    """int32 [p]."""
    tokens: np.ndarray
    """int32 [n], n of 1 or more."""
    reward: float
    """At its end."""
    correct: bool | None
    """None where the environment does not say."""
    truncated: bool

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Place:
    """A state on the way of a response."""

    response: int
    """Index of the response."""
    position: int
    """Tokens of the response before it."""
    weight: float
    """Tokens of the response that it stands for."""


@dataclass(frozen=True, eq=False)
class Continuation:
    """One more way on from a state."""

    state: int
    """Index of the state."""
    half: int
    """0 or 1."""
    tokens: np.ndarray
    """int32 [n], tokens after the state, n of 1 or more."""
    reward: float
    """At its end, of the whole response."""


@dataclass(frozen=True, eq=False)
class Samples:
    """All that was sampled."""

    responses: list[Response]
    places: list[Place]
    continuations: list[Continuation]

    @property
    def num_tokens(self) -> int:
        """Sampled tokens."""
        return sum(map(len, self.responses)) + sum(len(one.tokens) for one in self.continuations)

    def known(self) -> np.ndarray:
        """Returns the indices of the states that have continuations in both halves, int64 [N]."""
        counts = self._halves(np.ones(len(self.continuations)))
        return np.flatnonzero((counts > 0).all(1))

    def states(self, gamma: float) -> States:
        """Returns the states with continuations in both halves, in the order of `known`.

        Args:
            gamma: Discount of each token.
        """
        places = [self.places[index] for index in self.known()]
        counts = self._halves(np.ones(len(self.continuations)))[self.known()]
        means = self._halves(self.returns(gamma))[self.known()] / counts
        responses = [self.responses[place.response] for place in places]
        pairs = list(zip(places, responses, strict=True))
        return States(
            returns=np.array([_discounted(one.reward, len(one) - place.position, gamma) for place, one in pairs]),
            first=means[:, 0],
            second=means[:, 1],
            weights=np.array([place.weight for place in places], np.float64),
            clusters=np.array([response.problem for response in responses], np.int64),
            responses=np.array([place.response for place in places], np.int64),
            positions=np.array([place.position for place in places], np.int64),
            lengths=np.array(list(map(len, responses)), np.int64),
        )

    def returns(self, gamma: float) -> np.ndarray:
        """Returns the discounted returns of the continuations, float64 [M]."""
        return np.array([_discounted(one.reward, len(one.tokens), gamma) for one in self.continuations])

    def save(self, folder: Path, gamma: float) -> None:
        """Writes the three files; sums in `states.parquet` are of discounted returns."""
        for file, rows, schema in (
            (RESPONSES, self.responses, _RESPONSES),
            (CONTINUATIONS, self.continuations, _CONTINUATIONS),
        ):
            columns = [{name: getattr(row, name) for name in schema.names} for row in rows]
            _write(folder / file, pa.Table.from_pylist(columns, schema))
        returns = self.returns(gamma)
        by_name = {"count": np.ones(len(returns)), "sum": returns, "squares": returns**2}
        halves = {name: self._halves(values) for name, values in by_name.items()}
        responses = [self.responses[place.response] for place in self.places]
        of_states: dict[str, Any] = {
            "episode_id": [response.episode_id for response in responses],
            "position": [place.position for place in self.places],
            "weight": [place.weight for place in self.places],
            "return": [
                _discounted(response.reward, len(response) - place.position, gamma)
                for place, response in zip(self.places, responses, strict=True)
            ],
        }
        for half, name in enumerate(("first", "second")):
            of_states |= {f"{name}_{what}": sums[:, half] for what, sums in halves.items()}
        _write(folder / STATES, pa.table(of_states))

    @classmethod
    def load(cls, folder: Path) -> Samples | None:
        """Reads what `save` has written; None if it is not all there."""
        if not all((folder / name).is_file() for name in (RESPONSES, STATES, CONTINUATIONS)):
            return None
        responses = [Response(**row) for row in _read(folder / RESPONSES)]
        by_id = {response.episode_id: index for index, response in enumerate(responses)}
        states = pq.read_table(folder / STATES, columns=["episode_id", "position", "weight"]).to_pylist()
        places = [Place(by_id[row["episode_id"]], row["position"], row["weight"]) for row in states]
        return cls(responses, places, [Continuation(**row) for row in _read(folder / CONTINUATIONS)])

    def _halves(self, values: np.ndarray) -> np.ndarray:
        """Sums of a value of each continuation, float64 [states, 2]."""
        flat = np.array([2 * one.state + one.half for one in self.continuations], np.int64)
        return np.bincount(flat, values, minlength=2 * len(self.places)).reshape(-1, 2)


def _discounted(reward: float, steps: int, gamma: float) -> float:
    return float(reward * gamma ** (steps - 1))


def _write(file: Path, table: pa.Table) -> None:
    """Writes a file whole or not at all."""
    part = file.with_suffix(".part")
    pq.write_table(table, part)
    part.rename(file)


def _read(file: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(file).to_pylist()
    return [
        {name: np.array(value, np.int32) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows
    ]
