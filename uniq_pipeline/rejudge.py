"""Judging records whose place in their log is past: by what the log said of event time where they stood."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uniq_pipeline.config import VeryLate
from uniq_pipeline.intake import Intake, with_classes
from uniq_pipeline.lateness import NO_KAFKA_TIME, EventClass, judge_in_context
from uniq_pipeline.ledger.expiry import CLOSES, expired_spans
from uniq_pipeline.ledger.moves import contexts
from uniq_pipeline.loading import event_seconds, lateness_policy
from uniq_pipeline.records import NO_TIME, Records
from uniq_pipeline.results import Workshop


def judge_again(shop: Workshop, rows: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(frames, held) of records that can be read now, by topic and topic partition.

    rows  with the columns of quarantine; each must be a frame under the settings in force
    """
    settings, policy = shop.settings, lateness_policy(shop.settings)
    counts_late = settings.very_late is VeryLate.CORRECT
    closed = expired_spans(shop.ledger, CLOSES)
    partitions = sorted(set(zip(rows["topic"].to_pylist(), rows["kafka_partition"].to_pylist(), strict=True)))
    for topic, kafka_partition in partitions:
        mine = rows.filter(
            (pc.field("topic").cast(pa.string()) == topic) & (pc.field("kafka_partition") == kafka_partition)
        )
        mine = mine.sort_by("kafka_offset")
        offsets = mine["kafka_offset"].to_numpy()
        times = mine["kafka_time"].cast(pa.int64()).fill_null(NO_TIME * 1000).to_numpy() // 1000
        intake = Intake(
            topic,
            policy,
            ts_unit=settings.ts_unit,
            dimensions=settings.dimension_keys,
            very_late_counts=counts_late,
            closed=closed,
            lookahead=True,
        )
        intake.add(
            Records(
                kafka_partition, offsets.tolist(), times.tolist(), mine["payload"].to_pylist(), int(offsets[-1]) + 1
            )
        )
        alone = intake.finish({}, at_end=True)
        found = contexts(shop.ledger, topic, kafka_partition, int(offsets[0]), int(offsets[-1]))
        everything = pa.concat_tables([alone.frames, alone.held]).sort_by("kafka_offset")
        starts = np.array([context.start_offset for context in found], np.int64)
        place = np.searchsorted(starts, everything["kafka_offset"].to_numpy(), "right") - 1
        known = [found[i] if i >= 0 else None for i in place]
        if not any(context is not None and context.bound_s is not None for context in known):
            yield alone.frames, alone.held
            continue
        classes, late_by_s = judge_in_context(
            event_seconds(everything),
            np.where(times == NO_TIME, NO_KAFKA_TIME, times // 1000),
            [None if context is None else context.front_s for context in known],
            [None if context is None else context.bound_s for context in known],
            policy,
        )
        is_held = closed.contain(event_seconds(everything))
        classes[is_held & (classes != EventClass.FUTURE)] = EventClass.VERY_LATE
        everything = with_classes(everything, classes, late_by_s)
        is_held |= classes == EventClass.FUTURE
        if not counts_late:
            is_held |= classes == EventClass.VERY_LATE
        yield everything.filter(pa.array(~is_held)), everything.filter(pa.array(is_held))
