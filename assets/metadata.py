"""Metadata of a tick, for people. Only from its report: asking DuckDB or the files would cost more than the tick.

Dagster plots every number over time, so counts and seconds are entries of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster import MetadataValue

from uniq_pipeline.health import complete_until_s
from uniq_pipeline.intake import LATENESS_STEPS_S
from uniq_pipeline.ledger.results import Revision
from uniq_pipeline.results import RefreshReport
from uniq_pipeline.tick import TickReport
from uniq_pipeline.windows import Grain, Window, from_epoch

Metadata = dict[str, Any]

# Rows of the small tables.
NEWEST = 5

# Characters of the longest possible bar.
BAR = 24


@dataclass
class Touched:
    """One bucket that a tick wrote anew, and the newest state of each window that changed in it."""

    grain: Grain
    bucket: Window
    changed: dict[Window, Revision] = field(default_factory=dict)

    @property
    def newest_first(self) -> list[Revision]:
        return sorted(self.changed.values(), key=lambda revision: revision.window, reverse=True)


def touched_buckets(refreshed: Iterable[RefreshReport]) -> list[Touched]:
    """The buckets of all reports, finest grain first and oldest first; a tick may report a grain twice."""
    found: dict[tuple[Grain, Window], Touched] = {}
    for report in refreshed:
        for bucket in report.buckets:
            found.setdefault((report.grain, bucket), Touched(report.grain, bucket))
        buckets = sorted(report.buckets, key=lambda bucket: bucket.start_s)
        place = -1
        for revision in sorted(report.changed, key=lambda revision: revision.window.start_s):
            # A bucket holds the windows that start in it; both are walked in order.
            while place + 1 < len(buckets) and buckets[place + 1].start_s <= revision.window.start_s:
                place += 1
            if place >= 0:
                found[report.grain, buckets[place]].changed[revision.window] = revision
    order = list(Grain)
    return sorted(found.values(), key=lambda touched: (order.index(touched.grain), touched.bucket.start_s))


def tick_metadata(report: TickReport, front_s: int | None, now_s: float, *, tables: bool = False) -> Metadata:
    """Of the frames asset: what was read, how fast, how far behind the counts are; with tables of how late it came."""
    metadata: Metadata = {f"seconds_{stage}": round(seconds, 3) for stage, seconds in report.seconds.items()}
    metadata["published"] = report.published
    if report.watermark_s is not None:
        metadata["event_watermark"] = MetadataValue.timestamp(from_epoch(report.watermark_s))
    end_s = complete_until_s(front_s)
    if end_s is not None:
        metadata["complete_until"] = MetadataValue.timestamp(from_epoch(end_s))
        metadata["seconds_behind"] = round(now_s - end_s, 1)
    if report.lost_race:
        metadata["lost_race"] = report.lost_race
    if report.publish_error:
        metadata["publish_error"] = report.publish_error
    drained = report.drain
    if drained is None:
        return metadata
    for name in ("batches", "delivered", "frames", "late", "held", "quarantined", "admitted", "lag"):
        metadata[name] = getattr(drained, name)
    if drained.unstable:
        metadata["in_open_transactions"] = drained.unstable
    metadata["frames_per_s"] = round(drained.frames_per_s)
    metadata["late_percent"] = round(100 * drained.late / drained.frames, 3) if drained.frames else 0.0
    if drained.lateness and tables:
        metadata["lateness"] = MetadataValue.md(lateness_table(drained.lateness))
    if drained.reasons:
        metadata["classes_and_reasons"] = MetadataValue.json(dict(sorted(drained.reasons.items())))
    return metadata


def lateness_table(lateness: Mapping[str, int]) -> str:
    """Markdown: how late frames came, with bars. A bar is a share of those that were late at all."""
    total = sum(lateness.values())
    late = total - lateness.get("0", 0)
    rows = ["| behind the watermark | frames | share | |", "|--:|--:|--:|---|"]
    steps = [*map(str, LATENESS_STEPS_S), "inf"]
    for step, below in zip(steps, [None, *steps], strict=False):
        frames = lateness.get(step, 0)
        if not frames:
            continue
        shown = "on time" if step == "0" else f"over {below} s" if step == "inf" else f"to {step} s"
        bar = "" if step == "0" else "█" * max(1, round(BAR * frames / late))
        rows.append(f"| {shown} | {frames:,} | {100 * frames / total:.3f}% | {bar} |")
    return "\n".join(rows)


def bucket_metadata(touched: Touched, front_s: int | None, now_s: float) -> Metadata:
    """Of one partition of a counts asset: its newest window, and a table of the newest ones."""
    newest = touched.newest_first
    metadata: Metadata = {"windows_changed": len(newest)}
    end_s = complete_until_s(front_s)
    if touched.grain is Grain.MINUTE and end_s is not None:
        # The minute that has only begun would plot as a saw.
        newest = [revision for revision in newest if revision.window.end_s <= end_s] or newest
        metadata["seconds_behind"] = round(now_s - end_s, 1)
    if newest:
        first = newest[0]
        metadata |= {
            "window": str(first.window),
            "frames": first.frames,
            "estimate": round(first.estimate, 1),
            "estimate_lower": first.estimate_lower,
            "estimate_upper": first.estimate_upper,
            "revision": first.revision,
            "newest_windows": MetadataValue.md(windows_table(touched.newest_first[:NEWEST])),
        }
        if first.unique_users is not None:
            metadata["unique_users"] = first.unique_users
    return metadata


def run_metadata(reports: Sequence[RefreshReport], marked: int) -> Metadata:
    """Of a backfill: the same for every partition of its range."""
    return {
        "windows_marked": marked,
        "windows_computed": sum(report.computed for report in reports),
        "windows_changed": len({revision.window for report in reports for revision in report.changed}),
        "lost_races": sum(report.lost_races for report in reports),
    }


def _start(window: Window) -> str:
    """With spaces that do not wrap: the column is narrow."""
    moment = from_epoch(window.start_s)
    return f"{moment:%H:%M}" if window.grain is Grain.MINUTE else f"{moment:%d\u00a0%b\u00a0%Y\u00a0%H:%M}"


def windows_table(revisions: Iterable[Revision]) -> str:
    """Markdown; an estimate comes with its bounds."""
    rows = [
        "| window (UTC) | users | before | estimate | at least | at most | frames | status | revision | reason |",
        "|---|--:|--:|--:|--:|--:|--:|---|--:|---|",
    ]
    for revision in revisions:
        exact, before = (
            "" if users is None else f"{users:,}" for users in (revision.unique_users, revision.previous_unique_users)
        )
        rows.append(
            f"| {_start(revision.window)} | {exact} | {before} | {revision.estimate:,.0f} "
            f"| {revision.estimate_lower:,.0f} | {revision.estimate_upper:,.0f} "
            f"| {revision.frames:,} | {revision.status} | {revision.revision} | {revision.reason} |"
        )
    return "\n".join(rows)
