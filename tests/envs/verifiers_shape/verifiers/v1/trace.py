"""The record of an episode."""

from typing import Any

from pydantic import BaseModel, Field

from verifiers.v1.configs.agent import WireAgentConfig
from verifiers.v1.graph import MessageNode


class Reward(BaseModel):
    score: float
    weight: float = 1.0


class AgentInfo(BaseModel):
    config: WireAgentConfig


class TraceTask(BaseModel):
    type: str
    data: Any
    key: str | None = None
    hash: str | None = None


class Trace(BaseModel):
    task: TraceTask
    agent: AgentInfo
    nodes: list[MessageNode] = Field(default_factory=list)
    rewards: dict[str, Reward | None] = Field(default_factory=dict)
    is_completed: bool = False
    ok: bool = False

    @property
    def reward(self) -> float:
        return sum(one.score * one.weight for one in self.rewards.values() if one is not None)

    @property
    def last_reply(self) -> str:
        said = [node.message.content for node in self.nodes if node.sampled]
        return (said[-1] or "").strip() if said else ""
