"""Verify: the audit of ledger against lake against results. Changes nothing, and may run beside a live pipeline.

stored   the ledger held against itself, and against the files that stand
places   each record stands once
windows  results computed again
report   what was found
"""

from __future__ import annotations

import time
from random import Random

from uniq_pipeline.ledger.audit import live_totals
from uniq_pipeline.results import Workshop
from uniq_pipeline.verify import places, stored, windows
from uniq_pipeline.verify.report import Check, Fault, FaultKind, Progress, Report

SAMPLE = 300

__all__ = ["SAMPLE", "Check", "Fault", "FaultKind", "Progress", "Report", "verify"]


def verify(
    shop: Workshop,
    *,
    quick: bool = False,
    sample: int | None = SAMPLE,
    seed: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Looks at everything, some results chosen at random.

    quick   only the ledger, and whether its files are there with their sizes: no file is opened
    sample  windows of each grain, and uid sets, that are computed again; None: all of them
    """
    started = time.monotonic()
    report = Report()
    ledger, lake = shop.ledger, shop.lake
    report.files, _, report.rows = live_totals(ledger)
    report.checks += [
        stored.check_ranges(ledger),
        stored.check_conservation(ledger, lake),
        stored.check_names(ledger),
        stored.check_counted(ledger),
    ]
    report.checks.append(stored.check_files(ledger, lake, quick=quick, progress=progress))
    if not quick:
        lost = {fault.path for fault in report.faults if fault.kind is FaultKind.DATA_FILE and fault.path}
        report.checks.append(places.check_places(shop, lost, progress))
        chosen = windows.Sample(sample, Random(seed))
        report.checks += windows.check_results(shop, chosen, progress)
        report.checks.append(windows.check_sets(shop, chosen, progress))
        report.orphans = stored.count_orphans(ledger, lake, lambda done: progress("names in the lake", done, 0))
    report.warnings += stored.old_marks_warning(ledger)
    report.seconds = time.monotonic() - started
    return report
