"""The ledger held against itself, and against the files that stand in the lake."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice

from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.audit import (
    LiveFile,
    conservation,
    hours_not_counted,
    live_totals,
    name_faults,
    old_marks,
    pages_of_live_files,
    range_faults,
    still_live,
    unknown_among,
)
from uniq_pipeline.ledger.places import DATA_KINDS
from uniq_pipeline.verify.report import BY_HAND, REPAIR, Check, Fault, FaultKind, Progress
from uniq_pipeline.windows import HOUR_S, MINUTE_S, Grain, Window, iso

# Marks are computed within minutes; one that is older waits for something.
OLD_MARK_S = 3600

_FILE_FAULTS = {"result": FaultKind.RESULT_FILE, "uid_set": FaultKind.SET_FILE}


def check_ranges(ledger: Ledger) -> Check:
    looked_at, found = range_faults(ledger)
    check = Check("offset ranges without gap or overlap", "ranges", looked_at)
    for fault in found:
        where = f"topic {fault.topic}, topic partition {fault.kafka_partition}"
        text = f"{where}: offsets [{fault.start_offset}, {fault.end_offset}) {fault.what}; {BY_HAND}"
        check.faults.append(Fault(FaultKind.LEDGER, text))
    return check


def check_conservation(ledger: Ledger, lake: Lake) -> Check:
    looked_at, wrong, sums = conservation(ledger)
    check = Check("conservation", "batches", looked_at)
    if not looked_at and any(lake.listing(kind) for kind in DATA_KINDS):
        text = f"the ledger is empty, though the lake {lake.root} has files: it was lost; {REPAIR} makes it anew"
        check.faults.append(Fault(FaultKind.LEDGER, text))
    for batch_id in wrong:
        text = f"batch {batch_id}: records that came are not those that were kept; {BY_HAND}"
        check.faults.append(Fault(FaultKind.LEDGER, text))
    for one in sums:
        if not one.least <= one.rows <= one.most:
            text = f"{one.kind}/: files have {one.rows:,} rows, batches say {one.least:,}; {BY_HAND}"
            check.faults.append(Fault(FaultKind.LEDGER, text))
    return check


def check_names(ledger: Ledger) -> Check:
    looked_at, found = name_faults(ledger)
    check = Check("windows name files that count", "names", looked_at)
    for path, what in found:
        check.faults.append(Fault(FaultKind.LEDGER, f"file {path} {what}; {BY_HAND}", path))
    return check


def check_counted(ledger: Ledger) -> Check:
    """Hours with frames have minute results, or are marked."""
    check = Check("hours with frames are counted", "hours", 0)
    hours = hours_not_counted(ledger)
    check.looked_at = len(hours)
    for hour_s in hours:
        text = f"hour {iso(hour_s)} has frames, but no minute of it is counted or marked; {REPAIR} computes it"
        for minute_s in range(hour_s, hour_s + HOUR_S, MINUTE_S):
            window = Window(Grain.MINUTE, minute_s, minute_s + MINUTE_S)
            check.faults.append(Fault(FaultKind.WINDOW, text, window=window))
    return check


def old_marks_warning(ledger: Ledger) -> list[str]:
    count, since = old_marks(ledger, ledger.now() - OLD_MARK_S)
    if not count or since is None:
        return []
    return [
        f"{count:,} windows wait to be computed for more than an hour, since {iso(int(since))}: `uniq-pipeline drain`"
    ]


def check_files(ledger: Ledger, lake: Lake, *, quick: bool, progress: Progress) -> Check:
    """Every file that counts is there with its size; unless quick, with its checksum, its rows and its hour."""
    check = Check("files are there" if quick else "files are there and whole", "files")
    total_files, total_bytes, _ = live_totals(ledger)
    done_bytes = 0
    for page in pages_of_live_files(ledger):
        for file in page:
            wrong = _what_is_wrong(lake, file, quick)
            # Another run may have replaced it, and gc removed it, since the page was read.
            if wrong is not None and still_live(ledger, file.path):
                check.faults.append(_file_fault(file, wrong))
            check.looked_at += 1
            done_bytes += file.size_bytes
            if quick:
                progress("files", check.looked_at, total_files)
            else:
                progress("kB of files", done_bytes >> 10, total_bytes >> 10)
    return check


def _what_is_wrong(lake: Lake, file: LiveFile, quick: bool) -> str | None:
    try:
        size_bytes = lake.absolute(file.path).stat().st_size
    except OSError:
        return "is named by the ledger but is not there"
    if size_bytes != file.size_bytes:
        return f"has {size_bytes:,} bytes, was written with {file.size_bytes:,}"
    if quick:
        return None
    try:
        if lake.sha256(file.path) != file.sha256:
            return "is damaged: it has another sha256 than it was written with"
        footer = lake.footer(file.path)
    except (FileDamaged, OSError) as error:
        return f"cannot be read: {error}"
    if footer.rows != file.rows:
        return f"has {footer.rows:,} rows, the ledger says {file.rows:,}"
    if file.kind in ("frames", "held") and file.rows:
        bounds = footer.min_event_s, footer.max_event_s
        if bounds != (file.min_event_s, file.max_event_s):
            return f"has event times {bounds}, the ledger says {(file.min_event_s, file.max_event_s)}"
        hours = {bound // HOUR_S * HOUR_S for bound in bounds if bound is not None}
        if file.kind == "frames" and hours != {file.hour_s}:
            return f"has events of other hours than {file.hour_s}"
    return None


def _file_fault(file: LiveFile, wrong: str) -> Fault:
    kind = _FILE_FAULTS.get(file.kind, FaultKind.DATA_FILE)
    how = {
        FaultKind.DATA_FILE: "reads its records again, where Kafka has them still",
        FaultKind.RESULT_FILE: "computes its windows again",
        FaultKind.SET_FILE: "builds it again",
    }[kind]
    return Fault(kind, f"file {file.path} {wrong}; {REPAIR} {how}", file.path)


def count_orphans(ledger: Ledger, lake: Lake, progress: Callable[[int], None] = lambda done: None) -> int:
    """Files in the lake that the ledger does not know: gc removes them."""
    orphans = done = 0
    names = _names(lake)
    while some := list(islice(names, 5_000)):
        orphans += len(unknown_among(ledger, some))
        done += len(some)
        progress(done)
    return orphans


def _names(lake: Lake) -> Iterator[str]:
    for folder, _, files in os.walk(lake.root):
        below = os.path.relpath(folder, lake.root)
        if below.split(os.sep)[0] != "empty":
            yield from (os.path.join(below, name).replace(os.sep, "/").removeprefix("./") for name in files)
