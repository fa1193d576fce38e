"""Options that several commands of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tppo_rl.core.storage import is_uri, local_path_of

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override an option; repeatable."
)


class FolderOrURI(click.ParamType):
    """A folder as a `Path`, also where it is a `file://` URI; other URIs as texts."""

    name = "folder or URI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if isinstance(value, str) and is_uri(value):
            local = local_path_of(value)
            return value if local is None else local
        return Path(value)


FOLDER_OR_URI = FolderOrURI()
