"""Every metric: its name, type, labels and what it means. docs/metrics.md says the same, and a test holds both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Type(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True)
class Metric:
    """`name` is that of its series: counters end in `_total`, infos in `_info`; a histogram has three."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        if self.type is Type.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


_PARTITION = ("topic", "kafka_partition")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # can they be measured
        Metric(
            "uniq_up", Type.GAUGE, "1 when the ledger can be read. With 0 only this group and the limits are there."
        ),
        Metric("uniq_lake_up", Type.GAUGE, "1 when the newest result files can be read."),
        Metric("uniq_measured_timestamp_seconds", Type.GAUGE, "When this was measured: how old a textfile is."),
        Metric("uniq_measuring_duration_seconds", Type.GAUGE, "Seconds it took."),
        Metric(
            "uniq_build_info",
            Type.INFO,
            "The version that measures, of the ledger's tables, and of Python.",
            ("version", "ledger_schema", "python"),
        ),
        # what came
        Metric(
            "uniq_records_read_total",
            Type.COUNTER,
            "Records read, from a topic or from files (ingest).",
            ("source",),
        ),
        Metric(
            "uniq_frames_total",
            Type.COUNTER,
            "Frames counted as they were read, with those held before that their log proved.",
            ("source",),
        ),
        Metric("uniq_late_frames_total", Type.COUNTER, "Frames counted that came late.", ("source",)),
        Metric(
            "uniq_held_frames_total",
            Type.COUNTER,
            "Frames held aside as they were read, by event class: very_late or future.",
            ("source", "event_class"),
        ),
        Metric(
            "uniq_rejected_records_total",
            Type.COUNTER,
            "Records quarantined as they were read, by reason.",
            ("source", "reason"),
        ),
        Metric(
            "uniq_lateness_seconds",
            Type.HISTOGRAM,
            "Seconds by which frames came behind the event watermark, counted and held ones, without future ones.",
            ("source",),
        ),
        Metric(
            "uniq_moved_records_total",
            Type.COUNTER,
            "Records that left a place: admitted (out of held), withdrawn (out of frames), replayed (out of "
            "quarantine), expired (out of the lake).",
            ("move",),
        ),
        Metric("uniq_batches_total", Type.COUNTER, "Batches committed, by kind.", ("kind",)),
        Metric("uniq_last_batch_timestamp_seconds", Type.GAUGE, "When records read were last committed."),
        Metric("uniq_last_batch_duration_seconds", Type.GAUGE, "From the first record of that batch to its commit."),
        Metric("uniq_last_batch_records", Type.GAUGE, "Records of that batch."),
        # where the topics stand
        Metric("uniq_next_offset", Type.GAUGE, "Offset at which the next drain goes on.", _PARTITION),
        Metric(
            "uniq_stable_offset",
            Type.GAUGE,
            "Last stable offset when Kafka was last asked, by a drain or `status`.",
            _PARTITION,
        ),
        Metric("uniq_lag_records", Type.GAUGE, "Offsets from the next to the last stable one, as known.", _PARTITION),
        Metric(
            "uniq_unstable_records",
            Type.GAUGE,
            "Offsets beyond the last stable one, as known: they wait for a transaction that is open.",
            _PARTITION,
        ),
        Metric("uniq_offset_moved_timestamp_seconds", Type.GAUGE, "When the next offset moved last.", _PARTITION),
        Metric(
            "uniq_skipped_offsets_total",
            Type.COUNTER,
            "Offsets given up on a person's word (skip-lost, rebuild).",
            _PARTITION,
        ),
        Metric(
            "uniq_partition_watermark_timestamp_seconds",
            Type.GAUGE,
            "Event watermark of the topic partition.",
            _PARTITION,
        ),
        # event time and counts
        Metric("uniq_watermark_timestamp_seconds", Type.GAUGE, "Event watermark of the whole."),
        Metric(
            "uniq_newest_minute_timestamp_seconds",
            Type.GAUGE,
            "End of the newest minute with a count; it may not be over yet.",
        ),
        Metric("uniq_newest_final_minute_timestamp_seconds", Type.GAUGE, "End of the newest minute that is final."),
        Metric("uniq_newest_final_minute_users", Type.GAUGE, "Different users of that minute, exact."),
        Metric("uniq_newest_final_minute_frames", Type.GAUGE, "Frames of that minute."),
        # ticks, and what waits for one
        Metric("uniq_ticks_total", Type.COUNTER, "Ticks that drained and came to an end."),
        Metric(
            "uniq_failed_ticks_total",
            Type.COUNTER,
            "Those of them that left something undone, by cause: broker, offsets, file, publish, refined, other.",
            ("cause",),
        ),
        Metric("uniq_tick_seconds_total", Type.COUNTER, "Seconds that ticks took, by stage.", ("stage",)),
        Metric("uniq_last_tick_timestamp_seconds", Type.GAUGE, "When the last of them ended."),
        Metric("uniq_last_good_tick_timestamp_seconds", Type.GAUGE, "When the last one ended in which nothing failed."),
        Metric("uniq_last_tick_duration_seconds", Type.GAUGE, "Seconds the last one took, by stage.", ("stage",)),
        Metric(
            "uniq_dirty_windows",
            Type.GAUGE,
            "Windows that wait: to be computed (task count), or for their set of uids (set).",
            ("task", "grain"),
        ),
        Metric(
            "uniq_dirty_oldest_timestamp_seconds",
            Type.GAUGE,
            "Since when the oldest of them waits; absent where none does.",
            ("task", "grain"),
        ),
        Metric("uniq_outbox_windows", Type.GAUGE, "Windows whose revision the results topic has not acknowledged."),
        Metric(
            "uniq_outbox_oldest_timestamp_seconds",
            Type.GAUGE,
            "Since when the oldest of them waits; absent where none does.",
        ),
        # what is stored
        Metric(
            "uniq_stored_records",
            Type.GAUGE,
            "Records by where they are now: frames (counted), held (waiting), quarantine.",
            ("place",),
        ),
        Metric("uniq_windows", Type.GAUGE, "Windows with a count.", ("grain",)),
        Metric("uniq_stored_files", Type.GAUGE, "Files that count.", ("kind",)),
        Metric("uniq_stored_bytes", Type.GAUGE, "Bytes of the files that count.", ("kind",)),
        Metric("uniq_retired_bytes", Type.GAUGE, "Bytes of the files that no longer count, until gc.", ("kind",)),
        # estimates
        Metric(
            "uniq_estimate_standard_error_ratio",
            Type.GAUGE,
            "Relative standard error of estimates: 1.04/sqrt(2^lg_k).",
        ),
        Metric(
            "uniq_estimate_windows",
            Type.GAUGE,
            "Recent windows with an exact count beside the estimate.",
            ("grain",),
        ),
        Metric(
            "uniq_estimate_error_ratio",
            Type.GAUGE,
            "Relative error of their estimates: the root of the mean square.",
            ("grain",),
        ),
        Metric("uniq_estimate_worst_error_ratio", Type.GAUGE, "The largest of those errors.", ("grain",)),
        Metric(
            "uniq_estimate_worst_standard_errors",
            Type.GAUGE,
            "The same in standard errors, as the check sketch_against_exact has it.",
            ("grain",),
        ),
        # what alerts compare with
        Metric(
            "uniq_limit",
            Type.GAUGE,
            "Settings that alerts compare with: UNIQ_CHECK_..., UNIQ_DIRTY_AFTER_S and those of event time.",
            ("limit",),
        ),
    )
}
