"""Nodes of a trace."""

from pydantic import BaseModel

from verifiers.v1.types import Message


class MessageNode(BaseModel):
    parent: int | None = None
    message: Message
    sampled: bool = False
