"""The proof that an engine holds the trainer's weights: both give the same log-probs to a fixed text.

A text, for log-probs of random tokens are the ones that half precision gets most wrong. (A checksum would prove less: an engine
may keep weights in the layout of its kernels.) What "the same" means, in nats on average over the text's tokens:

| engine | difference after a push | its own log-probs since the last proof |
|---|---|---|
| float32 | at most `LARGEST_DIFF` | moved at least half as far as the trainer's, once these have moved by `_LEAST_MOVE` |
| half precision, quantized | at most `_TIMES_CONTROL` times that of before the first push, when both held what they had read from the same files | the same |

The first column of the second row is the engine's rounding, whatever its format; the second tells new weights from old ones also
where an update moves log-probs by less than that, for an engine that took no weights gives the very same numbers again.

A first update may move log-probs by less than an engine may differ, so that one layer with old weights is not seen. The proof is
decided only when the trainer's log-probs have moved by `_FAR` times as much as an engine may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tppo_rl.core.errors import RunError
from tppo_rl.rollout.chat import Chat

LONGEST_PROBE = 96
SHORTEST_PROBE = 16
"""Tokens of a probe; the mean over fewer says little."""
LARGEST_DIFF = 1e-4
"""Largest difference in float32, and what is allowed beside the control."""
LARGEST_CONTROL = 0.5
"""Largest difference before the first push. Log-probs that another model gives are further away."""
_LEAST_MOVE = 1e-3
_FAR = 4
_TIMES_CONTROL = 3
"""Rounding differs from weights to weights: on SmolLM2-135M in bfloat16 it gave 0.05 to 0.07 nats after updates of any size."""
_PROBE = (
    "A train leaves the station at 9:40 and covers 126 km at 84 km/h. How many minutes does it need, and when does it arrive? "
    "Think step by step: 126 / 84 = 1.5 hours, which is 90 minutes, so it arrives at 11:10."
)


def probe_tokens(chat: Chat, longest: int) -> list[int]:
    """Returns a text in the form of a prompt, or random tokens if the vocabulary has no words for it.

    Args:
        chat: Formats the text.
        longest: Most tokens that an engine can score.
    """
    text = chat.prompt(_PROBE)[: min(LONGEST_PROBE, longest)]
    if len(text) >= SHORTEST_PROBE and len(set(text)) > SHORTEST_PROBE / 2:
        return text
    return [int(token) for token in np.random.default_rng(0).integers(0, chat.vocabulary_size, 2 * SHORTEST_PROBE)]


class WeightProof:
    """Compares log-probs of engines with the trainer's; log-probs are float32 [n], nats.

    Args:
        exact: Whether engine and trainer both compute in float32, so that no control is needed.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._control: float | None = None
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self.is_decided = False
        """Whether new weights could be told from old ones, in every layer that matters."""

    @property
    def needs_control(self) -> bool:
        """Whether `take_control` has to be called before the first push."""
        return not self._exact and self._control is None

    def take_control(self, trainer: np.ndarray, engines: Sequence[np.ndarray]) -> None:
        """Takes the difference that rounding alone makes.

        Args:
            trainer: The trainer's log-probs.
            engines: Those of each engine, which has read the same weights.

        Raises:
            RunError: the difference is too large for rounding.
        """
        self._control = max(_distance(engine, trainer) for engine in engines)
        if not self._control <= LARGEST_CONTROL:
            raise RunError(
                f"engine and trainer differ by {self._control:.2e} nats on average over {len(trainer)} tokens of a probe, before "
                f"any update (largest allowed: {LARGEST_CONTROL:g}); they do not compute the same model: its family, the engine's "
                "arguments or its number format are not supported"
            )
        self._before = (trainer, np.mean(engines, axis=0))

    def check(self, trainer: np.ndarray, engines: Sequence[np.ndarray]) -> float:
        """Returns the largest mean difference over the engines, nats.

        Args:
            trainer: The trainer's log-probs.
            engines: Those of each engine after a push.

        Raises:
            RunError: an engine does not hold the trainer's weights.
        """
        difference = max(_distance(engine, trainer) for engine in engines)
        largest = LARGEST_DIFF + _TIMES_CONTROL * (self._control or 0.0)
        if not difference <= largest:
            raise RunError(
                f"weight sync failed: engine and trainer differ by {difference:.2e} nats on average over {len(trainer)} tokens of "
                f"a probe (largest allowed: {largest:.0e}); the engine samples from other weights than are trained"
            )
        self._check_movement(trainer, engines, far=max(_LEAST_MOVE, _FAR * largest))
        return difference

    def _check_movement(self, trainer: np.ndarray, engines: Sequence[np.ndarray], far: float) -> None:
        if self._before is not None:
            trainer_before, engine_before = self._before
            moved = _distance(trainer, trainer_before)
            engine_moved = min(_distance(engine, engine_before) for engine in engines)
            if moved >= _LEAST_MOVE and engine_moved < moved / 2:
                raise RunError(
                    f"weight sync failed: on a probe the trainer's log-probs have moved by {moved:.2e} nats on average, and an "
                    f"engine's by {engine_moved:.2e}; the engine holds old weights"
                )
            if moved < far:
                return
            self.is_decided = True
        self._before = (trainer, np.mean(engines, axis=0))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())
