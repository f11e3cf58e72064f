"""The tables of the ledger. Columns ending in `_s` are whole seconds since 1970-01-01T00:00:00Z."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

SCHEMA_VERSION = "5"

metadata = MetaData()

# key/value facts about the ledger itself: schema version, time zone, lg_k, the event watermark of the whole
meta = Table("meta", metadata, Column("key", String(100), primary_key=True), Column("value", Text, nullable=False))

sequences = Table(
    "sequences",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# Columns `topic` have the name of a log: that of the topic, or `frames~2` for one that was made again (see offsets).

# where the next drain goes on, and the event clock of the log up to there
topic_partitions = Table(
    "topic_partitions",
    metadata,
    Column("topic", String(260), primary_key=True),
    Column("kafka_partition", Integer, primary_key=True),
    Column("topic_id", String(64), nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    # the end of the log when last looked at: for the lag, and what waits for transactions that are open
    Column("stable_offset", BigInteger, nullable=False),
    Column("high_watermark", BigInteger, nullable=False),
    Column("clock", Text, nullable=False),  # lateness.EventClock as JSON
    Column("watermark_s", BigInteger),
    Column("updated_at", Float, nullable=False),
)

# What moved records, and how many: into frames, held and quarantine from a log (delivered), or out of one of
# them into another (admitted: out of held, withdrawn: out of frames, replayed: out of quarantine), or out of the lake.
# delivered + admitted + withdrawn + replayed == frames + held + quarantined + expired, in every row.
batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("kind", String(10), nullable=False),  # batches.Kind
    Column("topic", String(260), nullable=False),
    Column("committed_at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("delivered", BigInteger, nullable=False),
    Column("frames", BigInteger, nullable=False),
    Column("late", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("admitted", BigInteger, nullable=False),
    Column("withdrawn", BigInteger, nullable=False),
    Column("replayed", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("reasons", Text, nullable=False),  # JSON: event class or reject reason -> records
    Column("lateness", Text, nullable=False),  # JSON: how late (intake.LATENESS_STEPS_S) -> frames and held
    Column("late_by_s", BigInteger, nullable=False),  # of all of those, added up
    Index("batches_committed_at", "committed_at"),
)

# Running sums over all batches of a kind (batches.Kind), and over all ticks: what would take a look at every row there
# ever was. Written in the transactions of what they count.
totals = Table(
    "totals",
    metadata,
    Column("kind", String(10), primary_key=True),
    Column("name", String(20), primary_key=True),
    Column("label", String(30), primary_key=True),
    Column("amount", BigInteger, nullable=False),
)

# [start_offset, end_offset) of every batch: contiguous per topic partition, and the primary key refuses a
# second batch that starts at the same offset
batch_ranges = Table(
    "batch_ranges",
    metadata,
    Column("topic", String(260), primary_key=True),
    Column("topic_id", String(64), primary_key=True),
    Column("kafka_partition", Integer, primary_key=True),
    Column("start_offset", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),  # fewer than the offsets where the log has gaps
    Column("batch_id", String(64), nullable=False),
    Column("front_s", BigInteger),  # event front before the range,
    Column("bound_s", BigInteger),  # and the future bound after it: what a replayed record is judged by
)

# every file that counts (retired_at is null) and those that no longer do, until gc
files = Table(
    "files",
    metadata,
    Column("path", String(700), primary_key=True),
    Column("kind", String(20), nullable=False),  # frames, held, quarantine, result, uid_set
    Column("rows", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("batch_id", String(64)),
    Column("rest_of", String(700)),  # the file whose other rows were moved elsewhere
    Column("hour_s", BigInteger),  # frames: the one event hour the file holds
    Column("min_event_s", BigInteger),
    Column("max_event_s", BigInteger),
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),
    Index("files_kind_hour", "kind", "hour_s"),
    Index("files_retired_at", "retired_at", "kind", "size_bytes"),  # all that the metrics ask of every file
)

# What the file of a compaction, whose `batch_id` is that of the compaction, was merged of: files of batches, as their
# names were then. Kept for as long as there is that file, which can be put back from it when it is lost.
merged_files = Table(
    "merged_files",
    metadata,
    Column("compaction_id", String(64), primary_key=True),
    Column("path", String(700), primary_key=True),
    Column("batch_id", String(64), nullable=False),
    Column("rest_of", String(700)),
    Column("rows_written", BigInteger, nullable=False),  # by the batch; moves may have taken some out since
    Column("min_event_s", BigInteger),
    Column("max_event_s", BigInteger),
    Index("merged_files_batch", "batch_id"),
)

# windows to compute (task count) and uid sets to rebuild (task set). `seq` never repeats, so "clear it if
# it is still the mark I saw" cannot clear a later mark.
dirty = Table(
    "dirty",
    metadata,
    Column("task", String(10), primary_key=True),
    Column("grain", String(10), primary_key=True),
    Column("window_start_s", BigInteger, primary_key=True),
    Column("bucket_start_s", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("reason", String(20), nullable=False),
    Column("since", Float, nullable=False),
    Index("dirty_bucket", "task", "grain", "bucket_start_s", "since"),
)

# the result file of each bucket; `version` fences its replacement
buckets = Table(
    "buckets",
    metadata,
    Column("grain", String(10), primary_key=True),
    Column("bucket_start_s", BigInteger, primary_key=True),
    Column("bucket_end_s", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("path", String(700), nullable=False),
    Column("windows", Integer, nullable=False),
    Column("provisional", Integer, nullable=False),  # windows in it that are not final yet
    Index("buckets_provisional", "grain", "provisional", "windows"),
)

# distinct uids of a closed window, and how many; the number stays when the set itself has expired
uid_sets = Table(
    "uid_sets",
    metadata,
    Column("grain", String(10), primary_key=True),
    Column("window_start_s", BigInteger, primary_key=True),
    Column("window_end_s", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("path", String(700)),
    Column("users", BigInteger, nullable=False),
    Column("users_by", Text),  # JSON: dimension -> value -> users; null where no dimension was set
)

# Spans of event time whose files are gone because they were kept long enough: `what` of config.KEPT. What was
# computed from them stays, and can not be computed again.
expired = Table(
    "expired",
    metadata,
    Column("what", String(20), primary_key=True),
    Column("start_s", BigInteger, primary_key=True),
    Column("end_s", BigInteger, nullable=False),
)

# records that are in no window, by minute: held ones by event minute, rejected ones by Kafka minute
tallies = Table(
    "tallies",
    metadata,
    Column("minute_s", BigInteger, primary_key=True),
    Column("kind", String(10), primary_key=True),  # held or rejected
    Column("reason", String(30), primary_key=True),
    Column("records", BigInteger, nullable=False),
)

# Held frames that count after all, though their rows still stand in held/: those that the log itself proved, and
# those that a person admitted while they were awaiting proof. The key keeps the two from counting one frame twice.
admissions = Table(
    "admissions",
    metadata,
    Column("topic", String(260), primary_key=True),
    Column("kafka_partition", Integer, primary_key=True),
    Column("kafka_offset", BigInteger, primary_key=True),
    Column("batch_id", String(64), nullable=False),
)

# windows whose current revision has not been acknowledged by the results topic
outbox = Table(
    "outbox",
    metadata,
    Column("grain", String(10), primary_key=True),
    Column("window_start_s", BigInteger, primary_key=True),
    Column("bucket_start_s", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("since", Float, nullable=False),
    Index("outbox_since", "since", "window_start_s"),
)

# files with frames that the refined topic has not acknowledged yet; empty where no such topic is set
refined_outbox = Table(
    "refined_outbox",
    metadata,
    Column("path", String(700), primary_key=True),  # a file that counts
    Column("rows", BigInteger, nullable=False),
    Column("sent_rows", BigInteger, nullable=False),  # in the order of the file
    Column("revision", BigInteger, nullable=False),  # of the messages; 0: read from its log for the first time
    Column("withdrawn", Boolean, nullable=False),  # its rows do not count any more
    Column("since", Float, nullable=False),
    Index("refined_outbox_since", "since"),
)

# offsets given up on a person's word
skipped = Table(
    "skipped",
    metadata,
    Column("topic", String(260), primary_key=True),
    Column("kafka_partition", Integer, primary_key=True),
    Column("start_offset", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, nullable=False),
    Column("skipped_at", Float, nullable=False),
)
