"""A tick from the command line: progress while it runs, its report as text or JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, shown_instant
from uniq_pipeline.config import Settings
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import TickReport, open_workshop, tick


def run_tick(
    settings: Settings,
    source: KafkaSource | None,
    *,
    what: str | None = None,
    close_windows: bool = False,
    first: Callable[[Workshop, Progress], None] = lambda shop, progress: None,
) -> TickReport:
    """Runs `first(shop, progress)` and a tick, with progress on stderr; raises what Kafka failed to deliver."""
    progress = Progress(what or ("drain" if source else "close"))
    with open_workshop(settings) as shop:
        first(shop, progress)
        report = tick(
            shop,
            source,
            lambda: KafkaSink(settings, settings.results_topic or ""),
            close_windows=close_windows,
            open_refined_sink=lambda: KafkaSink(settings, settings.refined_topic or ""),
            progress=lambda stage, done, total: progress(
                done, total, "frames" if stage in ("drain", "refined") else f"windows ({stage})"
            ),
        )
    progress.close()
    if report.drain_error:
        raise report.drain_error
    if report.file_error:
        raise report.file_error
    if report.publish_error:
        complain(f"uniq-pipeline: results are stored, but not published yet: {report.publish_error}")
    if report.refined_error:
        complain(
            f"uniq-pipeline: {report.refined_backlog.frames:,} accepted frames wait for the refined topic: "
            f"{report.refined_error}"
        )
    return report


def tick_as_json(report: TickReport) -> dict[str, Any]:
    """The report as a program reads it."""
    drained: dict[str, Any] = {}
    if report.drain is not None:
        # not asdict: of a Counter that makes one of pairs
        drained = {**vars(report.drain), "frames_per_s": round(report.drain.frames_per_s)}
        drained["next_offsets"] = {str(p): offset for p, offset in report.drain.next_offsets.items()}
        del drained["stopped"]  # raised
    changed: dict[str, int] = {}
    for refreshed in report.refreshed:
        changed[str(refreshed.grain)] = changed.get(str(refreshed.grain), 0) + len(refreshed.changed)
    return {
        "drain": drained,
        "windows_changed": changed,
        "sets_built": len(report.sets.users),
        "published": report.published,
        "publish_error": report.publish_error,
        "refined": report.refined,
        "refined_backlog": vars(report.refined_backlog),
        "refined_error": report.refined_error,
        "lost_race": report.lost_race,
        "seconds": {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
    }


def print_tick(report: TickReport) -> None:
    """The report as a person reads it."""
    drained = report.drain
    if drained is not None:
        click.echo(
            f"drained {drained.delivered:,} records of {drained.topic} in {drained.seconds:.2f} s "
            f"({drained.frames_per_s:,.0f}/s): {drained.frames:,} frames ({drained.late:,} late), "
            f"{drained.held:,} held, {drained.quarantined:,} quarantined; lag {drained.lag:,}; "
            + (f"{drained.unstable:,} wait for open transactions; " if drained.unstable else "")
            + f"event watermark {shown_instant(drained.watermark_s) or 'none yet'}"
        )
    changed = ", ".join(
        f"{len(refreshed.changed)} {refreshed.grain}" for refreshed in report.refreshed if refreshed.changed
    )
    total = sum(report.seconds.values())
    refined = f"; {report.refined:,} frames sent to the refined topic" if "refined" in report.seconds else ""
    click.echo(f"windows changed: {changed or 'none'}; {report.published} published{refined}; {total:.2f} s in all")
