"""Refreshing the result files of one grain: which windows, computed how, stored under which fence.

The parts common to minutes (computed from frames) and rollups (merged from finer results).
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import FileDamaged, LostRace
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.dirty import BucketWork, ProvisionalSpan, Task, count_dirty, dirty_buckets, newest_seq
from uniq_pipeline.ledger.expiry import uncomputable
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.logs import known_watermark_s
from uniq_pipeline.ledger.overview import newest_file
from uniq_pipeline.ledger.results import BucketCommit, Revision, commit_buckets
from uniq_pipeline.schemas import ENTRIES, RESULT_SCHEMA, TARGETS_SCHEMA
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import BUCKET, Grain, Window, bucket_of, from_epoch, to_epoch, window_at

# Buckets refreshed in one transaction while catching up: a day of minutes, or a month of hours.
BUCKETS_AT_ONCE = 24

# What the states of dimensions may take in one transaction; about four times that is in memory for a while.
STATES_BYTES = 128 << 20

# Minutes that began less than this ago are counted at every tick, whatever the marks say: the last two that ended,
# whenever in the minute it runs. Nothing but a mark says that a coarser window changed.
RECENT_S = 240

# Buckets of a grain that one refresh leaves because a file of theirs is damaged; more is no damaged file any more.
DAMAGED_AT_MOST = 100

# Another process that refreshes the same windows makes us start over; after this many times it may go on alone.
RACES = 5


@dataclass(frozen=True)
class Target:
    """A window to compute. `reason` is that of its dirty mark, "live" without one."""

    window: Window
    reason: str


@dataclass
class RefreshReport:
    """What changed in one grain. `buckets` holds those whose files were replaced.

    damaged  buckets that were left as they are, because a file they need is damaged, and what is wrong with it
    """

    grain: Grain
    computed: int = 0
    changed: list[Revision] = field(default_factory=list)
    buckets: set[Window] = field(default_factory=set)
    lost_races: int = 0
    damaged: dict[Window, FileDamaged] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """What every computing use case needs. `empty_hll` is the HLL state of no users."""

    settings: Settings
    ledger: Ledger
    lake: Lake
    warehouse: Warehouse
    empty_hll: bytes
    failpoint: Callable[[str], None] = lambda name: None


Progress = Callable[[int, int], None]  # windows done, windows there were to do

# Given the targets, makes the relation `computed` (see sql/count/merge_windows.sql).
Compute = Callable[[Sequence[Target]], pa.Table]


def refresh(
    shop: Workshop,
    grain: Grain,
    compute: Compute,
    *,
    final_before_s: int | None,
    progress: Progress = lambda done, total: None,
    is_over: Callable[[], bool] = lambda: False,
) -> RefreshReport:
    """Computes every dirty window of a grain, the newest ones, and those that are final by now; stores what changed.

    Windows that end at or before `final_before_s` are final. Where time `is_over` the rest stays dirty. What becomes
    dirty from now on is left for the next time, so that a busy drain cannot keep one refresh going for ever. Buckets
    that cannot be computed because of a damaged file are reported and stay dirty; the others are computed all the same.
    """
    report = RefreshReport(grain)
    before_seq = newest_seq(shop.ledger)
    total = count_dirty(shop.ledger, Task.COUNT, grain)
    zone = shop.settings.zone
    span = ProvisionalSpan(final_before_s)
    if grain is Grain.MINUTE:
        now_s = int(shop.ledger.now())
        span = ProvisionalSpan(final_before_s, now_s - RECENT_S, now_s)
    provisional: ProvisionalSpan | None = span
    while True:
        works = dirty_buckets(
            shop.ledger,
            grain,
            zone,
            limit=_buckets_at_once(shop.settings),
            before_seq=before_seq,
            provisional=provisional,
            without={bucket.start_s for bucket in report.damaged},
        )
        if not works:
            return report
        try:
            _refresh_readable(shop, grain, works, compute, span, report)
        except LostRace:
            report.lost_races += 1
            if report.lost_races >= RACES:
                raise
            continue
        provisional = None
        progress(report.computed, max(total, report.computed))
        if is_over():
            return report


def _buckets_at_once(settings: Settings) -> int:
    """Fewer with dimensions, where each value may have a state in each of the 60 windows of a bucket."""
    values = len(settings.dimension_keys) * settings.dimension_values
    at_most = STATES_BYTES // (60 * values << settings.lg_k) if values else BUCKETS_AT_ONCE
    return max(1, min(BUCKETS_AT_ONCE, at_most))


def _refresh_readable(
    shop: Workshop,
    grain: Grain,
    works: list[BucketWork],
    compute: Compute,
    span: ProvisionalSpan,
    report: RefreshReport,
) -> None:
    """All of them at once or, where a file of one cannot be read, all but that one."""
    try:
        refresh_group(shop, grain, works, compute, span, report)
    except FileDamaged as error:
        if len(works) > 1:
            half = len(works) // 2
            _refresh_readable(shop, grain, works[:half], compute, span, report)
            _refresh_readable(shop, grain, works[half:], compute, span, report)
            return
        if len(report.damaged) == DAMAGED_AT_MOST:
            raise
        report.damaged[works[0].bucket] = error


def refresh_group(
    shop: Workshop,
    grain: Grain,
    works: list[BucketWork],
    compute: Compute,
    span: ProvisionalSpan,
    report: RefreshReport,
    previous: pa.Table | None = None,
) -> None:
    """Computes the marked and the provisional windows of some buckets, and stores what changed.

    previous  rows to go on from in the place of those that are stored; the file is written anew in any case
    """
    warehouse, zone = shop.warehouse, shop.settings.zone
    shop.failpoint("count.before_read")
    if previous is None:
        stored = [shop.lake.absolute(work.path) for work in works if work.path]
        warehouse.register_files("previous", stored, RESULT_SCHEMA)
    else:
        warehouse.register("previous", previous)
    # A window stays what it is where what it would be computed from was kept long enough.
    is_gone = uncomputable(shop.ledger, grain)
    targets = [target for target in _targets(warehouse, grain, works, span, shop) if not is_gone(target.window)]
    if not targets:
        commit_buckets(shop.ledger, [BucketCommit(work, grain) for work in works if work.marks], zone, publish=False)
        return
    warehouse.register("computed", _compared(compute(targets), shop))
    merged = warehouse.run(
        "count/merge_windows",
        grain=str(grain),
        empty_hll=shop.empty_hll,
        final_before_s=span.final_before_s,
        computed_at=from_epoch(int(shop.ledger.now())),
    )
    commits = []
    for work, rows in _by_bucket(merged, works, grain, shop):
        revisions = list(_revisions(rows, grain))
        if revisions or previous is not None:
            commits.append(_write_bucket(shop, grain, work, rows, revisions))
        elif work.marks:
            commits.append(BucketCommit(work, grain))
    shop.failpoint("count.before_commit")
    shop.lake.require(commit.file.file for commit in commits if commit.file is not None)
    try:
        commit_buckets(shop.ledger, commits, zone, publish=shop.settings.results_topic is not None)
    except LostRace:
        for commit in commits:
            if commit.file is not None:
                shop.lake.absolute(commit.file.file.path).unlink(missing_ok=True)
        raise
    shop.failpoint("count.after_commit")
    report.computed += len(targets)
    report.changed += [revision for commit in commits for revision in commit.revisions]
    report.buckets |= {commit.work.bucket for commit in commits if commit.file is not None}


def _compared(computed: pa.Table, shop: Workshop) -> pa.Table:
    """The computed windows, and whether their counts by dimension are others than those of `previous`."""
    changed = pa.nulls(computed.num_rows, pa.bool_())
    if shop.settings.dimension_keys:
        shop.warehouse.register("computed", computed)
        changed = shop.warehouse.run("count/changed_entries")["entries_changed"]
    return computed.append_column("entries_changed", changed)


def final_before_s(shop: Workshop) -> int | None:
    """Windows that end at or before this are final: the watermark has passed them by the allowed lateness."""
    watermark_s = known_watermark_s(shop.ledger)
    return None if watermark_s is None else watermark_s - shop.settings.allowed_lateness_s


def newest_row(shop: Workshop, grain: Grain) -> dict[str, Any] | None:
    """The newest row of a grain that event time has reached: a flipped timestamp may have counted in a later one."""
    watermark_s = known_watermark_s(shop.ledger)
    path = newest_file(shop.ledger, grain, watermark_s)
    rows = shop.lake.read(path).drop_columns(["hll", "history", "by_dimension"]).to_pylist() if path else []
    reached = [row for row in rows if watermark_s is None or to_epoch(row["window_start"]) <= watermark_s]
    return max(reached or rows, key=lambda row: row["window_start"], default=None)


def _write_bucket(
    shop: Workshop, grain: Grain, work: BucketWork, rows: pa.Table, revisions: list[Revision]
) -> BucketCommit:
    table = rows.select(RESULT_SCHEMA.names).cast(RESULT_SCHEMA)
    folder = f"results/{grain}/{BUCKET[grain]}={from_epoch(work.bucket.start_s):%Y-%m-%dT%H%M}"
    file = shop.lake.write(f"{folder}/v{work.version + 1}-{secrets.token_hex(4)}.parquet", table)
    return BucketCommit(
        work,
        grain,
        file=DataFile("result", file),
        windows=table.num_rows,
        provisional=table["status"].to_pylist().count("provisional"),
        revisions=revisions,
    )


def _targets(
    warehouse: Warehouse, grain: Grain, works: list[BucketWork], span: ProvisionalSpan, shop: Workshop
) -> list[Target]:
    zone = shop.settings.zone
    reasons = {mark.window_start_s: mark.reason for work in works for mark in work.marks}
    provisional = warehouse.run(
        "count/provisional_windows",
        final_before_s=span.final_before_s,
        recent_from_s=span.recent_from_s,
        recent_until_s=span.recent_until_s,
    )
    for start in provisional["window_start_s"].to_pylist():
        reasons.setdefault(start, "live")
    return [Target(window_at(grain, start, zone), reason) for start, reason in sorted(reasons.items())]


def targets_table(targets: Sequence[Target], users: dict[int, int] | None = None) -> pa.Table:
    """The relation `targets`; `users` maps window starts to exact counts."""
    users = users or {}
    return pa.table(
        [
            [target.window.start_s for target in targets],
            [target.window.end_s for target in targets],
            [target.reason for target in targets],
            [users.get(target.window.start_s) for target in targets],
        ],
        schema=TARGETS_SCHEMA,
    )


def with_entries(computed: pa.Table, warehouse: Warehouse, settings: Settings, statement: str) -> pa.Table:
    """The computed windows with their counts by dimension, which a statement of its own gives where any are set."""
    names = settings.dimension_keys
    if not names:
        return computed.append_column("by_dimension", pa.nulls(computed.num_rows, ENTRIES))
    entries = warehouse.run(statement, dimensions=list(names), most=settings.dimension_values, lg_k=settings.lg_k)
    if not entries["window_start_s"].equals(computed["window_start_s"]):
        raise AssertionError(f"{statement}: windows other than the targets")  # both are in order of the targets
    return computed.append_column("by_dimension", entries["by_dimension"].cast(ENTRIES))


def _by_bucket(
    merged: pa.Table, works: list[BucketWork], grain: Grain, shop: Workshop
) -> Iterator[tuple[BucketWork, pa.Table]]:
    """Rows of each bucket. `merged` is in window order, so each bucket's rows are consecutive or absent."""
    zone = shop.settings.zone
    places: dict[int, list[int]] = defaultdict(list)
    for place, start in enumerate(merged["window_start"].to_pylist()):
        bucket = bucket_of(window_at(grain, to_epoch(start), zone), zone)
        places[bucket.start_s].append(place)
    for work in works:
        mine = places.get(work.bucket.start_s, [])
        yield work, merged.slice(mine[0], len(mine)) if mine else merged.slice(0, 0)


def _revisions(rows: pa.Table, grain: Grain) -> Iterator[Revision]:
    changed = rows.filter(rows["row_changed"]).drop_columns(["hll", "history", "by_dimension"])
    for row in changed.to_pylist():
        yield Revision(
            window=Window(grain, to_epoch(row["window_start"]), to_epoch(row["window_end"])),
            revision=row["revision"],
            frames=row["frames"],
            unique_users=row["unique_users"],
            estimate=row["estimate"],
            estimate_lower=row["estimate_lower"],
            estimate_upper=row["estimate_upper"],
            previous_unique_users=row["previous_unique_users"],
            previous_estimate=row["previous_estimate"],
            status=row["status"],
            reason=row["reason"],
            answer_changed=row["answer_changed"],
        )
