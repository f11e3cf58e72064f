"""Commands that change something: drain, close, and those that a person must ask for by name."""

from __future__ import annotations

import click

from uniq_pipeline.cli.output import print_json
from uniq_pipeline.cli.ticking import print_tick, run_tick, tick_as_json
from uniq_pipeline.config import load_settings
from uniq_pipeline.errors import InputError, LostRace, TopicMissing
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import refined, upkeep
from uniq_pipeline.ledger.logs import current_log
from uniq_pipeline.tick import open_workshop


@click.command()
@click.option("--close", "close_windows", is_flag=True, help="Also exact counts of closed hours and coarser.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def drain(close_windows: bool, as_json: bool) -> None:
    """One tick without Dagster: drain the topic, count, roll up, publish.

    Reads from the ledger's offsets to the end of the topic as it is now. Safe to run at any time, from cron,
    and beside the scheduled one: of two at once, one commits and the other says "lost race" (exit code 7).
    """
    settings = load_settings()
    report = run_tick(settings, KafkaSource(settings), close_windows=close_windows)
    if as_json:
        print_json(tick_as_json(report))
    else:
        print_tick(report)
    if report.lost_race:
        raise LostRace(report.lost_race)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def close(as_json: bool) -> None:
    """Exact counts of closed hours, days, weeks, months and years, from their sets of uids."""
    settings = load_settings()
    report = run_tick(settings, None, close_windows=True)
    if as_json:
        print_json([{"window": str(window), "unique_users": users} for window, users in report.sets.users.items()])
    else:
        for window, users in report.sets.users.items():
            click.echo(f"{window}: {users:,} users")
        click.echo(f"{len(report.sets.users)} windows closed")


@click.command("skip-lost")
@click.argument("topic")
@click.option("--partition", "kafka_partition", type=click.IntRange(0), help="Of this topic partition only; with --to.")
@click.option(
    "--to", "to_offset", type=click.IntRange(0), help="Up to this offset, though Kafka still has the records."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def skip_lost(topic: str, kafka_partition: int | None, to_offset: int | None, yes: bool) -> None:
    """Goes on without records that Kafka no longer has, and records which.

    For when a drain fails because the topic's retention passed the ledger's offsets. With --partition and --to, for
    when it fails because records are damaged on the broker: those before that offset are given up.
    """
    if (kafka_partition is None) != (to_offset is None):
        raise InputError("skip-lost: --partition and --to go together")
    settings = load_settings(topic=topic)
    state = KafkaSource(settings).describe()
    which = "that Kafka no longer has" if to_offset is None else f"of topic partition {kafka_partition} to {to_offset}"
    if not yes:
        click.confirm(f"Give up the records of {topic} {which}?", abort=True)
    with open_workshop(settings) as shop:
        log = current_log(shop.ledger, topic)
        if kafka_partition is not None and to_offset is not None:
            skipped = [upkeep.skip_to(shop.ledger, log, state, kafka_partition, to_offset)]
        else:
            skipped = upkeep.skip_lost(shop.ledger, log, state)
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


@click.command("forget-refined")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget_refined(yes: bool) -> None:
    """Gives up the frames that wait to be sent to the refined topic.

    For when nobody wants them any more: while they wait, their files are neither compacted nor expired.
    """
    with open_workshop(load_settings()) as shop:
        waiting = refined.whole_backlog(shop.ledger)
        if not yes:
            click.confirm(f"Never send the {waiting.frames:,} frames that wait?", abort=True)
        given_up = refined.forget_unsent(shop.ledger)
    click.echo(f"{given_up.frames:,} frames will not be sent to the refined topic")
