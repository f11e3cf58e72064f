"""Repair what an audit finds, and read a range of offsets once more: both say first what they will do."""

from __future__ import annotations

from dataclasses import asdict

import click

from uniq_pipeline.cli.output import Progress, complain, print_json
from uniq_pipeline.cli.rebuild import rebuild
from uniq_pipeline.cli.ticking import run_tick
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.errors import FaultsFound
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.logs import current_log
from uniq_pipeline.ledger.rebuilt import is_lost
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.redrain import RedrainReport, plan_redrain
from uniq_pipeline.redrain import redrain as read_again
from uniq_pipeline.repair import RepairReport, plan_repair
from uniq_pipeline.repair import repair as mend
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.verify import SAMPLE
from uniq_pipeline.verify import verify as audit


@click.command()
@click.option("--quick", is_flag=True, help="Only mend what a quick audit finds: files that are missing or cut off.")
@click.option("--sample", type=click.IntRange(0), default=SAMPLE, show_default=True, help="As for verify.")
@click.option("--all", "every", is_flag=True, help="As for verify.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="The plan and what was done as JSON; needs --yes or --dry-run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def repair(
    context: click.Context, quick: bool, sample: int, every: bool, dry_run: bool, as_json: bool, yes: bool
) -> None:
    """Mends what `verify` finds: reads lost records again, computes damaged results again.

    Says what it will do and asks. What Kafka no longer has is named and left as it is. A lost ledger is made anew
    first (see rebuild). Interrupted half way, the same command goes on.
    """
    _refuse_to_ask(as_json, yes or dry_run)
    settings = load_settings()
    if _ledger_is_lost(settings):
        complain("the ledger is lost: it is made anew from the lake; then run `uniq-pipeline repair` again")
        context.invoke(rebuild, accept_gaps=False, no_publish=False, dry_run=dry_run, as_json=as_json, yes=yes)
        return

    def source(topic: str) -> KafkaSource:
        return KafkaSource(settings.model_copy(update={"topic": topic}))

    progress = Progress("repair")
    with open_workshop(settings) as shop:
        found = audit(
            shop,
            quick=quick,
            sample=None if every else sample,
            progress=lambda stage, done, total: progress(done, total, stage),
        )
        plan = plan_repair(shop, found, source)
    progress.close()
    lines = list(plan.lines())
    if not as_json:
        for line in lines:
            click.echo(line)
    done: RepairReport | None = None
    if not plan.is_empty and not dry_run:
        if not yes:
            click.confirm("Do this?", abort=True)

        def first(shop: Workshop, progress: Progress) -> None:
            nonlocal done
            done = mend(shop, plan, source, lambda done, total: progress(done, total, "files"))

        run_tick(settings, None, what="repair", close_windows=bool(plan.sets), first=first)
    left = plan.left if done is None else done.left
    if as_json:
        print_json({"plan": lines, "done": None if done is None else asdict(done), "left": left, "dry_run": dry_run})
    elif done is not None:
        click.echo(
            f"{done.files:,} files with {done.rows:,} rows put back, {done.results:,} result files and "
            f"{done.sets:,} uid sets made again, {done.windows:,} windows marked"
        )
    if left:
        raise FaultsFound(f"{len(left):,} faults are left: {left[0]}")


def _ledger_is_lost(settings: Settings) -> bool:
    """Nothing is in the ledger, though files of batches are in the lake."""
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    try:
        return is_lost(ledger) and any(lake.listing(folder) for folder in ("frames", "held", "quarantine"))
    finally:
        ledger.close()


@click.command()
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0))
@click.argument("start", type=click.IntRange(0))
@click.argument("end", type=click.IntRange(1))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON; needs --yes or --dry-run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def redrain(topic: str, partition: int, start: int, end: int, dry_run: bool, as_json: bool, yes: bool) -> None:
    """Reads offsets [START, END) of a topic partition once more, and replaces what comes out differently.

    For after a mended setting (UNIQ_TS_UNIT, UNIQ_DIMENSIONS, UNIQ_VERY_LATE), and for files that are missing or
    damaged. What was counted stays counted; where the next drain goes on does not change.

    \b
      uniq-pipeline redrain access-log 3 120000 180000
    """
    _refuse_to_ask(as_json, yes or dry_run)
    settings = load_settings(topic=topic)
    with open_workshop(settings) as shop:
        source = KafkaSource(settings.model_copy(update={"topic": current_log(shop.ledger, topic)}))
        plan = plan_redrain(shop, source, [OffsetRange(partition, start, end)])
    if not as_json:
        for line in plan.lines():
            click.echo(line)
    done: RedrainReport | None = None
    if not dry_run:
        if not yes:
            click.confirm("Do this?", abort=True)

        def first(shop: Workshop, progress: Progress) -> None:
            nonlocal done
            done = read_again(shop, source, plan, lambda done, total: progress(done, total, "records"))

        run_tick(settings, None, what="redrain", first=first)
    if as_json:
        print_json({"plan": list(plan.lines()), **({} if done is None else asdict(done)), "dry_run": dry_run})
    elif done is not None:
        click.echo(_as_text(done))


def _as_text(done: RedrainReport) -> str:
    kept = f", {done.kept:,} left as they were" if done.kept else ""
    return (
        f"{done.read:,} records read again: {done.replaced:,} replaced, {done.restored:,} put back{kept}; "
        f"{done.files:,} files replaced"
    )


def _refuse_to_ask(as_json: bool, is_told: bool) -> None:
    if as_json and not is_told:
        raise click.UsageError("--json does not ask: give --yes or --dry-run with it")
