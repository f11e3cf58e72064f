"""Which batches of a log follow each other: the chain a ledger had, found again from what each batch read.

A lake holds more batches than were committed: one that was killed before its commit, or lost a race, leaves files
too, and the offsets it read are read again by the next. All of them start where a committed batch ended. So the
chain that was committed is found by following starts and ends, and what is beside it overlaps with it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from uniq_pipeline.offsets import OffsetRange

# Where two batches start at the same offset either may be the one; after so many tries it is nobody's guess.
TRIES = 50

# At its end more than one chain is possible; so many are looked at for the one that reaches furthest.
MORE_TRIES = 8


@dataclass(frozen=True)
class Link:
    """A batch, and what it read: no range is empty, and there is one a topic partition at most.

    is_whole    all of its files are there
    is_certain  it was committed: a move took rows of it
    """

    batch_id: str
    ranges: tuple[OffsetRange, ...]
    is_whole: bool = True
    is_certain: bool = False


@dataclass(frozen=True)
class Chain:
    """Batches in an order in which they can have been committed.

    starts, ends  of each topic partition: what the chain spans
    gaps          in the span, but in no batch at all
    """

    batch_ids: list[str] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    gaps: list[OffsetRange] = field(default_factory=list)


class Overlap(Exception):
    """Two batches read the same offsets, and one of them others, and no chain has the offsets of both."""

    def __init__(self, beside: Link, chosen: Link, of_beside: OffsetRange, of_chosen: OffsetRange) -> None:
        super().__init__(f"{beside.batch_id} {of_beside} overlaps {chosen.batch_id} {of_chosen}")
        self.beside = beside
        self.chosen = chosen
        self.of_beside = of_beside
        self.of_chosen = of_chosen


def find_chain(links: Sequence[Link]) -> Chain:
    """The chain in which every offset of every whole batch is found once, with as few gaps as there are.

    A batch counts for all its ranges or not at all. Of two that read the same, the certain one is taken, then the
    whole one, then the later. Batches that are not whole are part of it where nothing else has their offsets.

    Raises Overlap when there is none.
    """
    links = _without_twins(links)
    starting = _by_start(links)
    overlap: Overlap | None = None
    for with_gaps in (False, True):
        # Each decision: was a batch that has rivals taken? The last one is changed when they lead nowhere.
        decisions: list[bool] = []
        best: _Walk | None = None
        left = TRIES
        while left:
            left -= 1
            walk = _Walk(links, starting, decisions)
            walk.go(with_gaps)
            found = walk.conflict(with_gaps)
            if found is False:
                left = min(left, MORE_TRIES)
                if best is None or walk.reach > best.reach:
                    best = walk
            elif isinstance(found, Overlap):
                overlap = overlap or found
            while decisions and decisions[-1] is not walk.first_choice[len(decisions) - 1]:
                decisions.pop()
            if not decisions:
                break
            decisions[-1] = not decisions[-1]
        if best is not None:
            return Chain([link.batch_id for link in best.taken], best.starts, best.ends, best.gaps)
    assert overlap is not None  # whatever is no gap is an overlap
    raise overlap


def _rank(link: Link) -> tuple[bool, bool, str]:
    return link.is_certain, link.is_whole, link.batch_id


def _without_twins(links: Sequence[Link]) -> list[Link]:
    """Of batches that read exactly the same, one."""
    best: dict[tuple[OffsetRange, ...], Link] = {}
    for link in links:
        known = best.get(link.ranges)
        if known is None or _rank(link) > _rank(known):
            best[link.ranges] = link
    return list(best.values())


def _by_start(links: Sequence[Link]) -> dict[tuple[int, int], list[Link]]:
    starting = defaultdict(list)
    for link in links:
        for r in link.ranges:
            starting[r.kafka_partition, r.start_offset].append(link)
    return starting


class _Walk:
    """One attempt: from the lowest offsets on, always to a batch that starts where the chain stands."""

    def __init__(
        self, links: Sequence[Link], starting: dict[tuple[int, int], list[Link]], decisions: list[bool]
    ) -> None:
        self._links = links
        self._starting = starting
        self._decisions = decisions
        self.first_choice: list[bool] = []  # of each decision, what it was before it was ever changed
        self._banned: set[str] = set()
        self._taken_ids: set[str] = set()
        self._last_start: dict[int, int] = {}
        self.taken: list[Link] = []
        self.starts: dict[int, int] = {}
        self.gaps: list[OffsetRange] = []
        for link in links:
            for r in link.ranges:
                p = r.kafka_partition
                self.starts[p] = min(r.start_offset, self.starts.get(p, r.start_offset))
                self._last_start[p] = max(r.start_offset, self._last_start.get(p, r.start_offset))
        self.ends = dict(self.starts)

    @property
    def reach(self) -> int:
        """Offsets of whole batches."""
        return sum(r.size for link in self.taken if link.is_whole for r in link.ranges)

    def go(self, with_gaps: bool) -> None:
        ready = [(link.batch_id, link) for link in self._links if self._is_ready(link)]
        heapq.heapify(ready)
        while True:
            while ready:
                link = heapq.heappop(ready)[1]
                if self._is_ready(link) and self._is_chosen(link):
                    self._take(link)
                    ready = self._now_ready(ready, link.ranges)
            skipped = self._skip() if with_gaps else []
            if not skipped:
                return
            self.gaps += skipped
            ready = self._now_ready(ready, skipped)

    def _is_ready(self, link: Link) -> bool:
        if link.batch_id in self._banned or link.batch_id in self._taken_ids:
            return False
        return all(self.ends[r.kafka_partition] == r.start_offset for r in link.ranges)

    def _is_ahead(self, link: Link) -> bool:
        if link.batch_id in self._banned or link.batch_id in self._taken_ids:
            return False
        return all(self.ends[r.kafka_partition] <= r.start_offset for r in link.ranges)

    def _take(self, link: Link) -> None:
        self.taken.append(link)
        self._taken_ids.add(link.batch_id)
        for r in link.ranges:
            self.ends[r.kafka_partition] = r.end_offset

    def _now_ready(self, ready: list, moved: Sequence[OffsetRange]) -> list:
        for r in moved:
            for link in self._starting.get((r.kafka_partition, r.end_offset), ()):
                if self._is_ready(link):
                    heapq.heappush(ready, (link.batch_id, link))
        return ready

    def _is_chosen(self, link: Link) -> bool:
        rivals = {
            rival.batch_id: rival
            for r in link.ranges
            for rival in self._starting[r.kafka_partition, r.start_offset]
            if rival is not link and self._is_ahead(rival)
        }
        if not rivals:
            return True
        place = len(self.first_choice)
        self.first_choice.append(all(self._merit(link) > self._merit(rival) for rival in rivals.values()))
        if place == len(self._decisions):
            self._decisions.append(self.first_choice[place])
        if not self._decisions[place]:
            self._banned.add(link.batch_id)
        return self._decisions[place]

    def _merit(self, link: Link) -> tuple[bool, bool, bool, str]:
        return link.is_certain, not self._is_dead_end(link), link.is_whole, link.batch_id

    def _is_dead_end(self, link: Link) -> bool:
        """Something starts later, but nothing where this one ends."""
        return any(
            self._last_start[r.kafka_partition] > r.start_offset
            and (r.kafka_partition, r.end_offset) not in self._starting
            for r in link.ranges
        )

    def _skip(self) -> list[OffsetRange]:
        """The least that must be skipped to go on, where something is left that nothing taken covers."""
        best: tuple[int, str, Link] | None = None
        for link in self._links:
            if self._is_ahead(link):
                lost = sum(r.start_offset - self.ends[r.kafka_partition] for r in link.ranges)
                if best is None or (lost, link.batch_id) < best[:2]:
                    best = (lost, link.batch_id, link)
        if best is None:
            return []
        skipped = [
            OffsetRange(r.kafka_partition, self.ends[r.kafka_partition], r.start_offset)
            for r in best[2].ranges
            if self.ends[r.kafka_partition] < r.start_offset
        ]
        for gap in skipped:
            self.ends[gap.kafka_partition] = gap.end_offset
        return skipped

    def conflict(self, with_gaps: bool) -> Overlap | bool:
        """What is wrong with the result: True is a gap where none may be, False nothing."""
        boundaries = {p: {self.starts[p], end} for p, end in self.ends.items()}
        holes = {p: [gap for gap in self.gaps if gap.kafka_partition == p] for p in self.ends}
        for link in self.taken:
            for r in link.ranges:
                boundaries[r.kafka_partition].add(r.start_offset)
                if not link.is_whole and r.end_offset != self.ends[r.kafka_partition]:
                    holes[r.kafka_partition].append(r)
        for link in self._links:
            if link.batch_id in self._taken_ids or not (link.is_whole or link.is_certain):
                continue
            for r in link.ranges:
                end = self.ends[r.kafka_partition]
                is_lost = r.start_offset > end or any(_meet(r, hole) for hole in holes[r.kafka_partition])
                # One that was beaten starts where the chain stood, and the topic still has what it read further.
                is_astray = r.end_offset > end and r.start_offset not in boundaries[r.kafka_partition]
                if link.is_certain or is_lost or is_astray:
                    return self._overlap(link, r)
        return any(holes.values()) and not with_gaps

    def _overlap(self, link: Link, r: OffsetRange) -> Overlap:
        for chosen in self.taken:
            for mine in link.ranges:
                for taken in chosen.ranges:
                    if _meet(mine, taken):
                        return Overlap(link, chosen, mine, taken)
        return Overlap(link, link, r, r)


def _meet(one: OffsetRange, other: OffsetRange) -> bool:
    if one.kafka_partition != other.kafka_partition:
        return False
    return one.start_offset < other.end_offset and other.start_offset < one.end_offset
