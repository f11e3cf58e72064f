"""Moves between frames, held and quarantine: what a person lets count, takes back, or has read again.

    admit      held frames of a range count: their windows get a new revision, with the reason `admitted`
    withdraw   the way back, reason `withdrawn`: frames that the log alone would not have counted are held again
    replay     quarantined records that can be read by now (another `ts_unit`, a newer version) go where their
               event time says, reason `replayed`

Some files at a time are rewritten and committed in one transaction, which takes the old ones away: a kill in
between leaves whole files moved or not moved, a second call goes on with the rest, and no row is ever moved twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uniq_pipeline.frames import Reason, parse_frames
from uniq_pipeline.intake import count_minutes
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.expiry import CLOSES, expired_spans
from uniq_pipeline.ledger.files import DataFile, files_with_events, files_with_rows
from uniq_pipeline.ledger.moves import (
    MoveCommit,
    Place,
    admitted_places,
    commit_move,
)
from uniq_pipeline.loading import event_seconds, minutes_of, new_batch_id, write_aside, write_frames
from uniq_pipeline.rejudge import judge_again
from uniq_pipeline.results import Workshop
from uniq_pipeline.rewrite import Take, late_frames, move_notes, places_of, rejected_minutes, write_rest

# Classes that do not count by themselves.
HELD_CLASSES = frozenset({EventClass.VERY_LATE, EventClass.FUTURE})

# Files taken in one commit, and rows after which it is made: each file costs a few milliseconds to rewrite.
FILES_AT_ONCE = 50
ROWS_AT_ONCE = 500_000
BYTES_AT_ONCE = 128 << 20


@dataclass
class MoveReport:
    """What was moved. `classes` are event classes of the rows, or reasons for which they were quarantined."""

    kind: Kind
    files: int = 0
    frames: int = 0  # rows that count now
    held: int = 0  # rows that are held now
    expired: int = 0  # rows that stay held: the frames or results of their windows have expired
    minutes: int = 0  # event minutes touched, counted once a commit
    classes: Counter[str] = field(default_factory=Counter)

    @property
    def moved(self) -> int:
        return self.frames + self.held


Progress = Callable[[int, int], None]  # files done, files in all


def admit(
    shop: Workshop,
    start_s: int,
    end_s: int,
    classes: Collection[EventClass] = HELD_CLASSES,
    *,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> MoveReport:
    """Lets held frames with event times in `[start_s, end_s)` count.

    Raises LostRace when another run moved the same frames; what was committed before that stays.
    """
    report = MoveReport(Kind.ADMIT)
    paths = files_with_events(shop.ledger, "held", start_s, end_s)
    closed = expired_spans(shop.ledger, CLOSES)
    known = admitted_places(shop.ledger)

    def find(path: str) -> Take:
        table = shop.lake.read(path)
        moved = _in_range(table, start_s, end_s, classes)
        is_closed = closed.contain(event_seconds(table))
        report.expired += int((moved & is_closed).sum())
        moved &= ~is_closed
        if known:
            moved &= np.array([place not in known for place in places_of(table)], bool)
        return Take(path, table, moved)

    for takes in _groups(paths, find, progress):
        frames = pa.concat_tables([take.rows for take in takes]).unify_dictionaries()
        minutes = count_minutes(frames)
        delivery = Delivery(admitted=frames.num_rows, frames=frames.num_rows, late=late_frames(frames))
        _note(report, takes, frames, frames.slice(0, 0))
        if not dry_run:
            _store(
                shop,
                Kind.ADMIT,
                takes,
                delivery,
                frames=frames,
                reason="admitted",
                held_minutes={key: -records for key, records in minutes.items()},
                admitted=set(places_of(frames)),
            )
    return report


def withdraw(
    shop: Workshop,
    start_s: int,
    end_s: int,
    classes: Collection[EventClass] = HELD_CLASSES,
    *,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> MoveReport:
    """Holds frames with event times in `[start_s, end_s)` that are very late or from the future, but count.

    Raises LostRace like `admit`.
    """
    report = MoveReport(Kind.WITHDRAW)
    paths = files_with_events(shop.ledger, "frames", start_s, end_s)
    labels = [event_class.label for event_class in classes]

    def find(path: str) -> Take | None:
        if not shop.lake.may_hold(path, "event_class", labels):
            return None
        table = shop.lake.read(path)
        return Take(path, table, _in_range(table, start_s, end_s, classes))

    for takes in _groups(paths, find, progress):
        held = pa.concat_tables([take.rows for take in takes]).unify_dictionaries()
        delivery = Delivery(withdrawn=held.num_rows, held=held.num_rows, late=-late_frames(held))
        _note(report, takes, held.slice(0, 0), held)
        if not dry_run:
            _store(
                shop,
                Kind.WITHDRAW,
                takes,
                delivery,
                held=held,
                reason="withdrawn",
                held_minutes=count_minutes(held),
                withdrawn=set(places_of(held)),
            )
    return report


def replay(
    shop: Workshop,
    reasons: Collection[Reason] = tuple(Reason),
    *,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> MoveReport:
    """Reads quarantined records again, under the settings in force; those that are frames now leave quarantine.

    A record is judged by what its log said of event time where it stood; where the log said nothing, because
    nothing in it could be read, the records of a file are judged among themselves, like those of a log of its own.
    """
    report = MoveReport(Kind.REPLAY)
    paths = files_with_rows(shop.ledger, "quarantine")
    wanted = pa.array([str(reason) for reason in reasons])

    def find(path: str) -> Take:
        table = shop.lake.read(path)
        chosen = pc.is_in(table["reason"], wanted).to_numpy(zero_copy_only=False).astype(bool)
        return Take(path, table, chosen & _readable(shop, table))

    for takes in _groups(paths, find, progress):
        judged = [part for take in takes for part in judge_again(shop, take.rows)]
        frames = pa.concat_tables([part[0] for part in judged]).unify_dictionaries()
        held = pa.concat_tables([part[1] for part in judged]).unify_dictionaries()
        moved = pa.concat_tables([take.rows for take in takes])
        delivery = Delivery(
            replayed=moved.num_rows, frames=frames.num_rows, held=held.num_rows, late=late_frames(frames)
        )
        _note(report, takes, frames, held, moved["reason"])
        if not dry_run:
            _store(
                shop,
                Kind.REPLAY,
                takes,
                delivery,
                frames=frames,
                held=held,
                reason="replayed",
                held_minutes=count_minutes(held),
                no_longer_rejected={key: -records for key, records in rejected_minutes(moved).items()},
            )
    return report


def _groups(paths: Sequence[str], find: Callable[[str], Take | None], progress: Progress) -> Iterator[list[Take]]:
    """Files with rows to move, as many as go into one commit."""
    takes: list[Take] = []
    rows = size_bytes = 0
    for done, path in enumerate(paths, 1):
        take = find(path)
        if take is not None and take.moved.any():
            takes.append(take)
            rows += int(take.moved.sum())
            size_bytes += take.table.nbytes
        is_full = len(takes) >= FILES_AT_ONCE or rows >= ROWS_AT_ONCE or size_bytes >= BYTES_AT_ONCE
        if takes and (is_full or done == len(paths)):
            yield takes
            takes, rows, size_bytes = [], 0, 0
        progress(done, len(paths))


def _store(
    shop: Workshop,
    kind: Kind,
    takes: Sequence[Take],
    delivery: Delivery,
    *,
    reason: str,
    frames: pa.Table | None = None,
    held: pa.Table | None = None,
    held_minutes: Counter[tuple[int, str]] | dict[tuple[int, str], int],
    no_longer_rejected: dict[tuple[int, str], int] | None = None,
    admitted: Collection[Place] = (),
    withdrawn: Collection[Place] = (),
) -> None:
    """Writes the files and commits."""
    started = time.monotonic()
    batch_id = new_batch_id(shop.ledger.now())
    topics = sorted({str(topic) for take in takes for topic in take.rows["topic"].unique().to_pylist()})
    footer = move_notes(batch_id, kind, topics, delivery, [take.path for take in takes])
    shop.failpoint("move.before_write")
    files: list[DataFile] = []
    if frames is not None:
        files += write_frames(shop.lake, frames, batch_id, footer)
    if held is not None and held.num_rows:
        files.append(write_aside(shop.lake, "held", held, batch_id, footer))
    files += [write_rest(shop.lake, take, batch_id) for take in takes]
    changed = [table for table in (frames, held if kind is Kind.WITHDRAW else None) if table is not None]
    shop.failpoint("move.before_commit")
    shop.lake.require(data.file for data in files)
    commit_move(
        shop.ledger,
        MoveCommit(
            batch=Batch(batch_id, kind, footer["uniq.topic"], delivery, files, time.monotonic() - started),
            taken=[take.path for take in takes],
            minutes_s=sorted({minute for table in changed for minute in minutes_of(table)}),
            reason=reason,
            held_minutes={key: records for key, records in held_minutes.items() if records},
            rejected_minutes=no_longer_rejected or {},
            admitted=admitted,
            withdrawn=withdrawn,
        ),
        refine=shop.settings.refined_topic is not None,
    )
    shop.failpoint("move.after_commit")


def _in_range(table: pa.Table, start_s: int, end_s: int, classes: Collection[EventClass]) -> np.ndarray:
    """bool[rows]: which rows lie in `[start_s, end_s)` and are of these classes."""
    seconds = event_seconds(table)
    labels = pa.array([event_class.label for event_class in classes])
    of_class = pc.is_in(table["event_class"].cast(pa.string()), labels).to_numpy(zero_copy_only=False)
    return of_class.astype(bool) & (seconds >= start_s) & (seconds < end_s)


def _note(
    report: MoveReport, takes: Sequence[Take], frames: pa.Table, held: pa.Table, labels: pa.ChunkedArray | None = None
) -> None:
    report.files += len(takes)
    report.frames += frames.num_rows
    report.held += held.num_rows
    report.minutes += len(minutes_of(pa.concat_tables([frames, held])))
    if labels is None:
        labels = pa.concat_tables([frames, held])["event_class"].cast(pa.string())
    report.classes.update(labels.to_pylist())


def _readable(shop: Workshop, table: pa.Table) -> np.ndarray:
    """bool[rows]: which quarantined records are frames under the settings in force."""
    readable = np.zeros(table.num_rows, bool)
    readable[parse_frames(table["payload"].to_pylist(), shop.settings.ts_unit).index] = True
    return readable
