"""Stored results held against what their inputs give: minutes from frames, coarser windows from finer ones, uid sets.

Windows that are marked to be computed are not looked at, nor are those whose inputs are not kept any more. What differs
is looked at again before it is called a fault: a run beside this one may have stored it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow.compute as pc

from uniq_pipeline.count import counter
from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.ledger.audit import still_live
from uniq_pipeline.ledger.audited import BucketState, SetState, bucket_starts, bucket_state, set_starts, set_state
from uniq_pipeline.ledger.expiry import READ_BY_SET, expired_spans, uncomputable
from uniq_pipeline.ledger.files import frame_files, result_files
from uniq_pipeline.ledger.sets import set_files
from uniq_pipeline.results import Target, Workshop
from uniq_pipeline.rollup import merger
from uniq_pipeline.schemas import FRAMES_SCHEMA, UID_SET_SCHEMA
from uniq_pipeline.sets import inputs
from uniq_pipeline.verify.report import REPAIR, Check, Fault, FaultKind, Progress
from uniq_pipeline.windows import CHILD, GRAINS, HOUR_S, ROLLUP_ORDER, Grain, Window, to_epoch

# Windows of one bucket that a sample takes: reading their inputs is most of the work, and the same for one and for all.
SAMPLED_OF_BUCKET = 12

TRIES = 3

_COMPARED = ("frames", "unique_users", "late_frames", "held_frames", "rejected_frames", "hll")


@dataclass(frozen=True)
class Sample:
    """How many windows of each grain are computed again, chosen by `random`; None: every one."""

    windows: int | None
    random: Random


class _Changed(Exception):
    """Somebody stored something else meanwhile."""


def check_results(shop: Workshop, sample: Sample, progress: Progress) -> list[Check]:
    return [_check_grain(shop, grain, sample, progress) for grain in GRAINS]


def _check_grain(shop: Workshop, grain: Grain, sample: Sample, progress: Progress) -> Check:
    source = "frames" if grain is Grain.MINUTE else f"{CHILD[grain]}s"
    check = Check(f"{grain} results are what their {source} give", "windows")
    # The settings' dimensions may be others than when a window was counted: the whole is compared.
    plain = Workshop(
        shop.settings.model_copy(update={"dimensions": ""}), shop.ledger, shop.lake, shop.warehouse, shop.empty_hll
    )
    limit = None if sample.windows is None else sample.windows  # a bucket has a window at least
    wanted = sample.windows
    starts = bucket_starts(shop.ledger, grain, limit)
    for done, start_s in enumerate(starts, 1):
        if wanted is not None and check.looked_at >= wanted:
            break
        most = None if wanted is None else min(SAMPLED_OF_BUCKET, wanted - check.looked_at)
        _check_bucket(plain, grain, start_s, most, sample.random, check)
        progress(f"{grain} results", done if wanted is None else check.looked_at, wanted or len(starts))
    if check.skipped:
        check.note = "to be computed anyway, or of inputs that are not kept or cannot be read"
    return check


def _check_bucket(shop: Workshop, grain: Grain, start_s: int, most: int | None, random: Random, check: Check) -> None:
    for left in reversed(range(TRIES)):
        state = bucket_state(shop.ledger, grain, start_s)
        if state is None:
            return
        try:
            looked_at, skipped, faults = _compare(shop, state, most, random)
        except FileDamaged:
            if not left:
                check.skipped += 1  # the audit of files tells of it
            continue
        if faults and (left or not still_live(shop.ledger, state.path)):
            now = bucket_state(shop.ledger, grain, start_s)
            marked = now is None or now.version != state.version or now.dirty - state.dirty
            if marked or left:
                continue
        check.looked_at += looked_at
        check.skipped += skipped
        check.faults += faults
        return


def _compare(shop: Workshop, state: BucketState, most: int | None, random: Random) -> tuple[int, int, list[Fault]]:
    """(windows looked at, skipped, faults) of one bucket."""
    grain, faults = state.grain, []
    columns = ["window_start", "window_end", "status", *_COMPARED]
    rows = {to_epoch(row["window_start"]): row for row in shop.lake.read(state.path, columns).to_pylist()}
    provisional = sum(row["status"] == "provisional" for row in rows.values())
    if provisional != state.provisional:
        text = f"file {state.path} has {provisional} provisional windows, its bucket says {state.provisional}"
        faults.append(_of_window(grain, next(iter(rows.values())), text))
    chosen = [start for start in sorted(rows) if start not in state.dirty]
    skipped = len(rows) - len(chosen)
    if most is not None and len(chosen) > most:
        chosen = sorted(random.sample(chosen, most))
    is_gone = uncomputable(shop.ledger, grain)
    kept = [start for start in chosen if _has_inputs(shop, grain, rows[start], is_gone)]
    skipped += len(chosen) - len(kept)
    if not kept:
        return 0, skipped, faults
    targets = [Target(Window(grain, start, to_epoch(rows[start]["window_end"])), "live") for start in kept]
    computed = (counter(shop) if grain is Grain.MINUTE else merger(shop, grain))(targets)
    for again in computed.to_pylist():
        row = rows[again["window_start_s"]]
        again["hll"] = shop.empty_hll if again["hll"] is None else again["hll"]
        for name in _COMPARED:
            if row[name] != again[name] and not (name == "unique_users" and again[name] is None):
                what = "another state" if name == "hll" else f"{again[name]:,}"
                stored = "" if name == "hll" else f" {row[name]}"
                text = f"{grain} {_shown(row)} in file {state.path}: stored is {name}{stored}, computed again {what}"
                faults.append(_of_window(grain, row, text))
                break
    return len(kept), skipped, faults


def _has_inputs(shop: Workshop, grain: Grain, row: dict[str, Any], is_gone: Callable[[Window], bool]) -> bool:
    """Whether what a window was computed from is kept still, or there was nothing."""
    start_s, end_s = to_epoch(row["window_start"]), to_epoch(row["window_end"])
    if is_gone(Window(grain, start_s, end_s)):
        return False
    if grain is Grain.MINUTE:
        return not row["frames"] or bool(frame_files(shop.ledger, [start_s], [start_s - start_s % HOUR_S]))
    files = result_files(shop.ledger, CHILD[grain], start_s, end_s)
    return not row["frames"] or bool(files)


def _shown(row: dict[str, Any]) -> str:
    return f"{row['window_start']:%Y-%m-%dT%H:%M:%SZ}"


def _of_window(grain: Grain, row: dict[str, Any], text: str) -> Fault:
    window = Window(grain, to_epoch(row["window_start"]), to_epoch(row["window_end"]))
    return Fault(FaultKind.WINDOW, f"{text}; {REPAIR} computes it again", window=window)


def check_sets(shop: Workshop, sample: Sample, progress: Progress) -> Check:
    """Uid sets have as many users as the ledger says, and are those of what they are made of."""
    check = Check("uid sets are those of their frames", "sets")
    for grain in ROLLUP_ORDER:
        starts = set_starts(shop.ledger, grain, sample.windows)
        for done, start_s in enumerate(starts, 1):
            _check_set(shop, grain, start_s, check)
            progress(f"{grain} sets", done, len(starts))
    if check.skipped:
        check.note = "to be built anyway, or cannot be read"
    return check


def _check_set(shop: Workshop, grain: Grain, start_s: int, check: Check) -> None:
    for left in reversed(range(TRIES)):
        state = set_state(shop.ledger, grain, start_s)
        if state is None:
            check.skipped += 1
            return
        window = Window(grain, state.start_s, state.end_s)
        try:
            wrong = _wrong_set(shop, window, state)
        except FileDamaged:
            if not left:
                check.skipped += 1
            continue
        if wrong and (left or set_state(shop.ledger, grain, start_s) != state):
            continue
        check.looked_at += 1
        if wrong:
            text = f"uid set of {window}, file {state.path}: {wrong}; {REPAIR} builds it again"
            check.faults.append(Fault(FaultKind.SET, text, state.path, window))
        return


def _wrong_set(shop: Workshop, window: Window, state: SetState) -> str | None:
    stored = shop.lake.read(state.path, ["uid", "dimensions"])
    users = pc.count_distinct(stored["uid"]).as_py()
    if users != state.users:
        return f"it has {users:,} users, the ledger says {state.users:,}"
    if not is_set_kept(shop, window):
        return None
    sets, frames = inputs(shop, window)
    shop.warehouse.register_files("sets", sets, UID_SET_SCHEMA)
    shop.warehouse.register_files("frames", frames, FRAMES_SCHEMA)
    again = shop.warehouse.run_large("sets/distinct_uids", start_s=window.start_s, end_s=window.end_s)
    if again["uid"].to_pylist() != stored["uid"].to_pylist():
        return f"its users are not the {pc.count_distinct(again['uid']).as_py():,} of what it is made of"
    return None


def is_set_kept(shop: Workshop, window: Window) -> bool:
    """Whether all that a set was made of is there still."""
    if expired_spans(shop.ledger, READ_BY_SET[window.grain]).overlap(window.start_s, window.end_s):
        return False
    if window.grain is Grain.HOUR:
        return bool(frame_files(shop.ledger, [window.start_s, window.end_s - 60], [window.start_s]))
    if window.start_s % HOUR_S or window.end_s % HOUR_S:
        return False  # made of frames, too, where a local midnight cuts an hour
    child = CHILD[window.grain]
    known = set_files(shop.ledger, child, window.start_s, window.end_s)
    return all(start in known for start in _children_with_frames(shop, child, window))


def _children_with_frames(shop: Workshop, grain: Grain, window: Window) -> Iterable[int]:
    for path in result_files(shop.ledger, grain, window.start_s, window.end_s):
        for row in shop.lake.read(path, ["window_start", "frames"]).to_pylist():
            start_s = to_epoch(row["window_start"])
            if window.start_s <= start_s < window.end_s and row["frames"]:
                yield start_s
