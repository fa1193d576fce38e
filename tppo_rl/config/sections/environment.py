"""Options of the environment, the source of prompts and rewards."""

from __future__ import annotations

from typing import Any

from tppo_rl.config.section import Section, option


class EnvironmentOptions(Section):
    """The source of prompts and rewards."""

    env: str | None = option(
        None, "Gymnasium id of a text environment; `module:id` or `file.py:id` first imports what registers it."
    )
    env_config: dict[str, Any] = option({}, "Keyword arguments of the environment; `split` is set by the pipeline.")
