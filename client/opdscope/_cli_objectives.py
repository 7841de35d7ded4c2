"""`opdscope objectives`."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence

import click
from rich.console import Console
from rich.text import Text

from opdscope._cli_options import check_where, where
from opdscope._client import Client
from opdscope._errors import OpdscopeError
from opdscope._local import local_services
from opdscope._types import ObjectiveInfo

_LABEL = 9


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@where
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for machines.")
def objectives(names: tuple[str, ...], *, local: bool, scorer: str | None, as_json: bool) -> None:
    """List the distillation objectives: name and parameters, formula, needs, source.

    By default those of a scorer that is started on this machine, plug-ins included. NAMEs choose some of them.

    \b
    Examples:
      opdscope objectives
      opdscope objectives gkd_jsd minillm
      opdscope objectives --scorer scorer:50051 --json
    """  # noqa: D301 - \b is click's
    check_where(local=local or scorer is None, scorer=scorer)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(scorer) if scorer else local_services())
        found = _chosen(client.list_capabilities().objectives, names)
    if as_json:
        for objective in found:
            click.echo(json.dumps(dataclasses.asdict(objective), ensure_ascii=False))
        return
    console = Console(highlight=False)
    for line in _lines(found):
        console.print(line)


def _chosen(found: Sequence[ObjectiveInfo], names: Sequence[str]) -> list[ObjectiveInfo]:
    by_name = {objective.name: objective for objective in found}
    for name in names:
        if name not in by_name:
            raise OpdscopeError(f"unknown objective {name!r}; known: {', '.join(sorted(by_name))}")
    return [by_name[name] for name in names or by_name]


def _lines(found: Sequence[ObjectiveInfo]) -> Iterator[Text]:
    family = None
    for objective in found:
        if objective.family != family:
            family = objective.family
            yield Text(f"\n{family}", style="bold underline")
        yield Text()
        yield Text(_signature(objective), style="bold")
        yield _field("formula", objective.formula)
        yield _field("loss", objective.loss)
        yield _field("needs", ", ".join(objective.needs) or "P and q only")
        yield _field("source", objective.source)
        if objective.note:
            yield _field("note", objective.note)
        for parameter in objective.parameters:
            yield _field(parameter.name, f"{parameter.meaning}; {parameter.accepted}")


def _signature(objective: ObjectiveInfo) -> str:
    written = ", ".join(f"{p.name}={p.default or 'off'}" for p in objective.parameters)
    return f"{objective.name}({written})" if written else objective.name


def _field(label: str, text: str) -> Text:
    return Text.assemble("  ", (f"{label:<{_LABEL}}", "dim"), text)
