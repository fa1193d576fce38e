"""Options that several commands of the command line have."""

from __future__ import annotations

import click

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override an option; repeatable."
)
