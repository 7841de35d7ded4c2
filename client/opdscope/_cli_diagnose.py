"""`opdscope diagnose`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from opdscope._cli_options import check_where, where
from opdscope._client import Client
from opdscope._errors import OpdscopeError, ServerError
from opdscope._local import local_services
from opdscope._progress import DiagnosisProgress
from opdscope._results import RunWriter
from opdscope._runfile import RunFile
from opdscope._table import WIDTH, summary
from opdscope._types import RunFinished, RunState


@click.command()
@click.argument("run_yaml", metavar="RUN.yaml", type=click.Path(path_type=Path))
@where
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go; default: `output` of the run file.",
)
@click.option("--print-config", is_flag=True, help="Print the run file with every default written out, and stop.")
@click.option("--run-id", metavar="ID", help="Id of the run on the scorer; default: made of the run's content.")
def diagnose(
    run_yaml: Path, *, local: bool, scorer: str | None, out: Path | None, print_config: bool, run_id: str | None
) -> None:
    """Diagnose a student: at which tokens would which distillation signal help or hurt?

    Shows a table and writes run.yaml, rollouts.jsonl, alignments.parquet, evidence.jsonl and summary.json. The same
    command goes on where an interrupted one has stopped, and shows a finished run again.

    \b
    Examples:
      opdscope diagnose run.yaml --local
      opdscope diagnose run.yaml --scorer scorer:50051 --out out/first
      opdscope diagnose run.yaml --print-config > resolved.yaml
    """  # noqa: D301 - \b is click's
    if not print_config:
        check_where(local=local, scorer=scorer)
    run_file = RunFile.load(run_yaml)
    if print_config:
        click.echo(run_file.resolved_yaml(inline_questions=False), nl=False)
        return
    out = out or Path(run_file.output)
    run_id = run_id or run_file.run_id
    try:
        writer, finished = _run(run_file, run_id=run_id, scorer=scorer, out=out)
    except KeyboardInterrupt:
        click.echo(_how_to_go_on(run_id, scorer), err=True)
        raise
    _show(writer, finished)


def _run(run_file: RunFile, *, run_id: str, scorer: str | None, out: Path) -> tuple[RunWriter, RunFinished]:
    with DiagnosisProgress(Console(stderr=True)) as progress, contextlib.ExitStack() as stack:
        client = stack.enter_context(_connected(run_file, run_id, scorer, out, progress))
        progress.activity(f"checking the run with {client.target}")
        student = client.get_student()
        events = stack.enter_context(client.diagnose(run_file, run_id=run_id, restart=scorer is None))
        writer = stack.enter_context(RunWriter(out, run_file, run_id=run_id, student=student))
        for event in events:
            progress.show(event)
            writer.add(event)
        finished = _ended_well(writer, run_id)
        writer.finish(finished)
        progress.activity("stopping")
        return writer, finished


@contextlib.contextmanager
def _connected(
    run_file: RunFile, run_id: str, scorer: str | None, out: Path, progress: DiagnosisProgress
) -> Iterator[Client]:
    """A scorer that is ready. Locally, every run has a state of its own: one that is left alone costs nothing."""
    if scorer is None:
        with local_services(run_file, state_dir=out / ".state" / run_id, say=progress.activity) as client:
            yield client
    else:
        with Client(scorer) as client:
            yield client


def _ended_well(writer: RunWriter, run_id: str) -> RunFinished:
    finished = writer.findings.finished
    if finished is None:
        raise ServerError(f"the events of run {run_id} ended before the run did")
    if finished.state is not RunState.DONE:
        reason = f": {finished.error}" if finished.error else ""
        raise OpdscopeError(f"run {run_id} was not finished but is {finished.state}{reason}")
    return finished


def _how_to_go_on(run_id: str, scorer: str | None) -> str:
    if scorer is None:
        return "What was found is kept: the same command goes on from there."
    return f"Run {run_id} goes on at {scorer}: the same command shows it again."


def _show(writer: RunWriter, finished: RunFinished) -> None:
    console = Console(width=WIDTH, highlight=False)
    for line in summary(writer.findings, finished):
        console.print(line, soft_wrap=True)
    console.print(f"\nFiles are in {writer.directory}", soft_wrap=True, markup=False)
