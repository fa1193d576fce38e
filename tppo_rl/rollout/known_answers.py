"""The known answer of a problem, for critics that see it (`tppo_rl.learner.known_answers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tppo_rl.config.sections.critic import ANSWER_TOKENS
from tppo_rl.core.reward_signature import ground_truth
from tppo_rl.rollout.chat import Chat


def answer_tokens(chat: Chat, info: Mapping[str, Any]) -> list[int]:
    """Returns the token ids of the known answer in the info of an environment's `reset`; none where it has none."""
    answer = ground_truth(info)
    return [] if answer is None else chat.plain(str(answer))[:ANSWER_TOKENS]
