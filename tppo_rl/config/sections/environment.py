"""Options of the environment, where prompts and rewards come from."""

from __future__ import annotations

from typing import Any

from tppo_rl.config.section import Section, option


class EnvironmentOptions(Section):
    """Where prompts and rewards come from."""

    env: str | None = option(
        None, "Gymnasium id of a text environment; `module:id` imports the module that registers it."
    )
    env_config: dict[str, Any] = option({}, "Keyword arguments of the environment; `split` is set by the pipeline.")
