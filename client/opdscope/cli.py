"""The command `opdscope`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import click

from opdscope._cli_diagnose import diagnose
from opdscope._cli_objectives import objectives
from opdscope._cli_score import score
from opdscope._errors import OpdscopeError


class _Commands(click.Group):
    """Turns what goes wrong into a few lines on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OpdscopeError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise  # click knows what to do
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'input or output'}: {error.strerror or error}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="opdscope", prog_name="opdscope", message="%(prog)s %(version)s")
def main() -> None:
    """Finds out, without training, where on-policy distillation helps and where it hurts.

    \b
    Examples:
      opdscope diagnose examples/demo/run.yaml --local
      opdscope score evidence.jsonl --local --out alignments.jsonl
    """  # noqa: D301 - \b is click's


main.add_command(diagnose)
main.add_command(objectives)
main.add_command(score)
