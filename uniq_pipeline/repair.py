"""Repair: mends what an audit found, as far as Kafka and the lake still have what it takes.

    files of frames, held, quarantine  their records are read from Kafka again (see restore)
    result files                       their windows are computed again, and their revisions go on
    uid sets                           built again
    results that are not what their inputs give, hours that were never counted: marked, with the reason `repaired`

Each is a transaction of its own: interrupted half way, the next repair finds what is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from uniq_pipeline.count import counter
from uniq_pipeline.drain import Source
from uniq_pipeline.errors import FileDamaged, LostRace, UniqError
from uniq_pipeline.ledger.audited import BucketState, bucket_of_file, bucket_state, dirty_marks, set_of_file
from uniq_pipeline.ledger.dirty import BucketWork, DirtyMark, ProvisionalSpan, mark_for_count, mark_for_sets
from uniq_pipeline.ledger.expiry import uncomputable
from uniq_pipeline.ledger.files import frame_files, result_files
from uniq_pipeline.ledger.logs import read_positions
from uniq_pipeline.ledger.outbox import put_again
from uniq_pipeline.ledger.places import StoredFile, data_files
from uniq_pipeline.redrain import Restoring, lost_together, refuse_gone, restoring
from uniq_pipeline.restore import restore
from uniq_pipeline.results import RefreshReport, Target, Workshop, final_before_s, refresh_group
from uniq_pipeline.rollup import merger
from uniq_pipeline.schemas import RESULT_SCHEMA
from uniq_pipeline.verify import FaultKind, Report
from uniq_pipeline.verify.windows import is_set_kept
from uniq_pipeline.windows import BUCKET, CHILD, GRAINS, MINUTE_S, Grain, Window, from_epoch, to_epoch, windows_in

REASON = "repaired"

OpenSource = Callable[[str], Source]  # a topic's


@dataclass
class Plan:
    """What a repair is going to do.

    left  sentences about what it cannot mend
    """

    restored: list[Restoring] = field(default_factory=list)
    results: list[BucketState] = field(default_factory=list)
    sets: list[Window] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.restored or self.results or self.sets or self.windows)

    def lines(self) -> Iterator[str]:
        """What a person is told first."""
        for one in self.restored:
            names = ", ".join(file.path for file in one.files)
            where = "; ".join(
                f"topic {gap.topic}, topic partition {gap.offsets.kafka_partition} "
                f"[{gap.offsets.start_offset}, {gap.offsets.end_offset})"
                for gap in one.gaps
            )
            yield f"{names}: its {one.rows:,} rows are read again from {where}"
        for state in self.results:
            bucket = Window(BUCKET[state.grain], state.start_s, state.end_s)
            yield f"{state.path}: the {state.grain} results of {bucket} are computed again"
        for window in self.sets:
            yield f"uid set of {window} is built again"
        if self.windows:
            shown = ", ".join(map(str, self.windows[:3])) + (", ..." if len(self.windows) > 3 else "")
            yield f"{len(self.windows):,} windows are marked to be computed again: {shown}"
        for text in self.left:
            yield f"left as it is: {text}"
        if self.is_empty and not self.left:
            yield "nothing to repair"


@dataclass
class RepairReport:
    """What was done before the tick that computes the rest; `left` as in the plan."""

    files: int = 0
    rows: int = 0
    results: int = 0
    sets: int = 0
    windows: int = 0
    left: list[str] = field(default_factory=list)


def plan_repair(shop: Workshop, found: Report, open_source: OpenSource) -> Plan:
    """What of an audit's faults can be mended, and how; changes nothing."""
    plan = Plan(left=[fault.text for fault in found.faults if fault.kind is FaultKind.LEDGER])
    by_kind = {
        kind: sorted({fault.path for fault in found.faults if fault.kind is kind and fault.path}) for kind in FaultKind
    }
    _plan_data_files(shop, by_kind[FaultKind.DATA_FILE], open_source, plan)
    lost_sets = {*by_kind[FaultKind.SET_FILE], *by_kind[FaultKind.SET]}
    _plan_results(shop, by_kind[FaultKind.RESULT_FILE], plan)
    for path in sorted(lost_sets):
        window = set_of_file(shop.ledger, path)
        if window is None:
            continue  # built again meanwhile
        try:
            is_kept = is_set_kept(shop, window)
        except FileDamaged:
            is_kept = True  # a result file that is mended first
        if is_kept:
            plan.sets.append(window)
        else:
            plan.left.append(f"file {path}: what the uid set of {window} was made of is not kept any more")
    plan.sets.sort()
    plan.windows = sorted({f.window for f in found.faults if f.kind is FaultKind.WINDOW and f.window})
    return plan


def _plan_data_files(shop: Workshop, paths: Sequence[str], open_source: OpenSource, plan: Plan) -> None:
    files: list[StoredFile] = data_files(shop.ledger, paths)
    for together, ranges in lost_together(shop, files, set(paths)):
        try:
            one = restoring(shop, together, ranges)
            for gap in one.gaps:
                state, positions = open_source(gap.topic).describe(), read_positions(shop.ledger, gap.topic)
                refuse_gone(state, positions, gap.offsets)
            plan.restored.append(one)
        except UniqError as error:
            names = ", ".join(file.path for file in together)
            plan.left.append(f"{names}, {sum(file.rows for file in together):,} rows: {error}")


