"""Expiry: what was kept as long as the setting `retention` says goes, whole days at a time.

What was computed from it stays, and stays as it is: a window whose inputs are gone is not computed again, a set whose
inputs are gone is not built again, and a frame that comes for such a time is held. Nothing goes while something waits
to be computed from it.
"""

from __future__ import annotations

import calendar
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from uniq_pipeline.config import SETS
from uniq_pipeline.errors import FileDamaged, LostRace
from uniq_pipeline.intake import count_minutes
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.expiry import Expired, bucket_starts, drop_sets, stored_set_starts
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.merges import LiveFile, MergeCommit, commit_merge, live_data_files
from uniq_pipeline.ledger.moves import admitted_places, pending_places
from uniq_pipeline.ledger.tallies import Tally
from uniq_pipeline.loading import new_batch_id
from uniq_pipeline.merging import notes_of_merge, sources_of, topic_of
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import FRAMES_SCHEMA
from uniq_pipeline.windows import HOUR_S, MINUTE_S, Grain, Window, window_at

_DAY_S = 86_400

# What must not wait to be computed where these go.
_NEEDS: Mapping[str, tuple[tuple[Task, Grain], ...]] = {
    "frames": ((Task.COUNT, Grain.MINUTE), (Task.SET, Grain.HOUR), (Task.SET, Grain.DAY)),
    "minute_counts": ((Task.COUNT, Grain.MINUTE), (Task.COUNT, Grain.HOUR), (Task.COUNT, Grain.DAY)),
    "hour_counts": ((Task.COUNT, Grain.MINUTE), (Task.COUNT, Grain.HOUR), (Task.COUNT, Grain.DAY)),
    "hour_sets": ((Task.SET, Grain.HOUR), (Task.SET, Grain.DAY)),
    "day_sets": ((Task.SET, Grain.DAY), (Task.SET, Grain.WEEK), (Task.SET, Grain.MONTH)),
    "week_sets": ((Task.SET, Grain.WEEK),),
    "month_sets": ((Task.SET, Grain.MONTH), (Task.SET, Grain.YEAR)),
    "year_sets": ((Task.SET, Grain.YEAR),),
}
# What goes at once: so that what is made of it is whole, or not there at all.
_UNIT = {"day_sets": Grain.MONTH, "week_sets": Grain.WEEK, "month_sets": Grain.YEAR, "year_sets": Grain.YEAR}

_RESULTS = {"minute_counts": Grain.MINUTE, "hour_counts": Grain.HOUR}


@dataclass
class ExpireReport:
    """What went, by what it was. `waiting` are units that something still waits to be computed from."""

    files: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


Progress = Callable[[str, int, int], None]  # what, units done, units in all


def expire(shop: Workshop, *, progress: Progress = lambda what, done, total: None) -> ExpireReport:
    """Lets go what was kept long enough. Each unit (a day, of coarser sets a month or year) is one transaction.

    gc removes the files, when the grace for those who read them is over.
    """
    report = ExpireReport()
    for what, days in shop.settings.kept_days.items():
        before_s = int(shop.ledger.now()) - days * _DAY_S
        units = _units(shop, what, before_s)
        for done, unit in enumerate(units, 1):
            try:
                unit(report)
            except LostRace:
                report.waiting[what] += 1
            except FileDamaged as error:
                report.failed.append(str(error))
            progress(what, done, len(units))
    return report


Unit = Callable[[ExpireReport], None]


def _units(shop: Workshop, what: str, before_s: int) -> list[Unit]:
    if what == "frames":
        return list(_days_of_frames(shop, before_s))
    if what in ("held", "quarantine"):
        return list(_days_set_aside(shop, what, before_s))
    if what in _RESULTS:
        starts = bucket_starts(shop.ledger, _RESULTS[what], before_s)
        # of an hour that a midnight cuts the day it ends in
        ends = (s + HOUR_S - 1 if what == "minute_counts" else s for s in starts)
        days = _windows(shop, Grain.DAY, ends, before_s)
        return [_results_of(shop, what, day) for day in days]
    assert what in SETS
    grain = Grain(what.removesuffix("_sets"))
    starts = stored_set_starts(shop.ledger, grain, before_s)
    return [_sets_of(shop, what, grain, unit) for unit in _windows(shop, _UNIT.get(what, Grain.DAY), starts, before_s)]


def _windows(shop: Workshop, grain: Grain, instants: Iterator[int] | Sequence[int], before_s: int) -> list[Window]:
    found = {window_at(grain, instant, shop.settings.zone) for instant in instants}
    return sorted(window for window in found if window.end_s <= before_s)


def _days_of_frames(shop: Workshop, before_s: int) -> Iterator[Unit]:
    days: dict[Window, list[LiveFile]] = defaultdict(list)
    for file in live_data_files(shop.ledger, ["frames"]):
        if file.hour_s is not None and file.hour_s < before_s:
            days[window_at(Grain.DAY, file.hour_s + HOUR_S - 1, shop.settings.zone)].append(file)
    for day, files in sorted(days.items()):
        if day.end_s <= before_s:
            yield _frames_of(shop, day, files)


