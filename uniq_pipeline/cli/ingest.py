"""`uniq-pipeline ingest`: years of frames from files, into the same windows as the live ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, print_json
from uniq_pipeline.config import load_settings
from uniq_pipeline.errors import InputError
from uniq_pipeline.files import STDIN
from uniq_pipeline.ingest import file_logs, load_file
from uniq_pipeline.loading import LoadReport
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop, tick

# Windows are counted after this many records, so that answers come while a long file is loading.
COUNT_EVERY = 5_000_000


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE ... | -")
@click.option("--as", "known_as", help="Name of the log, in place of the file's path; stdin needs one.")
@click.option("--close/--no-close", "close_windows", default=True, help="Also exact counts of the hour and coarser.")
@click.option("--json", "as_json", is_flag=True, help="One report a file, as JSON lines.")
def ingest(files: Sequence[str], known_as: str | None, close_windows: bool, as_json: bool) -> None:
    """Loads JSONL files of frames, plain, gzip or zstd, into the windows that live frames are in.

    Each file is a log of its own, roughly in order of time. What was loaded is remembered: after an interruption
    the same command goes on where it was, a file that has grown is continued, and one that was loaded before is not
    loaded twice. A last line that breaks off is left for the next run. Results go to the results topic with the next
    tick.

    \b
      uniq-pipeline ingest history/2024-*.jsonl.zst history/2025-*.jsonl.zst
      zcat old.jsonl.gz | uniq-pipeline ingest - --as old
    """
    if known_as and len(files) > 1:
        raise InputError("--as names one log: give one file with it")
    with open_workshop(load_settings()) as shop:
        # All of them first: a wrong name must not show up after hours of loading.
        logs = file_logs(shop.ledger, files, known_as)
        # Two of them, because a rate in bytes that starts over after each count would be a guess.
        reading, counting = Progress("ingest"), Progress("ingest")
        total, taken, uncounted = sum(log.size_bytes or 0 for log in logs), 0, 0

        def tell(read_bytes: int) -> None:
            nonlocal taken
            taken += read_bytes
            reading(taken, total, "bytes")

        for log in logs:
            report = LoadReport(log.log.topic)
            before = 0
            for report in load_file(shop, log, pause_after=COUNT_EVERY, read_bytes=tell):
                uncounted, before = uncounted + report.delivered - before, report.delivered
                # Not after every file: a count costs a second, and there may be one for each hour of years.
                if uncounted >= COUNT_EVERY:
                    uncounted = 0
                    _count(shop, counting, close_windows=False)
            reading.close()
            counting.close()
            if as_json:
                print_json(_as_json(log.name, report))
            else:
                click.echo(_as_text(log.name, report))
        _count(shop, counting, close_windows=close_windows)
        counting.close()
        complain("all windows are counted")


def _count(shop: Workshop, progress: Progress, *, close_windows: bool) -> None:
    report = tick(
        shop,
        None,
        None,
        close_windows=close_windows,
        progress=lambda stage, done, total: progress(done, total, f"windows ({stage})"),
    )
    if report.file_error:
        raise report.file_error


def _as_text(name: str, report: LoadReport) -> str:
    proved = f", {report.admitted:,} held before are proved and counted" if report.admitted else ""
    return (
        f"{'stdin' if name == STDIN else name}: {report.delivered:,} lines in {report.seconds:,.1f} s: "
        f"{report.frames:,} frames counted ({report.late:,} late), {report.held:,} held, "
        f"{report.quarantined:,} quarantined{proved}"
    )


def _as_json(name: str, report: LoadReport) -> dict[str, Any]:
    names = ("topic", "delivered", "frames", "late", "held", "quarantined", "admitted", "seconds")
    return {"file": name, **{name: getattr(report, name) for name in names}, "reasons": dict(report.reasons)}
