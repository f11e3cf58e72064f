"""Arrow schemas of the data files. Column meanings are in docs/tables.md."""

import pyarrow as pa

INSTANT = pa.timestamp("us", tz="UTC")
TOPIC = pa.dictionary(pa.int32(), pa.string())  # one name in a whole file: costs nothing

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("topic", TOPIC),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
        pa.field("kafka_time", INSTANT),
        pa.field("event_time", INSTANT),
        pa.field("uid", pa.string()),
        pa.field("coupon", pa.uint32()),
        pa.field("late_by_s", pa.int32()),
    ]
)
HELD_SCHEMA = FRAMES_SCHEMA.append(pa.field("event_class", pa.string()))
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("topic", TOPIC),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
        pa.field("kafka_time", INSTANT),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("payload", pa.binary()),
    ]
)
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
        pa.field("computed_at", INSTANT),
    ]
)
UID_SET_SCHEMA = pa.schema([pa.field("uid", pa.string())])
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
        pa.field("topic", pa.string()),
        pa.field("committed_at", INSTANT),
        pa.field("seconds", pa.float64()),
        pa.field("delivered", pa.int64()),
        pa.field("frames", pa.int64()),
        pa.field("late", pa.int64()),
        pa.field("held", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("admitted", pa.int64()),
        pa.field("reasons", pa.string()),
    ]
)
