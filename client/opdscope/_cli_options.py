"""What the commands share: where the scorer is."""

from collections.abc import Callable
from typing import Any

import click


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--local` and `--scorer`."""
    local = click.option("--local", is_flag=True, help="Start the servers on this machine, and end them afterwards.")
    scorer = click.option("--scorer", metavar="HOST:PORT", help="Use a scorer that runs.", callback=_check_target)
    return local(scorer(command))


def check_where(*, local: bool, scorer: str | None) -> None:
    """Exactly one of both must be given.

    Raises:
        click.UsageError: if not.
    """
    if local == (scorer is not None):
        raise click.UsageError("Give either --local or --scorer HOST:PORT.")


def _check_target(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise click.BadParameter(f"{value!r} is not HOST:PORT, for example 127.0.0.1:50051.")
    return value
