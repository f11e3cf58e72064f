"""Arrow schemas of the data files. Column meanings are in docs/tables.md."""

import pyarrow as pa

INSTANT = pa.timestamp("us", tz="UTC")
NAME = pa.dictionary(pa.int32(), pa.string())  # few names in a whole file: costs nothing

# Dimension to value, in order of name; NULL where no dimension was set. The same type whatever the settings.
DIMENSIONS = pa.map_(pa.string(), pa.string())

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("topic", NAME),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
        pa.field("kafka_time", INSTANT),
        pa.field("event_time", INSTANT),
        pa.field("uid", pa.string()),
        pa.field("coupon", pa.uint32()),
        pa.field("late_by_s", pa.int32()),
        pa.field("event_class", NAME),
        pa.field("dimensions", DIMENSIONS),
    ]
)
HELD_SCHEMA = FRAMES_SCHEMA  # so that a frame can be moved from one to the other and back
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("topic", NAME),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
        pa.field("kafka_time", INSTANT),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("payload", pa.binary()),
    ]
)
# An earlier revision of a window, as its result row remembers it.
REVISION = pa.struct(
    [
        pa.field("revision", pa.int64()),
        pa.field("frames", pa.int64()),
        pa.field("unique_users", pa.int64()),
        pa.field("estimate", pa.float64()),
        pa.field("estimate_lower", pa.float64()),
        pa.field("estimate_upper", pa.float64()),
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("computed_at", INSTANT),
    ]
)
# The counts of one value of a dimension, in the result row of a window.
ENTRY = pa.struct(
    [
        pa.field("dimension", pa.string()),
        pa.field("value", pa.string()),
        pa.field("frames", pa.int64()),
        pa.field("unique_users", pa.int64()),
        pa.field("estimate", pa.float64()),
        pa.field("estimate_lower", pa.float64()),
        pa.field("estimate_upper", pa.float64()),
        pa.field("hll", pa.binary()),
    ]
)
ENTRIES = pa.list_(ENTRY)
RESULT_SCHEMA = pa.schema(
    [
        pa.field("grain", pa.string()),
        pa.field("window_start", INSTANT),
        pa.field("window_end", INSTANT),
        pa.field("frames", pa.int64()),
        pa.field("unique_users", pa.int64()),
        pa.field("estimate", pa.float64()),
        pa.field("estimate_lower", pa.float64()),
        pa.field("estimate_upper", pa.float64()),
        pa.field("hll", pa.binary()),
        pa.field("late_frames", pa.int64()),
        pa.field("held_frames", pa.int64()),
        pa.field("rejected_frames", pa.int64()),
        pa.field("status", pa.string()),
        pa.field("revision", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("previous_unique_users", pa.int64()),
        pa.field("previous_estimate", pa.float64()),
        pa.field("computed_at", INSTANT),
        pa.field("history", pa.list_(REVISION)),
        pa.field("by_dimension", ENTRIES),
    ]
)
USERS_BY_SCHEMA = pa.schema(
    [
        pa.field("window_start_s", pa.int64()),
        pa.field("dimension", pa.string()),
        pa.field("value", pa.string()),
        pa.field("users", pa.int64()),
    ]
)
# `event_time` is the start of the set's window, so that frames and sets can be read together.
UID_SET_SCHEMA = pa.schema(
    [pa.field("event_time", INSTANT), pa.field("uid", pa.string()), pa.field("dimensions", DIMENSIONS)]
)
TARGETS_SCHEMA = pa.schema(
    [
        pa.field("window_start_s", pa.int64()),
        pa.field("window_end_s", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("users", pa.int64()),
    ]
)
MINUTES_SCHEMA = pa.schema([pa.field("minute_s", pa.int64()), pa.field("window_start_s", pa.int64())])
TALLIES_SCHEMA = pa.schema(
    [
        pa.field("window_start_s", pa.int64()),
        pa.field("held_frames", pa.int64()),
        pa.field("rejected_frames", pa.int64()),
    ]
)
ADMITTED_SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string()),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
    ]
)
BATCHES_SCHEMA = pa.schema(
    [
        pa.field("batch_id", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("topic", pa.string()),
        pa.field("committed_at", INSTANT),
        pa.field("seconds", pa.float64()),
        pa.field("delivered", pa.int64()),
        pa.field("frames", pa.int64()),
        pa.field("late", pa.int64()),
        pa.field("held", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("admitted", pa.int64()),
        pa.field("withdrawn", pa.int64()),
        pa.field("replayed", pa.int64()),
        pa.field("expired", pa.int64()),
        pa.field("reasons", pa.string()),
        pa.field("lateness", pa.string()),
        pa.field("late_by_s", pa.int64()),
    ]
)
RANGES_SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string()),
        pa.field("kafka_partition", pa.int32()),
        pa.field("start_offset", pa.int64()),
        pa.field("end_offset", pa.int64()),
        pa.field("records", pa.int64()),
        pa.field("generations", pa.int64()),
    ]
)
