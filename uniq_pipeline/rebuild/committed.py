"""Which of the batches that a lake tells of were committed, and which of their files count.

Batches of a log are chosen by their offsets (see chains). A move takes rows out of files that count, so each file
has at most one successor, and a batch whose file was taken was committed. What is left over are orphans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from uniq_pipeline.errors import LakeError
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.moves import Place
from uniq_pipeline.names import batch_of, mover_of, origin_of, rest_after
from uniq_pipeline.offsets import OffsetRange, life_of, topic_of
from uniq_pipeline.rebuild.chains import Chain, Link, Overlap, find_chain
from uniq_pipeline.rebuild.remains import Found, Remains


@dataclass(frozen=True)
class Loss:
    """What a batch brought and the lake has no more. Without offsets: rows that a move wrote."""

    topic: str
    topic_id: str
    offsets: tuple[OffsetRange, ...]
    why: str

    def __str__(self) -> str:
        where = ", ".join(f"topic partition {r.kafka_partition} {shown(r)}" for r in self.offsets)
        return (f"topic {self.topic}, {where}: " if where else "") + self.why


@dataclass
class LogChain:
    """The batches of one log in order, and what they span. `goes_on` is false of an older topic of the same name."""

    topic: str
    topic_id: str
    batch_ids: list[str]
    starts: dict[int, int]
    ends: dict[int, int]
    goes_on: bool = True


@dataclass
class Committed:
    """The choice.

    moves    in an order in which they can have been done
    live     files that count; retired: those that moves took rows out of
    without  batches of the logs' chains of which something is missing: nothing of them counts
    partly   the same, but what is left of them was merged with others and counts
    notices  sentences for a person
    """

    logs: list[LogChain] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    without: set[str] = field(default_factory=set)
    partly: set[str] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def choose(lake: Lake, remains: Remains) -> Committed:
    """Raises LakeError when two batches overlap and it cannot be told which of them counts."""
    named = {path for found in remains.batches.values() for path in found.taken}
    named |= {file.rest_of for file in remains.files.values() if file.rest_of is not None}
    certain = {batch_of(path) for path in named} | {mover for path in named if (mover := mover_of(path))}
    by_log: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for found in remains.batches.values():
        if not found.is_move:
            by_log[found.topic, found.topic_id].append(found)
    # Only files that counted are merged, and then removed: a merge that lacks one of them was committed.
    certain |= {
        found.batch_id
        for found in remains.batches.values()
        if found.merge is not None and any(path not in remains.files for path in found.taken)
    }
    committed = Committed()
    for (topic, topic_id), batches in sorted(by_log.items()):
        _choose_log(committed, topic, topic_id, batches, remains, certain)
    _choose_generations(committed)
    _choose_moves(committed, lake, remains, named, certain)
    return committed


def shown(r: OffsetRange) -> str:
    return f"[{r.start_offset}, {r.end_offset})"


def _choose_log(
    committed: Committed, topic: str, topic_id: str, batches: Sequence[Found], remains: Remains, certain: set[str]
) -> None:
    ranges = {found.batch_id: _ranges(found) for found in batches}
    links = [
        Link(found.batch_id, ranges[found.batch_id], not found.missing_rows(), found.batch_id in certain)
        for found in batches
        if ranges[found.batch_id]
    ]
    try:
        chain = find_chain(links) if links else Chain()
    except Overlap as overlap:
        raise LakeError(_overlap_text(topic, overlap)) from None
    log = LogChain(topic, topic_id, [], chain.starts, dict(chain.ends))
    unknown = sorted(path for path in remains.damaged if batch_of(path) not in remains.batches)
    among = f" (unless it is one of these, which cannot be read: {', '.join(unknown[:5])})" if unknown else ""
    for gap in chain.gaps:
        why = f"no file in the lake is of a batch that read them{among}"
        committed.losses.append(Loss(topic, topic_id, (gap,), why))
    whole = {link.batch_id for link in links if link.is_whole}
    for batch_id in reversed(chain.batch_ids):
        if batch_id in whole:
            log.batch_ids.append(batch_id)
            continue
        lost = [r for r in ranges[batch_id] if batch_id in certain or r.end_offset != log.ends[r.kafka_partition]]
        why = _what_is_missing(remains.batches[batch_id], remains)
        for r in set(ranges[batch_id]) - set(lost):
            log.ends[r.kafka_partition] = r.start_offset
        if lost:
            if batch_id in _merged(remains):
                log.batch_ids.append(batch_id)
                committed.partly.add(batch_id)
            else:
                committed.without.add(batch_id)
            committed.losses.append(Loss(topic, topic_id, tuple(lost), why))
        else:
            where = ", ".join(f"topic partition {r.kafka_partition} {shown(r)}" for r in ranges[batch_id])
            committed.notices.append(
                f"{why}: killed while it wrote, or damaged; nothing came after it, so topic {topic}, {where} will be "
                f"read again"
            )
    log.batch_ids.reverse()
    _add_renewals(committed, log, [found for found in batches if not ranges[found.batch_id]], remains, certain)
    if log.batch_ids:
        committed.logs.append(log)


def _merged(remains: Remains) -> set[str]:
    """Batches of which a file was merged with others."""
    return {batch_of(path) for found in remains.batches.values() if found.merge is not None for path in found.taken}


def _ranges(found: Found) -> tuple[OffsetRange, ...]:
    return tuple(
        sorted(
            OffsetRange(r.kafka_partition, r.start_offset, r.end_offset)
            for r in found.reads
            if r.end_offset > r.start_offset
        )
    )


def _overlap_text(topic: str, overlap: Overlap) -> str:
    one, other = overlap.of_beside, overlap.of_chosen
    return (
        f"topic {topic}, topic partition {one.kafka_partition}: batch {overlap.beside.batch_id} with offsets "
        f"{shown(one)} overlaps batch {overlap.chosen.batch_id} with {shown(other)}, and no choice of batches has the "
        f"offsets of both once. Nothing was changed. Which of them counts only a person can say: move the files of "
        f"the other (named after it) out of the lake, and run this again."
    )


def _what_is_missing(found: Found, remains: Remains) -> str:
    parts = [
        f"{there:,} of {should:,} {'quarantined records' if kind == 'quarantine' else f'rows of {kind}/'}"
        for kind, (should, there) in found.missing_rows().items()
    ]
    damaged = [path for path in remains.damaged if batch_of(path) == found.batch_id]
    because = f" ({', '.join(damaged)} cannot be read)" if damaged else " (a file of it is missing)"
    return f"batch {found.batch_id} has only {' and '.join(parts)}{because}"


def _add_renewals(
    committed: Committed, log: LogChain, renewals: Iterable[Found], remains: Remains, certain: set[str]
) -> None:
    """Batches that read nothing and only admitted what earlier ones held, at the end of a file."""
    admitted = {place for batch_id in log.batch_ids for place in remains.batches[batch_id].admitted}
    chosen: list[Found] = []
    for found in sorted(renewals, key=lambda found: (found.batch_id in certain, found.batch_id), reverse=True):
        if found.missing_rows():
            committed.notices.append(f"{_what_is_missing(found, remains)}: what it admitted stays held")
        elif not admitted & set(found.admitted) and all(
            read.start_offset <= log.ends.get(read.kafka_partition, -1) for read in found.reads
        ):
            admitted |= set(found.admitted)
            chosen.append(found)
    for found in sorted(chosen, key=lambda found: found.batch_id):
        at = {read.kafka_partition: read.start_offset for read in found.reads}
        place = next(
            (
                i
                for i, batch_id in enumerate(log.batch_ids)
                if any(
                    r.start_offset >= at.get(r.kafka_partition, r.end_offset) and r.end_offset > r.start_offset
                    for r in remains.batches[batch_id].reads
                )
            ),
            len(log.batch_ids),
        )
        log.batch_ids.insert(place, found.batch_id)


def _choose_generations(committed: Committed) -> None:
    """Of the logs of a topic the newest goes on; what older ones brought still counts."""
    newest: dict[str, LogChain] = {}
    for log in sorted(committed.logs, key=lambda log: (life_of(log.topic), max(log.batch_ids))):
        newest[topic_of(log.topic)] = log
    for log in committed.logs:
        log.goes_on = newest[topic_of(log.topic)] is log
        if not log.goes_on:
            committed.notices.append(
                f"topic {log.topic} was recreated: {log.topic_id} does not go on, what it brought still counts"
            )


def _choose_moves(committed: Committed, lake: Lake, remains: Remains, named: set[str], certain: set[str]) -> None:
    """Moves one after the other, as long as what they took from counts; then the files that count are known."""
    banned: set[str] = set()
    while True:
        heads, moves, retired = _follow(committed, remains, named, certain, banned)
        beaten = _beaten(committed, lake, remains, heads, moves)
        if beaten is None:
            break
        if beaten in certain or any(path not in remains.files for path in remains.batches[beaten].taken):
            raise LakeError(
                f"batch {beaten} admitted held frames that their log proved too; it cannot be told which was "
                f"committed. Nothing was changed."
            )
        banned.add(beaten)
        committed.notices.append(f"batch {beaten} (admit) was beaten by a drain: what it moved is held")
    committed.moves = moves
    for move in sorted((found for found in remains.batches.values() if found.is_move), key=lambda m: m.batch_id):
        if move.batch_id in moves or move.batch_id in banned:
            continue
        if move.merge is not None:
            committed.notices.append(
                f"batch {move.batch_id} ({move.kind}) does not count: what it took is where it was"
            )
            continue
        if move.batch_id in certain:
            why = (
                _what_is_missing(move, remains)
                if move.missing_rows()
                else f"a file that batch {move.batch_id} left is missing"
            )
            committed.losses.append(Loss(move.topic, "", (), f"{why}: what it moved ({move.kind}) is lost"))
        else:
            committed.notices.append(
                f"batch {move.batch_id} ({move.kind}) was not finished: what it moved is where it was"
            )
    for origin, path in sorted(heads.items()):
        batch_id = batch_of(origin)
        if path in remains.files:
            continue
        found = remains.batches[batch_id]
        state = "cannot be read" if path in remains.damaged else "is missing"
        why = f"file {path} of batch {batch_id} {state}"
        if found.is_move:
            committed.losses.append(Loss(found.topic, "", (), f"{why}: what it moved ({found.kind}) is lost"))
        elif batch_id not in committed.without:
            (committed.partly if batch_id in _merged(remains) else committed.without).add(batch_id)
            committed.losses.append(Loss(found.topic, found.topic_id, _ranges(found), why))
    counting = {batch_id for log in committed.logs for batch_id in log.batch_ids} - committed.without | set(moves)
    committed.live = [
        path for origin, path in sorted(heads.items()) if path in remains.files and batch_of(origin) in counting
    ]
    committed.retired = sorted(path for path in retired if path in remains.files and batch_of(path) in counting)


def _follow(
    committed: Committed, remains: Remains, named: set[str], certain: set[str], banned: Collection[str]
) -> tuple[dict[str, str], list[str], set[str]]:
    """(file as it was written -> what counts of it now, moves in order, files they took from)."""
    heads = {
        origin: origin
        for log in committed.logs
        for batch_id in log.batch_ids
        if batch_id not in committed.without
        for origin in remains.batches[batch_id].written
    }
    left = {
        found.batch_id: found
        for found in remains.batches.values()
        if found.is_move and found.batch_id not in banned and _is_whole(found, remains, named)
    }
    moves: list[str] = []
    retired: set[str] = set()

    def counts(path: str) -> bool:
        if batch_of(path) in committed.without:
            return path not in retired
        return heads.get(origin_of(path)) == path

    def may_be_next(move: Found) -> bool:
        if move.batch_id in certain:
            return True
        return not any(rival.batch_id in certain and set(rival.taken) & set(move.taken) for rival in left.values())

    while ready := [move for move in left.values() if all(map(counts, move.taken)) and may_be_next(move)]:
        move = max(ready, key=lambda move: (_is_named(move, named), move.batch_id in certain, move.batch_id))
        for path in move.taken:
            retired.add(path)
            if move.merge is not None:
                heads.pop(origin_of(path), None)
            elif batch_of(path) not in committed.without:
                heads[origin_of(path)] = rest_after(path, move.batch_id)
        if move.merge is not None:
            heads[move.merge.path] = move.merge.path
        heads |= {origin: origin for origin in move.written}
        moves.append(move.batch_id)
        del left[move.batch_id]
    return heads, moves, retired


def _is_named(move: Found, named: set[str]) -> bool:
    return move.merge is not None and move.merge.path in named


def _is_whole(move: Found, remains: Remains, named: set[str]) -> bool:
    """Whether everything that a move wrote stands, or was taken by a later one."""
    if move.merge is not None:
        return move.merge.path in remains.files or move.merge.path in named
    rests = [rest_after(path, move.batch_id) for path in move.taken]
    return not move.missing_rows() and all(rest in remains.files or rest in named for rest in rests)


def _beaten(
    committed: Committed, lake: Lake, remains: Remains, heads: dict[str, str], moves: Sequence[str]
) -> str | None:
    """A move that admitted frames which a log proved: both cannot have been committed."""
    proved: set[Place] = set()
    for log in committed.logs:
        for batch_id in log.batch_ids:
            places = {(log.topic, p, offset) for p, offset in remains.batches[batch_id].admitted}
            if places & proved:
                raise LakeError(f"batch {batch_id}: an earlier one admitted the same held frames. Nothing was changed.")
            if batch_id not in committed.without:
                proved |= places
    if not proved:
        return None
    for batch_id, places in admitted_places(lake, remains, heads.values(), moves):
        if not proved.isdisjoint(places):
            return batch_id
    return None


def admitted_places(
    lake: Lake,
    remains: Remains,
    live: Iterable[str],
    moves: Collection[str],
    kinds: Collection[Kind] = (Kind.ADMIT,),
) -> Iterable[tuple[str, Iterable[Place]]]:
    """(move, frames) of each file with frames that admits, or moves of other kinds, let count."""
    moved = set(moves)
    for path in live:
        batch_id = batch_of(path)
        if batch_id in moved and path.startswith("frames/") and remains.batches[batch_id].kind in kinds:
            if path in remains.files:
                yield batch_id, places_in(lake, path)


def merged_places(lake: Lake, remains: Remains, live: Iterable[str]) -> Iterable[tuple[str, Iterable[Place]]]:
    """(merge, frames) of each file that frames which admits let count were merged into, among others."""
    for path in live:
        merge = remains.batches[batch_of(path)].merge
        if merge is not None and path.startswith("frames/") and path in remains.files:
            if any(remains.batches[file.batch_id].kind in (Kind.ADMIT, Kind.REDRAIN) for file in merge.files):
                yield batch_of(path), places_in(lake, path)


def places_in(lake: Lake, path: str) -> Iterable[Place]:
    """Topic, topic partition and offset of each row."""
    table = lake.read(path, ["topic", "kafka_partition", "kafka_offset"])
    columns = (table[name].to_pylist() for name in ("topic", "kafka_partition", "kafka_offset"))
    return zip(*columns, strict=True)
