"""gc, and what happens only on a person's word: skipping lost offsets, starting a topic over."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from uniq_pipeline.errors import InputError
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.logs import current_log
from uniq_pipeline.ledger.store import Ledger, in_chunks
from uniq_pipeline.offsets import OffsetRange, TopicState


def retired_before(ledger: Ledger, moment: float) -> list[str]:
    """Files that have not counted since before `moment`."""
    table = schema.files
    with ledger.reading() as connection:
        return list(connection.execute(select(table.c.path).where(table.c.retired_at < moment)).scalars())


def known_paths(ledger: Ledger) -> set[str]:
    table = schema.files
    with ledger.reading() as connection:
        return set(connection.execute(select(table.c.path)).scalars())


def forget_files(ledger: Ledger, paths: Sequence[str]) -> None:
    """Drops the rows of retired files that are gone from disk."""
    table = schema.files
    with ledger.writing() as connection:
        for chunk in in_chunks(list(paths)):
            connection.execute(delete(table).where(table.c.path.in_(chunk), table.c.retired_at.is_not(None)))


def skip_lost(ledger: Ledger, log: str, state: TopicState) -> list[OffsetRange]:
    """Moves offsets that the broker's retention has passed up to its low watermark, and records the gaps."""
    skipped = []
    with ledger.writing() as connection:
        for kafka_partition, extent in sorted(state.extents.items()):
            start = _next_offset(connection, log, kafka_partition)
            if start is not None and start < extent.low_watermark:
                skipped.append(OffsetRange(kafka_partition, start, extent.low_watermark))
                _skip(connection, log, skipped[-1], ledger.now())
    return skipped


def skip_to(ledger: Ledger, log: str, state: TopicState, kafka_partition: int, offset: int) -> OffsetRange:
    """Moves the offset of one topic partition on, past records that the broker has but cannot serve; records the gap.

    Raises InputError where that is not forward, or beyond what the log holds.
    """
    with ledger.writing() as connection:
        start = _next_offset(connection, log, kafka_partition)
        end = state.extents[kafka_partition].stable_offset if kafka_partition in state.extents else None
        if start is None or end is None or not start < offset <= end:
            allowed = "it was never drained" if start is None or end is None else f"it has to be {start + 1} to {end}"
            raise InputError(
                f"topic {state.topic}, topic partition {kafka_partition}: cannot skip to offset {offset}: {allowed}. "
                f"Nothing was changed."
            )
        gap = OffsetRange(kafka_partition, start, offset)
        _skip(connection, log, gap, ledger.now())
    return gap


def _next_offset(connection: Connection, topic: str, kafka_partition: int) -> int | None:
    table = schema.topic_partitions
    return connection.execute(
        select(table.c.next_offset).where(table.c.topic == topic, table.c.kafka_partition == kafka_partition)
    ).scalar_one_or_none()


def _skip(connection: Connection, topic: str, gap: OffsetRange, now: float) -> None:
    table = schema.topic_partitions
    connection.execute(
        update(table)
        .where(table.c.topic == topic, table.c.kafka_partition == gap.kafka_partition)
        .values(next_offset=gap.end_offset)
    )
    connection.execute(
        schema.skipped.insert().values(
            topic=topic,
            kafka_partition=gap.kafka_partition,
            start_offset=gap.start_offset,
            end_offset=gap.end_offset,
            skipped_at=now,
        )
    )


def forget_topic(ledger: Ledger, topic: str, current_topic_id: str | None) -> int:
    """Drops a topic's offsets, so that a recreated one is drained from its beginning, as a log of its own.

    What was counted stays.

    current_topic_id  the id Kafka shows now, None where the topic does not exist

    Raises InputError when the topic is still the one that was drained: its frames would be counted twice.
    """
    parts, log = schema.topic_partitions, current_log(ledger, topic)
    with ledger.writing() as connection:
        known = select(parts.c.topic_id).where(parts.c.topic == log).limit(1)
        if current_topic_id and connection.execute(known).scalar_one_or_none() == current_topic_id:
            raise InputError(
                f"topic {topic} was not recreated: it still has the id {current_topic_id}, and its records up to the "
                f"ledger's offsets are counted already. Nothing was changed."
            )
        return connection.execute(delete(parts).where(parts.c.topic == log)).rowcount
