"""gc, and what happens only on a person's word: skipping lost offsets, starting a topic over."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update

from uniq_pipeline.errors import InputError
from uniq_pipeline.ledger import schema
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


def skip_lost(ledger: Ledger, state: TopicState) -> list[OffsetRange]:
    """Moves offsets that the broker's retention has passed up to its low watermark, and records the gaps."""
    table, skipped = schema.topic_partitions, []
    with ledger.writing() as connection:
        for kafka_partition, extent in sorted(state.extents.items()):
            row = connection.execute(
                select(table.c.next_offset).where(
                    table.c.topic == state.topic, table.c.kafka_partition == kafka_partition
                )
            ).first()
            if row is None or row.next_offset >= extent.low_watermark:
                continue
            gap = OffsetRange(kafka_partition, row.next_offset, extent.low_watermark)
            connection.execute(
                update(table)
                .where(table.c.topic == state.topic, table.c.kafka_partition == kafka_partition)
                .values(next_offset=gap.end_offset)
            )
            connection.execute(
                schema.skipped.insert().values(
                    topic=state.topic,
                    kafka_partition=kafka_partition,
                    start_offset=gap.start_offset,
                    end_offset=gap.end_offset,
                    skipped_at=ledger.now(),
                )
            )
            skipped.append(gap)
    return skipped


def forget_topic(ledger: Ledger, topic: str, current_topic_id: str | None) -> int:
    """Drops a topic's offsets, so that a recreated one starts at its beginning. What was counted stays.

    current_topic_id  the id Kafka shows now, None where the topic does not exist

    Raises InputError when the topic is still the one that was drained: its frames would be counted twice.
    """
    parts, ranges = schema.topic_partitions, schema.batch_ranges
    with ledger.writing() as connection:
        known = select(parts.c.topic_id).where(parts.c.topic == topic).limit(1)
        if current_topic_id and connection.execute(known).scalar_one_or_none() == current_topic_id:
            raise InputError(
                f"topic {topic} was not recreated: it still has the id {current_topic_id}, and its records up to the "
                f"ledger's offsets are counted already. Nothing was changed."
            )
        # where a broker gives no ids, the recreated topic starts at offsets that were used before
        connection.execute(delete(ranges).where(ranges.c.topic == topic, ranges.c.topic_id == ""))
        return connection.execute(delete(parts).where(parts.c.topic == topic)).rowcount
