"""The audit: is everything in the lake, and are the counts what the frames give?"""

from __future__ import annotations

from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, print_json, print_table
from uniq_pipeline.config import load_settings
from uniq_pipeline.errors import FaultsFound
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.verify import SAMPLE, Report
from uniq_pipeline.verify import verify as audit

SHOWN = 100  # faults that are printed; --json has them all


@click.command()
@click.option("--quick", is_flag=True, help="Only the ledger, and whether files are there with their sizes.")
@click.option(
    "--sample", type=click.IntRange(0), default=SAMPLE, show_default=True, help="Windows of each grain computed again."
)
@click.option("--all", "every", is_flag=True, help="Computes every window again.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def verify(quick: bool, sample: int, every: bool, as_json: bool) -> None:
    """Audits ledger, lake and results; changes nothing, and may run beside a live pipeline.

    Exit code 0: nothing is wrong; 8: faults were found, each on a line that says what mends it.
    """
    progress = Progress("verify")
    with open_workshop(load_settings()) as shop:
        report = audit(
            shop,
            quick=quick,
            sample=None if every else sample,
            progress=lambda stage, done, total: progress(done, total, stage),
        )
    progress.close()
    if as_json:
        print_json(report_as_json(report))
    else:
        print_report(report)
    if report.faults:
        raise FaultsFound(
            f"{len(report.faults):,} faults found; `uniq-pipeline repair --dry-run` says what can be mended"
        )


def print_report(report: Report) -> None:
    rows = [
        [
            "passed" if check.passed else "FAILED",
            check.name,
            f"{check.looked_at:,} {check.unit}" + (f", {check.skipped:,} skipped" if check.skipped else ""),
            check.note,
        ]
        for check in report.checks
    ]
    print_table(["", "check", "looked at", ""], rows)
    for fault in report.faults[:SHOWN]:
        click.echo(f"fault: {fault.text}")
    if len(report.faults) > SHOWN:
        click.echo(f"... and {len(report.faults) - SHOWN:,} more: --json has them all")
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    orphans = f", {report.orphans:,} files in the lake have no name, gc removes them" if report.orphans else ""
    complain(f"{report.files:,} files with {report.rows:,} records in {report.seconds:,.1f} s{orphans}")


def report_as_json(report: Report) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "checks": [
            {
                "name": check.name,
                "passed": check.passed,
                "looked_at": check.looked_at,
                "unit": check.unit,
                "skipped": check.skipped,
                "note": check.note,
                "faults": len(check.faults),
            }
            for check in report.checks
        ],
        "faults": [
            {
                "kind": str(fault.kind),
                "text": fault.text,
                "file": fault.path,
                "window": None if fault.window is None else str(fault.window),
            }
            for fault in report.faults
        ],
        "warnings": report.warnings,
        "orphans": report.orphans,
        "files": report.files,
        "records": report.rows,
        "seconds": round(report.seconds, 3),
    }
