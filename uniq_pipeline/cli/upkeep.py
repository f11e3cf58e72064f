"""Commands that keep the lake small: compact, expire, gc. Dagster runs all three by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from uniq_pipeline.catalog import refresh_catalog
from uniq_pipeline.cli.output import Progress, complain, print_json
from uniq_pipeline.compact import compact as merge_files
from uniq_pipeline.config import load_settings
from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.expire import expire as let_go
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.results import final_before_s
from uniq_pipeline.tick import open_workshop

_json_option = click.option("--json", "as_json", is_flag=True, help="The report as JSON.")


@click.command()
@_json_option
def compact(as_json: bool) -> None:
    """Merges the many small files of each closed hour into one, in order of event time.

    And those of each day of held frames and quarantine. Counts do not change. Can be interrupted at any time.
    """
    progress = Progress("compact")
    with open_workshop(load_settings()) as shop:
        report = merge_files(
            shop,
            closed_before_s=final_before_s(shop),
            progress=lambda done, total: progress(done, total, "folders"),
        )
        refresh_catalog(shop.settings, shop.ledger, shop.lake)
    progress.close()
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(
            f"{report.files:,} files merged into {report.merged_into:,}, {report.rows:,} rows, "
            f"{report.bytes_before / 1e6:,.1f} MB before and {report.bytes_after / 1e6:,.1f} after"
        )
    _raise_damaged(report.failed)


@click.command()
@_json_option
def expire(as_json: bool) -> None:
    """Lets go what was kept for as many days as UNIQ_RETENTION says.

    What was counted from it stays. A day that something waits to be computed from is left for the next time.
    """
    settings = load_settings()
    progress = Progress("expire")
    with open_workshop(settings) as shop:
        report = let_go(shop, progress=lambda what, done, total: progress(done, total, f"days of {what}"))
        refresh_catalog(shop.settings, shop.ledger, shop.lake)
    progress.close()
    if as_json:
        print_json(asdict(report))
    else:
        if not settings.retention:
            click.echo("UNIQ_RETENTION is not set: everything is kept")
        for what in settings.kept_days:
            waiting = f"; {report.waiting[what]:,} days wait for counts" if report.waiting[what] else ""
            click.echo(f"{what}: {report.files[what]:,} files, {report.records[what]:,} records{waiting}")
    _raise_damaged(report.failed)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def gc(as_json: bool) -> None:
    """Removes files that no longer count and are older than UNIQ_GC_GRACE_H hours."""
    settings = load_settings()
    with open_workshop(settings) as shop:
        report = collect_garbage(settings, shop.ledger, shop.lake)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(
            f"removed {report.retired} replaced files and {report.orphans} without a name, "
            f"{report.freed_bytes / 1e6:,.1f} MB"
        )


def _raise_damaged(failed: Sequence[str]) -> None:
    """The rest was done; what could not be read is named, and the exit code says so."""
    for error in failed:
        complain(error)
    if failed:
        raise FileDamaged(f"{len(failed):,} files cannot be read: `uniq-pipeline repair` puts back what it can")
