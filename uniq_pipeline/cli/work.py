"""Commands that change something: drain, close, gc, and the two a person must ask for by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from uniq_pipeline.cli.output import Progress, complain, print_json, shown_instant
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.errors import LostRace, TopicMissing
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import upkeep
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.tick import TickReport, open_workshop, tick


@click.command()
@click.option("--close", "close_windows", is_flag=True, help="Also exact counts of closed hours and coarser.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def drain(close_windows: bool, as_json: bool) -> None:
    """One tick without Dagster: drain the topic, count, roll up, publish.

    Reads from the ledger's offsets to the end of the topic as it is now. Safe to run at any time, from cron,
    and beside the scheduled one: of two at once, one commits and the other says "lost race" (exit code 7).
    """
    settings = load_settings()
    report = _tick(settings, KafkaSource(settings), close_windows)
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
    if report.lost_race:
        raise LostRace(report.lost_race)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def close(as_json: bool) -> None:
    """Exact counts of closed hours, days, weeks, months and years, from their sets of uids."""
    settings = load_settings()
    report = _tick(settings, None, close_windows=True)
    if as_json:
        print_json([{"window": str(window), "unique_users": users} for window, users in report.sets.users.items()])
    else:
        for window, users in report.sets.users.items():
            click.echo(f"{window}: {users:,} users")
        click.echo(f"{len(report.sets.users)} windows closed")


def _tick(settings: Settings, source: KafkaSource | None, close_windows: bool) -> TickReport:
    progress = Progress("drain" if source else "close")
    with open_workshop(settings) as shop:
        report = tick(
            shop,
            source,
            lambda: KafkaSink(settings, settings.results_topic or ""),
            close_windows=close_windows,
            progress=lambda stage, done, total: progress(
                done, total, "frames" if stage == "drain" else f"windows ({stage})"
            ),
        )
    progress.close()
    if report.broker_error:
        raise report.broker_error
    if report.publish_error:
        complain(f"uniq-pipeline: results are stored, but not published yet: {report.publish_error}")
    return report


def _as_json(report: TickReport) -> dict[str, Any]:
    drained: dict[str, Any] = {}
    if report.drain is not None:
        drained = asdict(report.drain)
        drained["hours_s"] = sorted(report.drain.hours_s)
        drained["frames_per_s"] = round(report.drain.frames_per_s)
        drained["next_offsets"] = {str(p): offset for p, offset in report.drain.next_offsets.items()}
    changed: dict[str, int] = {}
    for refreshed in report.refreshed:
        changed[str(refreshed.grain)] = changed.get(str(refreshed.grain), 0) + len(refreshed.changed)
    return {
        "drain": drained,
        "windows_changed": changed,
        "sets_built": len(report.sets.users),
        "published": report.published,
        "publish_error": report.publish_error,
        "lost_race": report.lost_race,
        "seconds": {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
    }


def _print(report: TickReport) -> None:
    drained = report.drain
    if drained is not None:
        click.echo(
            f"drained {drained.delivered:,} records of {drained.topic} in {drained.seconds:.2f} s "
            f"({drained.frames_per_s:,.0f}/s): {drained.frames:,} frames ({drained.late:,} late), "
            f"{drained.held:,} held, {drained.quarantined:,} quarantined; lag {drained.lag:,}; "
            f"event watermark {shown_instant(drained.watermark_s) or 'none yet'}"
        )
    changed = ", ".join(
        f"{len(refreshed.changed)} {refreshed.grain}" for refreshed in report.refreshed if refreshed.changed
    )
    total = sum(report.seconds.values())
    click.echo(f"windows changed: {changed or 'none'}; {report.published} published; {total:.2f} s in all")


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


@click.command("skip-lost")
@click.argument("topic")
@click.option("--yes", is_flag=True, help="Do not ask.")
def skip_lost(topic: str, yes: bool) -> None:
    """Goes on without records that Kafka no longer has, and records which.

    For when a drain fails because the topic's retention passed the ledger's offsets.
    """
    settings = load_settings(topic=topic)
    state = KafkaSource(settings).describe()
    if not yes:
        click.confirm(f"Give up the records of {topic} that Kafka no longer has?", abort=True)
    with open_workshop(settings) as shop:
        skipped = upkeep.skip_lost(shop.ledger, state)
    for gap in skipped:
        click.echo(
            f"topic partition {gap.kafka_partition}: offsets [{gap.start_offset}, {gap.end_offset}) skipped, "
            f"{gap.size:,} records"
        )
    click.echo(f"{len(skipped)} gaps recorded")


@click.command("forget-topic")
@click.argument("topic")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget_topic(topic: str, yes: bool) -> None:
    """Drops the offsets of a topic, so that a recreated one is read from its beginning.

    What was counted stays. Refused while the topic is still the one that was drained.
    """
    settings = load_settings(topic=topic)
    try:
        current_topic_id = KafkaSource(settings).describe().topic_id
    except TopicMissing:
        current_topic_id = None
    if not yes:
        click.confirm(f"Forget the offsets of {topic}?", abort=True)
    with open_workshop(settings) as shop:
        partitions = upkeep.forget_topic(shop.ledger, topic, current_topic_id)
    click.echo(f"offsets of {partitions} topic partitions forgotten")
