"""Commands that only look: status, query, config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from uniq_pipeline.cli.output import print_json, print_table, shown, shown_instant
from uniq_pipeline.config import describe_settings, load_settings
from uniq_pipeline.errors import BrokerError, InputError
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger.logs import current_log, note_extents
from uniq_pipeline.ledger.overview import Overview, newest_topic, overview
from uniq_pipeline.offsets import topic_of
from uniq_pipeline.results import newest_row
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--offline", is_flag=True, help="Do not ask Kafka how far the topic reaches.")
def status(as_json: bool, offline: bool) -> None:
    """Offsets, lag, the newest minute, and what is dirty, held or quarantined.

    Of the topic in the settings, or of the one drained last when they name none. Kafka is asked when the
    settings say where it is; otherwise the lag is that of the last drain.
    """
    settings = load_settings()
    broker_error = None
    with open_workshop(settings) as shop:
        if "topic" not in settings.model_fields_set:
            newest_read = topic_of(newest_topic(shop.ledger) or settings.topic)
            settings = settings.model_copy(update={"topic": newest_read})
        log = current_log(shop.ledger, settings.topic)
        if not offline and "kafka_bootstrap_servers" in settings.model_fields_set:
            try:
                state = KafkaSource(settings).describe()
                note_extents(shop.ledger, log, state)
            except BrokerError as error:
                broker_error = str(error)
        seen = overview(shop.ledger, log)
        newest = newest_row(shop, Grain.MINUTE)
    if as_json:
        print_json(_as_json(seen, newest, broker_error))
    else:
        _print(seen, newest, settings.topic, settings.refined_topic, broker_error)


def _as_json(seen: Overview, newest: dict[str, Any] | None, broker_error: str | None) -> dict:
    return {
        **asdict(seen),
        "newest_minute": newest,
        "lag": seen.lag,
        "conserved": seen.is_conserved,
        "watermark": shown_instant(seen.watermark_s) or None,
        "broker_error": broker_error,
    }


def _print(
    seen: Overview, newest: dict[str, Any] | None, topic: str, refined_topic: str | None, broker_error: str | None
) -> None:
    if broker_error:
        click.echo(f"Kafka: {broker_error}")
    print_table(
        ["topic partition", "next offset", "lag", "in open transactions", "event watermark", "awaiting proof"],
        [
            (p.kafka_partition, p.next_offset, p.lag, p.unstable, shown_instant(p.watermark_s), p.pending_proof)
            for p in seen.partitions
        ],
        title=f"Topic {topic}",
    )
    conserved = "conserved" if seen.is_conserved else "NOT CONSERVED"
    expired = f" + {seen.expired:,} expired" if seen.expired else ""
    unstable = sum(partition.unstable for partition in seen.partitions)
    lines = {
        "records": f"{seen.delivered:,} delivered = {seen.frames:,} frames + {seen.held:,} held + "
        f"{seen.quarantined:,} quarantined{expired} ({conserved})",
        "lag": f"{seen.lag:,} records" + (f", and {unstable:,} in transactions that are open" if unstable else ""),
        "event watermark": shown_instant(seen.watermark_s) or "none yet",
        "newest minute": "none yet"
        if newest is None
        else f"{shown(newest['window_start'])}: {newest['unique_users']:,} users, "
        f"{newest['frames']:,} frames, {newest['status']}, revision {newest['revision']}",
        "windows": ", ".join(f"{count:,} {grain}" for grain, count in sorted(seen.windows.items())) or "none",
        "dirty": ", ".join(f"{count:,} {grain}" for grain, count in sorted(seen.dirty.items())) or "none",
        "to publish": f"{seen.outbox:,}",
        **_refined(seen, refined_topic),
        "files": f"{seen.files:,}, {seen.files_bytes / 1e6:,.1f} MB",
    }
    click.echo()
    for name, text in lines.items():
        click.echo(f"{name + ':':17}{text}")


def _refined(seen: Overview, refined_topic: str | None) -> dict[str, str]:
    """What waits for the refined topic, where there is one or something waits for one that there was."""
    waiting = seen.refined
    if refined_topic is None and not waiting.files:
        return {}
    since = "" if waiting.since is None else f", since {shown_instant(int(waiting.since))}"
    unset = "" if refined_topic else "; UNIQ_REFINED_TOPIC is not set, so nothing sends them"
    return {"to forward": f"{waiting.frames:,} frames to the refined topic{since}{unset}"}


@click.command()
@click.argument("sql", metavar="SQL")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row and line.")
def query(sql: str, as_json: bool) -> None:
    """Answers SQL from the catalog, read-only. `-` reads the SQL from stdin.

    \b
      uniq-pipeline query "SELECT window_start, unique_users FROM minute_counts ORDER BY 1 DESC LIMIT 5"
    """
    text = click.get_text_stream("stdin").read() if sql == "-" else sql
    if not text.strip():
        raise InputError("query: the SQL is empty")
    table = ask_catalog(load_settings().catalog_path, text)
    if as_json:
        for row in table.to_pylist():
            print_json(row)
    else:
        print_table(table.column_names, [row.values() for row in table.to_pylist()])


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def config(as_json: bool) -> None:
    """Every setting: its value (secrets hidden), default and meaning."""
    rows = describe_settings(load_settings())
    if as_json:
        print_json(rows)
    else:
        print_table(["setting", "value", "default", "description"], [row.values() for row in rows])
