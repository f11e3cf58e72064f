"""`uniq-pipeline count`: JSONL files or stdin, no broker, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, print_json, print_table
from uniq_pipeline.config import TsUnit, load_settings
from uniq_pipeline.files import STDIN, size_of
from uniq_pipeline.once import EntryCount, OnceReport, WindowCount, count_files
from uniq_pipeline.windows import GRAINS, Grain, iso


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE ... | -]")
@click.option(
    "--grain",
    "grains",
    type=click.Choice([str(grain) for grain in GRAINS]),
    multiple=True,
    default=["minute"],
    show_default=True,
    help="Windows to count; may be given several times.",
)
@click.option("--timezone", help="IANA time zone of day, week, month and year windows.  [default: UTC]")
@click.option("--lg-k", type=int, help="HLL precision, 4 to 21.  [default: 12]")
@click.option("--ts-unit", type=click.Choice([str(unit) for unit in TsUnit]), help="Unit of ts.  [default: s]")
@click.option(
    "--format",
    "output",
    type=click.Choice(["json", "table"]),
    default="json",
    show_default=True,
    help="One JSON object a window and line, or a table.",
)
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
def count(
    files: tuple[str, ...],
    grains: tuple[str, ...],
    timezone: str | None,
    lg_k: int | None,
    ts_unit: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Counts the different users in JSONL files or on stdin.

    Files may be gzip or zstd. Windows go to stdout, a summary to stderr. Each file is a log of its own, roughly
    in order of time: frames more than two minutes behind the others are held. For files in no order, set
    UNIQ_VERY_LATE=correct. With UNIQ_DIMENSIONS=country each window has the counts of each country, too, in JSON.

    \b
      zcat stream.jsonl.gz | uniq-pipeline count
      uniq-pipeline count --grain hour --grain day --timezone Europe/Zurich logs/*.jsonl.zst
    """
    settings = load_settings(timezone=timezone, lg_k=lg_k, ts_unit=ts_unit)
    names = files or (STDIN,)
    report = OnceReport()
    progress = Progress("count")
    total, taken = sum(size_of(name) or 0 for name in names), 0

    def tell(read_bytes: int) -> None:
        nonlocal taken
        taken += read_bytes
        progress(taken, total, "bytes")

    windows = count_files(settings, names, [Grain(g) for g in grains], report=report, progress=tell)
    _print(windows, progress, as_table=output == "table" and not as_json)
    complain(_summary(report))


def _print(windows: Iterator[WindowCount], progress: Progress, as_table: bool) -> None:
    if as_table:
        rows = list(map(_as_row, windows))
        progress.close()
        print_table(list(_as_row(None)), [row.values() for row in rows])
        return
    for window in windows:
        progress.close()
        print_json(_with_entries(window))


def _as_row(window: WindowCount | None) -> dict[str, Any]:
    if window is None:
        window = WindowCount(Grain.MINUTE, 0, 0, 0, 0, 0, 0, 0)
    return {
        "grain": str(window.grain),
        "window_start": iso(window.window_start_s),
        "window_end": iso(window.window_end_s),
        **_counts(window),
    }


def _counts(counted: WindowCount | EntryCount) -> dict[str, Any]:
    return {
        "frames": counted.frames,
        "unique_users": counted.unique_users,
        "estimate": round(counted.estimate, 2),
        "estimate_lower": counted.estimate_lower,
        "estimate_upper": counted.estimate_upper,
    }


def _with_entries(window: WindowCount) -> dict[str, Any]:
    """Only in JSON: an entry has as many columns as a window."""
    row = _as_row(window)
    if window.by_dimension:
        row["by_dimension"] = [
            {"dimension": entry.dimension, "value": entry.value, **_counts(entry)} for entry in window.by_dimension
        ]
    return row


def _summary(report: OnceReport) -> str:
    rate = report.delivered / report.seconds if report.seconds else 0
    held = {name: report.reasons[name] for name in ("very_late", "future") if report.reasons[name]}
    classes = {"on_time", "late", "very_late", "future"}
    rejected = {name: count for name, count in sorted(report.reasons.items()) if name not in classes}
    hint = "; UNIQ_VERY_LATE=correct counts very late frames, too" if held.get("very_late") else ""
    return (
        f"{report.delivered:,} lines: {report.frames:,} frames counted, {report.held:,} held{_listed(held)}, "
        f"{report.rejected:,} rejected{_listed(rejected)}; {report.seconds:.1f} s, {rate:,.0f} frames/s"
        f"{hint}"
    )


def _listed(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{name} {count:,}' for name, count in counts.items())})" if counts else ""
