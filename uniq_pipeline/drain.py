"""Drain: moves what a topic holds into the lake, in bounded batches, each committed with its offsets (see loading)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, OffsetsLost
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import combined_watermark_s
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.logs import advance_watermark, current_log, note_extents, note_new_partitions, read_positions
from uniq_pipeline.loading import Loader, LoadReport, Log
from uniq_pipeline.offsets import OffsetRange, TopicState, plan_ranges
from uniq_pipeline.records import Records


class Source(Protocol):
    """What a drain needs of a topic."""

    topic: str

    def describe(self) -> TopicState: ...

    def read(self, ranges: Sequence[OffsetRange]) -> Iterator[Records]: ...

    def commit_for_lag_tools(self, next_offsets: dict[int, int]) -> None: ...


def drain(
    settings: Settings,
    ledger: Ledger,
    lake: Lake,
    source: Source,
    *,
    stop_after_s: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    failpoint: Callable[[str], None] = lambda name: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> LoadReport:
    """Reads from the ledger's offsets to the end of the log as it is now, or for `stop_after_s` seconds.

    progress(done, total) is told records read and planned. Raises LostRace when another drain commits first;
    what this one committed before that stays. Raises BrokerError or OffsetsLost when nothing can be read; what stops
    it on the way is in the report, and what was read before is committed.
    """
    started = monotonic()
    lake.prepare()
    failpoint("drain.before_fetch")
    # The ledger first: what another drain commits in between then lies within what the topic shows. The other
    # way round its offsets could lie beyond the end we saw, and would look like a truncated log.
    log = current_log(ledger, source.topic)
    positions = read_positions(ledger, log)
    state = source.describe()
    ranges = plan_ranges(
        state, positions.topic_id, {p: position.next_offset for p, position in positions.by_partition.items()}
    )
    starts = {r.kafka_partition: r.start_offset for r in ranges}
    unknown = {p: offset for p, offset in starts.items() if p not in positions.by_partition}
    if unknown:
        note_new_partitions(ledger, log, state.topic_id, unknown)
    stable = {p: extent.stable_offset for p, extent in state.extents.items()}
    loader = Loader(
        settings,
        ledger,
        lake,
        Log(log, state.topic_id),
        starts=starts,
        positions=positions.by_partition,
        failpoint=failpoint,
        monotonic=monotonic,
    )
    total, done = sum(r.size for r in ranges), 0
    report = loader.report
    try:
        for records in source.read(ranges):
            loader.add(records)
            done += len(records.offsets)
            if loader.is_full:
                loader.store(stable)
                progress(done, total)
                if stop_after_s is not None and monotonic() - started > stop_after_s:
                    break
    except (BrokerError, OffsetsLost) as error:
        report.stopped = error
    loader.store(stable)
    progress(done, total)
    report.unstable = state.unstable
    report.lag = sum(max(0, offset - loader.starts[p]) for p, offset in stable.items())
    report.next_offsets = dict(loader.starts)
    note_extents(ledger, log, state)
    watermarks_s = loader.watermarks_s
    report.watermark_s = advance_watermark(
        ledger,
        combined_watermark_s(
            {p: watermarks_s.get(p) for p in stable},
            {p: loader.starts[p] >= offset for p, offset in stable.items()},
            settings.allowed_lateness_s,
        ),
    )
    if report.batches and report.stopped is None:  # nor are brokers asked once more that have just failed us
        source.commit_for_lag_tools(report.next_offsets)
    report.seconds = monotonic() - started
    return report
