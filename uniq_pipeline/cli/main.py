"""The root command, its options common to all, and how errors become exit codes."""

from __future__ import annotations

import os
import sys

import click

from uniq_pipeline import __version__
from uniq_pipeline.cli.aside import admit, replay, withdraw
from uniq_pipeline.cli.count import count
from uniq_pipeline.cli.demo import demo, generate
from uniq_pipeline.cli.ingest import ingest
from uniq_pipeline.cli.look import config, query, status
from uniq_pipeline.cli.rebuild import rebuild
from uniq_pipeline.cli.repair import redrain, repair
from uniq_pipeline.cli.upkeep import compact, expire, gc
from uniq_pipeline.cli.verify import verify
from uniq_pipeline.cli.work import close, drain, forget_refined, forget_topic, skip_lost
from uniq_pipeline.errors import UniqError

INTERRUPTED = 130  # what shells use for SIGINT


class _Root(click.Group):
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


for command in (
    *(count, drain, ingest, close, status, query, config),
    *(admit, withdraw, replay),
    *(generate, demo, compact, expire, gc, skip_lost, forget_topic, forget_refined, rebuild),
    *(verify, repair, redrain),
):
    root.add_command(command)


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
