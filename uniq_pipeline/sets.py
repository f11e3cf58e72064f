"""Distinct-uid sets of closed windows, which give exact counts from the hour up.

An hour's set comes from its frames, a day's from its hours, weeks and months from days, years from months.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from uniq_pipeline.errors import FileDamaged, LostRace
from uniq_pipeline.ledger.expiry import READ_BY_SET, expired_spans
from uniq_pipeline.ledger.files import DataFile, frame_files
from uniq_pipeline.ledger.sets import ExactUsers, SetWork, commit_set, give_up_set, set_files, stale_sets
from uniq_pipeline.results import Progress, Workshop
from uniq_pipeline.schemas import FRAMES_SCHEMA, UID_SET_SCHEMA
from uniq_pipeline.spans import NOWHERE
from uniq_pipeline.windows import CHILD, HOUR_S, ROLLUP_ORDER, Grain, Window, from_epoch


@dataclass
class SetsReport:
    """Sets (re)built, by window, with their exact counts.

    damaged  windows whose set was not built because a file it is made of is damaged, and what is wrong with it
    """

    users: dict[Window, int] = field(default_factory=dict)
    damaged: dict[Window, FileDamaged] = field(default_factory=dict)


def build_sets(
    shop: Workshop,
    *,
    closed_before_s: int | None,
    progress: Progress = lambda done, total: None,
) -> SetsReport:
    """(Re)builds the set of every window that is closed, has frames, and has no set that is up to date."""
    report = SetsReport()
    if closed_before_s is None:
        return report
    for grain in ROLLUP_ORDER:
        works = stale_sets(shop.ledger, grain, shop.settings.zone, closed_before_s)
        gone = expired_spans(shop.ledger, READ_BY_SET[grain]) if works else NOWHERE
        for done, work in enumerate(works, 1):
            try:
                if gone.overlap(work.window.start_s, work.window.end_s):
                    give_up_set(shop.ledger, work, shop.settings.zone)
                else:
                    _build(shop, work, report)
            except FileDamaged as error:
                report.damaged[work.window] = error
            progress(done, len(works))
    return report


def _build(shop: Workshop, work: SetWork, report: SetsReport) -> None:
    window = work.window
    sets, frames = inputs(shop, window)
    shop.warehouse.register_files("sets", sets, UID_SET_SCHEMA)
    shop.warehouse.register_files("frames", frames, FRAMES_SCHEMA)
    uids = shop.warehouse.run_large("sets/distinct_uids", start_s=window.start_s, end_s=window.end_s)
    exact = _count(shop, uids)
    name = (
        f"sets/{window.grain}/{from_epoch(window.start_s):%Y-%m-%dT%H%M}/"
        f"v{work.version + 1}-{secrets.token_hex(4)}.parquet"
    )
    file = shop.lake.write(name, uids.cast(UID_SET_SCHEMA))
    shop.failpoint("sets.before_commit")
    shop.lake.require([file])
    try:
        commit_set(shop.ledger, work, DataFile("uid_set", file), exact, shop.settings.zone)
    except LostRace:  # another run has built it: nothing is missing
        shop.lake.absolute(name).unlink(missing_ok=True)
        return
    report.users[window] = exact.users


def _count(shop: Workshop, uids: pa.Table) -> ExactUsers:
    has_dimensions = uids["dimensions"].null_count < uids.num_rows
    users = pc.count_distinct(uids["uid"]).as_py() if has_dimensions else uids.num_rows
    if not shop.settings.dimension_keys:
        return ExactUsers(users)
    shop.warehouse.register("uids", uids)
    found = shop.warehouse.run(
        "sets/users_by_value",
        dimensions=list(shop.settings.dimension_keys),
        most=shop.settings.dimension_values,
    )
    by_value: dict[str, dict[str, int]] = {name: {} for name in shop.settings.dimension_keys}
    for row in found.to_pylist():
        by_value[row["dimension"]][row["value"]] = row["users"]
    return ExactUsers(users, by_value)


def inputs(shop: Workshop, window: Window) -> tuple[list[Path], list[Path]]:
    """The set files and the frames files a window's set is made of."""
    if window.grain is Grain.HOUR:
        return [], _frames(shop, [(window.start_s, window.end_s)])
    sets = set_files(shop.ledger, CHILD[window.grain], window.start_s, window.end_s)
    cut = [bound for bound in (window.start_s, window.end_s) if bound % HOUR_S]
    spans = [(bound - bound % HOUR_S, bound - bound % HOUR_S + HOUR_S) for bound in cut]
    return (
        [shop.lake.absolute(path) for path in sets.values()],
        _frames(shop, spans) if window.grain is Grain.DAY else [],
    )


def _frames(shop: Workshop, hours: Sequence[tuple[int, int]]) -> list[Path]:
    return [
        shop.lake.absolute(path)
        for start_s, end_s in hours
        for path in frame_files(shop.ledger, [start_s, end_s - 60], [start_s])
    ]
