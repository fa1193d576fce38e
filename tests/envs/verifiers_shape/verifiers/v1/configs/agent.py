"""An agent's options."""

from pydantic import BaseModel


class WireAgentConfig(BaseModel):
    pass