def _plan_results(shop: Workshop, paths: Sequence[str], plan: Plan) -> None:
    for path in paths:
        place = bucket_of_file(shop.ledger, path)
        state = None if place is None else bucket_state(shop.ledger, *place)
        if state is None:
            continue  # replaced meanwhile
        if _has_inputs(shop, state):
            plan.results.append(state)
        else:
            plan.left.append(f"file {path}: what its windows were computed from is not kept any more")
    plan.results.sort(key=lambda state: (GRAINS.index(state.grain), state.start_s))


def _has_inputs(shop: Workshop, state: BucketState) -> bool:
    is_gone = uncomputable(shop.ledger, state.grain)
    if any(map(is_gone, windows_in(state.grain, state.start_s, state.end_s, shop.settings.zone))):
        return False
    if state.grain is Grain.MINUTE:
        return bool(frame_files(shop.ledger, [state.start_s, state.end_s - MINUTE_S], [state.start_s]))
    return bool(result_files(shop.ledger, CHILD[state.grain], state.start_s, state.end_s))


def repair(
    shop: Workshop, plan: Plan, open_source: OpenSource, progress: Callable[[int, int], None] = lambda done, total: None
) -> RepairReport:
    """Does what is planned; a tick that closes windows has to follow. What another run mended meanwhile is left."""
    report = RepairReport(left=list(plan.left))
    total = len(plan.restored) + len(plan.results)
    for done, one in enumerate(plan.restored, 1):
        try:
            restore(shop, {topic: open_source(topic) for topic in {g.topic for g in one.gaps}}, one.files, one.gaps)
            report.files += len(one.files)
            report.rows += one.rows
        except LostRace:
            pass  # mended by another run
        except UniqError as error:
            report.left.append(str(error))
        progress(done, total)
    for done, state in enumerate(plan.results, len(plan.restored) + 1):
        try:
            mend_results(shop, state)
            report.results += 1
        except LostRace:
            pass
        except FileDamaged as error:
            report.left.append(f"{state.path}: {error}")
        progress(done, total)
    mark_for_sets(shop.ledger, plan.sets, REASON, shop.settings.zone)
    mark_for_count(shop.ledger, plan.windows, REASON, shop.settings.zone)
    report.sets, report.windows = len(plan.sets), len(plan.windows)
    return report


def mend_results(shop: Workshop, state: BucketState) -> None:
    """Computes all windows of a bucket whose file is lost, and stores them as its next version.

    A window's revision grows by one at most with each version of its file. So it cannot have been further than what the
    newest readable version had, and one for each version since; it goes on from there, and never goes back.

    Raises LostRace when another run replaced the file first, and FileDamaged when an input cannot be read.
    """
    zone, grain = shop.settings.zone, state.grain
    bucket = Window(BUCKET[grain], state.start_s, state.end_s)
    windows = [one for one in windows_in(grain, state.start_s, state.end_s, zone) if one.start_s >= state.start_s]
    marked = dirty_marks(shop.ledger, grain, state.start_s)
    work = BucketWork(
        bucket,
        state.version,
        state.path,
        tuple(DirtyMark(window.start_s, marked.get(window.start_s, 0), REASON) for window in windows),
    )
    compute = counter(shop) if grain is Grain.MINUTE else merger(shop, grain)
    earlier, versions = _earlier_version(shop, state)
    known = {to_epoch(start) for start in earlier["window_start"].to_pylist()}
    computed = compute([Target(window, REASON) for window in windows]).to_pylist()
    unknown = [row for row in computed if row["frames"] and row["window_start_s"] not in known]
    previous = pa.concat_tables([_further(earlier, versions + 1), _stand_ins(grain, unknown, versions)])
    report = RefreshReport(grain)
    span = ProvisionalSpan(final_before_s(shop))
    refresh_group(shop, grain, [work], compute, span, report, previous)
    if shop.settings.results_topic is not None:
        now = bucket_state(shop.ledger, grain, state.start_s)
        if now is not None:
            rows = shop.lake.read(now.path, ["window_start", "window_end", "revision"]).to_pylist()
            sent = [
                (Window(grain, to_epoch(row["window_start"]), to_epoch(row["window_end"])), row["revision"])
                for row in rows
            ]
            put_again(shop.ledger, sent, zone)


def _earlier_version(shop: Workshop, state: BucketState) -> tuple[pa.Table, int]:
    """(rows of the newest readable version before the lost one, how many versions it is behind)."""
    folder = state.path.rpartition("/")[0]
    versions = []
    for path in shop.lake.listing(folder):
        name = re.fullmatch(r"v(\d+)-\w+\.parquet", path.rpartition("/")[2])
        if name and int(name[1]) < state.version:
            versions.append((int(name[1]), path))
    for version, path in sorted(versions, reverse=True):
        try:
            return shop.lake.read(path).cast(RESULT_SCHEMA), state.version - version
        except (FileDamaged, pa.ArrowException):
            continue
    return RESULT_SCHEMA.empty_table(), state.version


def _further(rows: pa.Table, versions: int) -> pa.Table:
    place = rows.schema.get_field_index("revision")
    revisions = pa.array([revision + versions for revision in rows["revision"].to_pylist()], pa.int64())
    return rows.set_column(place, RESULT_SCHEMA.field("revision"), revisions)


def _stand_ins(grain: Grain, computed: Sequence[dict], revision: int) -> pa.Table:
    """Rows of which nothing is known but how far their revision can have been: all else is computed."""
    rows = [
        {
            "grain": str(grain),
            "window_start": from_epoch(row["window_start_s"]),
            "window_end": from_epoch(row["window_end_s"]),
            "status": "provisional",
            "reason": "live",
            "revision": revision,
            "history": [],
        }
        for row in computed
    ]
    return pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)
