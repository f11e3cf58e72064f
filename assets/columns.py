"""What each column means, for the asset pages. Names and types come from the Arrow schemas."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from dagster import TableColumn, TableSchema

FRAMES: Mapping[str, str] = {
    "topic": "Kafka topic the frame came from",
    "kafka_partition": "topic partition",
    "kafka_offset": "offset in the topic partition",
    "kafka_time": "timestamp of the Kafka record",
    "event_time": "root ts, floored to the second",
    "uid": "root uid",
    "coupon": "HLL coupon of uid: slot in the low 26 bits, value in the high 6",
    "late_by_s": "seconds behind the event watermark of its topic partition; 0 when on time",
    "event_class": "on_time, late, very_late or future; the last two count only where they were admitted, "
    "or with UNIQ_VERY_LATE=correct",
    "dimensions": "value of each dimension that was set when the frame was read; NULL when none was",
}

RESULTS: Mapping[str, str] = {
    "grain": "minute, hour, day, week, month or year",
    "window_start": "first instant of the window",
    "window_end": "first instant after the window",
    "frames": "frames counted",
    "unique_users": "exact number of different uids; NULL where their set is not there (yet)",
    "estimate": "number of different uids by the HLL state",
    "estimate_lower": "lower bound of the estimate",
    "estimate_upper": "upper bound of the estimate",
    "hll": "HLL state: Apache DataSketches HLL_8, updatable layout",
    "late_frames": "frames counted though behind the event watermark",
    "held_frames": "frames of this window set aside: too late, or implausibly early",
    "rejected_frames": "records of this window that could not be read",
    "status": "provisional until the event watermark is past the end by the allowed lateness, then final",
    "revision": "1 at first; one more at each change",
    "reason": "why this revision was made: live, late, exact, tally, backfill, admitted, withdrawn, replayed, "
    "redrained, rebuilt, repaired",
    "previous_unique_users": "unique_users of the revision before",
    "previous_estimate": "estimate of the revision before",
    "computed_at": "when this revision was made",
    "history": "earlier revisions; see the view revisions",
    "by_dimension": "counts of each value of each dimension; NULL where none is set",
}


def table_schema(schema: pa.Schema, meanings: Mapping[str, str]) -> TableSchema:
    """Raises KeyError for a column without a meaning."""
    return TableSchema(
        columns=[
            TableColumn(name=field.name, type=_shown(field.type), description=meanings[field.name]) for field in schema
        ]
    )


def _shown(kind: pa.DataType) -> str:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)