def _frames_of(shop: Workshop, day: Window, files: Sequence[LiveFile]) -> Unit:
    def unit(report: ExpireReport) -> None:
        first_s = min(file.hour_s for file in files if file.hour_s is not None)
        rows = sum(file.rows for file in files)
        span = Expired("frames", min(first_s, day.start_s), day.end_s)
        _replace(shop, "frames", files, Delivery(withdrawn=rows, expired=rows), report, span=span)

    return unit


def _days_set_aside(shop: Workshop, what: str, before_s: int) -> Iterator[Unit]:
    days: dict[str, list[LiveFile]] = defaultdict(list)
    for file in live_data_files(shop.ledger, [what]):
        days[file.path.split("/")[1].removeprefix("day=")].append(file)
    for day, files in sorted(days.items()):
        if calendar.timegm(time.strptime(day, "%Y-%m-%d")) + _DAY_S <= before_s:
            yield _held_of(shop, files) if what == "held" else _quarantined_of(shop, files)


def _held_of(shop: Workshop, files: Sequence[LiveFile]) -> Unit:
    """But for files with frames that their log may still prove."""

    def unit(report: ExpireReport) -> None:
        pending, counting = pending_places(shop.ledger), admitted_places(shop.ledger)
        gone, tally, admitted = [], Counter[tuple[int, str]](), 0
        for file in files:
            table = shop.lake.read(file.path, ["topic", "kafka_partition", "kafka_offset", "event_time", "event_class"])
            places = list(zip(*(table[name].to_pylist() for name in table.column_names[:3]), strict=True))
            if pending.isdisjoint(places):
                gone.append(file)
                kept = [place not in counting for place in places]
                tally.update(count_minutes(table.filter(kept)))
                admitted += sum(kept)
        if gone:
            delivery = Delivery(admitted=admitted, expired=admitted)
            _replace(shop, "held", gone, delivery, report, tallies={"held": tally})

    return unit


def _quarantined_of(shop: Workshop, files: Sequence[LiveFile]) -> Unit:
    def unit(report: ExpireReport) -> None:
        tally: Counter[tuple[int, str]] = Counter()
        for file in files:
            table = shop.lake.read(file.path, ["kafka_time", "reason"])
            times_us = table["kafka_time"].cast("int64").to_pylist()
            for time_us, reason in zip(times_us, table["reason"].to_pylist(), strict=True):
                if time_us is not None:
                    tally[time_us // 1_000_000 // MINUTE_S * MINUTE_S, reason] += 1
        rows = sum(file.rows for file in files)
        delivery = Delivery(replayed=rows, expired=rows)
        _replace(shop, "quarantine", files, delivery, report, tallies={"rejected": tally})

    return unit


def _results_of(shop: Workshop, what: str, day: Window) -> Unit:
    def unit(report: ExpireReport) -> None:
        grain = _RESULTS[what]
        first_s = day.start_s - day.start_s % HOUR_S if grain is Grain.MINUTE else day.start_s
        last_s = day.end_s - day.end_s % HOUR_S if grain is Grain.MINUTE else day.end_s
        _replace(shop, what, [], Delivery(), report, span=Expired(what, first_s, last_s), results=grain)

    return unit


def _sets_of(shop: Workshop, what: str, grain: Grain, unit_window: Window) -> Unit:
    def unit(report: ExpireReport) -> None:
        span = Expired(what, unit_window.start_s, unit_window.end_s)
        dropped = drop_sets(shop.ledger, span, _NEEDS[what], grain)
        report.files[what] += len(dropped)
        report.waiting[what] += not dropped

    return unit


def _replace(
    shop: Workshop,
    what: str,
    files: Sequence[LiveFile],
    delivery: Delivery,
    report: ExpireReport,
    *,
    span: Expired | None = None,
    results: Grain | None = None,
    tallies: Mapping[str, Tally] | None = None,
) -> None:
    """Puts an empty file in the place of these, with what their footers say, and commits."""
    started = time.monotonic()
    batch_id = new_batch_id(shop.ledger.now())
    paths = [file.path for file in files]
    sources = sources_of(shop.lake, paths)
    topic = topic_of(sources)
    notes = notes_of_merge(Kind.EXPIRE, batch_id, topic, delivery, paths, sources, tallies=tallies or {}, expired=span)
    name = f"expired/what={what}/{batch_id}.parquet"
    file = shop.lake.write(name, FRAMES_SCHEMA.empty_table().replace_schema_metadata(notes))
    batch = Batch(batch_id, Kind.EXPIRE, topic, delivery, [DataFile("expired", file)], time.monotonic() - started)
    shop.failpoint("expire.before_commit")
    shop.lake.require([file])
    try:
        commit = MergeCommit(batch, paths, expired=span, needs=_NEEDS.get(what, ()), results=results)
        retired = commit_merge(shop.ledger, commit)
    except LostRace:
        shop.lake.absolute(name).unlink(missing_ok=True)
        raise
    shop.failpoint("expire.after_commit")
    report.files[what] += retired
    report.records[what] += delivery.expired
