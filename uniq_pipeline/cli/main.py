"""The root command, its options common to all, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from uniq_pipeline import __version__
from uniq_pipeline.errors import UniqError

INTERRUPTED = 130  # what shells use for SIGINT


# In which module of this package each command is. It is imported when it is asked for: all of them take a second.
_MODULES = {
    "aside": "admit withdraw replay",
    "count": "count",
    "demo": "demo generate",
    "ingest": "ingest",
    "look": "status query config",
    "rebuild": "rebuild",
    "repair": "redrain repair",
    "upkeep": "compact expire gc",
    "verify": "verify",
    "work": "drain close skip-lost forget-topic",
}
_MODULE_OF = {command: module for module, commands in _MODULES.items() for command in commands.split()}


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULE_OF:
            return None
        module = import_module(f"uniq_pipeline.cli.{_MODULE_OF[cmd_name]}")
        return getattr(module, cmd_name.replace("-", "_"))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output went away (`| head`): not an error, though click would exit with 1, and
            # Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="uniq-pipeline")
def root() -> None:
    """How many different users: per minute, hour, day, week, month and year, straight from Kafka.

    Settings come from UNIQ_* environment variables or a TOML file; `uniq-pipeline config` shows them all.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong setting, argument or input, 3 Kafka does not answer or refuses,
    4 offsets lost or topic recreated, 5 lake, 6 ledger, 7 lost a race, 8 an audit found faults, 130 interrupted.
    """


def main() -> None:
    try:
        root(standalone_mode=False)
    except UniqError as error:
        click.echo(f"uniq-pipeline: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("uniq-pipeline: interrupted; what was committed stays, the next run goes on from there", err=True)
        sys.exit(INTERRUPTED)
