"""`opdscope score`."""

import contextlib
from pathlib import Path

import click
from rich.console import Console

from opdscope._cli_options import check_where, where
from opdscope._client import Client
from opdscope._errors import EvidenceError
from opdscope._evidence import EvidenceFile, alignment_line, split_objectives
from opdscope._local import local_services
from opdscope._results import replacing
from opdscope._types import EvidenceRefusal


def _split(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    try:
        return split_objectives(value) if value else ()
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


@click.command()
@click.argument("evidence", metavar="EVIDENCE.jsonl", type=click.Path(path_type=Path))
@where
@click.option(
    "--objectives",
    metavar="LIST",
    callback=_split,
    help="Objectives with commas between; default: every one that the evidence can give.",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, max_open=True),
    help="Alignments within ±delta count as neutral; default 0.05.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Coverage that intervals aim at; default 0.95.",
)
@click.option("--out", metavar="FILE.jsonl", required=True, type=click.Path(path_type=Path, dir_okay=False))
def score(
    evidence: Path,
    *,
    local: bool,
    scorer: str | None,
    objectives: tuple[str, ...],
    delta: float | None,
    confidence: float | None,
    out: Path,
) -> None:
    """Compute alignments from your own outcomes, one node a line; needs no model.

    Every line of the output is one node, teacher and objective; what does not exist is null. A line of evidence that is
    wrong is refused with its number and field; the others are scored all the same, and the exit code is 1.

    \b
    Examples:
      opdscope score evidence.jsonl --local --out alignments.jsonl
      opdscope score evidence.jsonl --scorer scorer:50051 --out alignments.jsonl \\
        --objectives "reverse_kl,gkd_jsd(beta=0.3)" --delta 0.1
    """  # noqa: D301 - \b is click's
    check_where(local=local, scorer=scorer)
    file = EvidenceFile(evidence)
    file.check_readable()
    console = Console(stderr=True, highlight=False)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(scorer) if scorer else local_services(say=console.print))
        stream = client.score_evidence(file, objectives=objectives, delta=delta, confidence=confidence)
        results = stack.enter_context(stream)
        output = stack.enter_context(replacing(out))
        for result in results:
            if isinstance(result, EvidenceRefusal):
                file.refuse(result)
            else:
                output.write(alignment_line(result) + "\n")
    _report(file, out)


def _report(file: EvidenceFile, out: Path) -> None:
    for bad in sorted(file.bad_lines, key=lambda bad: bad.line):
        click.echo(str(bad), err=True)
    if file.unused_fields:
        click.echo(f"not used, because no objective needs them: {', '.join(sorted(file.unused_fields))}", err=True)
    if file.bad_lines:
        refused = len({bad.line for bad in file.bad_lines})
        raise EvidenceError(f"{refused} lines of {file.path} were refused; the others are scored in {out}")
    if not file.node_count:
        raise EvidenceError(f"{file.path} has no nodes; one JSON object a line is expected")
    click.echo(f"{file.node_count:,} nodes are scored in {out}", err=True)
