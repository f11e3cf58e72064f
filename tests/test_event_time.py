"""Event time, end to end: one log, one answer; wrong timestamps and delays change what they must and no more."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.frames import MemoryTopic, Sent, frame, small_traffic
from support.ticks import run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.records import Records
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain

T0 = 1_767_225_600 - 240  # four minutes before a year, and an hour, ends
YEARS_S = 5 * 366 * 86_400


@pytest.fixture(autouse=True, scope="module")
def _minutes_and_hours_only() -> Iterator[None]:
    """Coarser grains pass the same code as hours, for seven times the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
        patch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))
        yield


def ask(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in ask_catalog(settings.catalog_path, sql).to_pylist()]


# 1. One log, one answer


@dataclass
class ShuffledTopic(MemoryTopic):
    """Gives its records in pieces of any size, the topic partitions in any order, as a broker does."""

    rng: Random | None = None

    def read(self, ranges: Sequence[OffsetRange]) -> Iterator[Records]:
        if self.rng is None:
            yield from super().read(ranges)
            return
        at = {r.kafka_partition: r.start_offset for r in ranges}
        ends = {r.kafka_partition: r.end_offset for r in ranges}
        while at:
            p = self.rng.choice(sorted(at))
            end = min(ends[p], at[p] + self.rng.choice([1, 7, 16, 40, 100]))
            yield self._records(p, at[p], end)
            at[p] = end
            if end == ends[p]:
                del at[p]


def log_of(seed: int, partitions: int, silence_s: int, loaded_later: bool = False) -> MemoryTopic:
    """Five minutes of late, flipped and broken frames around a silence.

    loaded_later  they came to the topic years after they happened: no Kafka time vouches for what follows the silence
    """
    topic = MemoryTopic(logs={p: [] for p in range(partitions)})
    traffic, rng = small_traffic(seed, frames_per_s=3, users=40), Random(seed)
    topic.send(traffic.records_between(T0, T0 + 150), rng)
    topic.send(traffic.records_between(T0 + 150 + silence_s, T0 + 300 + silence_s), rng)
    if loaded_later:
        for log in topic.logs.values():
            log[:] = [replace(sent, kafka_time_ms=sent.kafka_time_ms + YEARS_S * 1000) for sent in log]
    return topic


def answers(settings: Settings, topic: MemoryTopic) -> dict[str, list[tuple[Any, ...]]]:
    """All that must not depend on how a log was read."""
    windows = "window_start, frames, unique_users, hll[41:] AS registers, late_frames, held_frames, rejected_frames"
    place = "kafka_partition, kafka_offset"
    return {
        "minutes": ask(settings, f"SELECT {windows} FROM minute_counts WHERE frames > 0 ORDER BY 1"),
        "hours": ask(settings, f"SELECT {windows} FROM hour_counts WHERE frames > 0 ORDER BY 1"),
        "frames": ask(settings, f"SELECT {place}, event_time, uid, late_by_s FROM frames ORDER BY ALL"),
        "held": ask(settings, f"SELECT {place}, event_time, uid, event_class FROM held_frames ORDER BY ALL"),
        "quarantine": ask(settings, f"SELECT {place}, reason, payload FROM quarantine ORDER BY ALL"),
    }


def read_in_ticks(
    settings: Settings, topic: MemoryTopic, cuts: Sequence[float], seed: int | None, now_s: float
) -> None:
    """Ticks while the log grows to these parts of its length; each opens everything anew, as after a restart."""
    rng = None if seed is None else Random(seed)
    for part in (*cuts, 1):
        grown = {p: log[: round(part * len(log))] for p, log in topic.logs.items()}
        source = ShuffledTopic(topic.topic, topic.topic_id, grown, rng=rng)
        with open_workshop(settings, now=lambda: now_s) as shop:
            tick(shop, source, _no_sink)


def _no_sink() -> Any:
    raise AssertionError("nothing is published here")


# Not shrunk: a failure would take minutes to report, and what is drawn is small already.
@examples(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10_000),
    partitions=st.integers(1, 3),
    silence_s=st.sampled_from([0, 200, 5_000]),
    loaded_later=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=2).map(sorted),
    batch_frames=st.integers(100, 400),
    pieces=st.integers(0, 10_000),
    years_later=st.booleans(),
)
# Cut where frames wait to be proved.
@pytest.mark.slow
@example(
    seed=1,
    partitions=1,
    silence_s=5_000,
    loaded_later=True,
    cuts=[0.505, 0.52],
    batch_frames=100,
    pieces=1,
    years_later=False,
)
def test_one_log_gives_one_answer_whatever_the_batches_restarts_and_clock(
    make_settings, data_dir, seed, partitions, silence_s, loaded_later, cuts, batch_frames, pieces, years_later
):
    topic = log_of(seed, partitions, silence_s, loaded_later)
    live_s = T0 + 300 + silence_s
    with tempfile.TemporaryDirectory(dir=data_dir) as whole, tempfile.TemporaryDirectory(dir=data_dir) as split:
        at_once = make_settings(data_dir=Path(whole), topic=topic.topic)
        in_pieces = at_once.model_copy(update={"data_dir": Path(split), "batch_frames": batch_frames})
        read_in_ticks(at_once, topic, [], None, live_s)
        read_in_ticks(in_pieces, topic, cuts, pieces, live_s + years_later * YEARS_S)
        assert ask(at_once, "SELECT count(*) FROM batches") == [(1,)]
        one, other = answers(at_once, topic), answers(in_pieces, topic)
        assert sum(len(one[kind]) for kind in ("frames", "held", "quarantine")) == len(topic.delivered)
        for kind in one:
            assert other[kind] == one[kind], kind


def test_history_loaded_years_later_in_one_batch_is_what_it_was_live(make_settings, tmp_path):
    topic = log_of(7, 3, 2_000)
    live, replay = make_settings(), make_settings(data_dir=tmp_path)
    parts = [i / 6 for i in range(1, 6)]
    read_in_ticks(live, topic, parts, 7, T0 + 2_300)
    read_in_ticks(replay, topic, [], None, T0 + 2_300 + YEARS_S)
    one, other = answers(live, topic), answers(replay, topic)
    assert one == other and one["held"] and one["quarantine"]
    assert any(late_by_s for *_, late_by_s in one["frames"])


# 2. Wrong timestamps


@dataclass(frozen=True)
class Flight:
    """A frame on its way: when it happened, when it arrived, and what its ts says."""

    event_s: int
    arrival_s: float
    written_s: int
    uid: str

    @property
    def is_flipped(self) -> bool:
        return self.written_s != self.event_s

    def sent(self, written_s: int, replayed_after_s: int = 0) -> Sent:
        kind = Kind.FLIPPED if written_s != self.event_s else Kind.ORDINARY
        record = frame(written_s, self.uid, arrival_s=self.arrival_s, kind=kind)._replace(event_s=self.event_s)
        return Sent(int((self.arrival_s + replayed_after_s) * 1000), record, record.payload)


def flights(
    seed: int, *, frames: int, per_s: float, late_share: float = 0.0, late_by_s: float = 0.0, flip_share: float = 0.0
) -> list[Flight]:
    """In order of arrival. 99.9% within 5 s, `late_share` of them delayed by up to `late_by_s` instead."""
    rng = Random(seed)
    found = []
    for n in range(frames):
        sent_s = T0 + n / per_s
        delay_s = rng.uniform(0, late_by_s) if rng.random() < late_share else rng.expovariate(math.log(1000) / 5)
        written_s = rng.randrange(2**32) if rng.random() < flip_share else int(sent_s)
        found.append(Flight(int(sent_s), sent_s + delay_s, written_s, f"user-{rng.randrange(300)}"))
    return sorted(found, key=lambda flight: flight.arrival_s)


Users = dict[int, set[str]]  # minute -> uids


def counted_users(settings: Settings) -> Users:
    """The uids of each minute; the minute's exact count is their number."""
    minute = "epoch(event_time)::BIGINT // 60 * 60"
    users = {m: set(uids) for m, uids in ask(settings, f"SELECT {minute} AS m, list(uid) FROM frames GROUP BY m")}
    counts = ask(settings, "SELECT epoch(window_start)::BIGINT, unique_users FROM minute_counts WHERE frames > 0")
    assert dict(counts) == {m: len(uids) for m, uids in users.items()}
    return users


def users_of(flown: Sequence[Flight], written: bool = False) -> Users:
    users: Users = defaultdict(set)
    for flight in flown:
        second = flight.written_s if written else flight.event_s
        users[second - second % 60].add(flight.uid)
    return users


def classes(settings: Settings) -> dict[int, tuple[str, str]]:
    """Offset -> where the frame of the only topic partition is, and its class."""
    in_frames = "if(late_by_s > 0, 'late', 'on_time')"
    return {
        offset: (view, event_class)
        for offset, view, event_class in ask(
            settings,
            f"SELECT kafka_offset, 'frames', {in_frames} FROM frames "
            "UNION ALL SELECT kafka_offset, 'held_frames', event_class FROM held_frames",
        )
    }


STREAMS = {
    "100 a second": (1, 100, 0),
    "50 a second": (2, 50, 0),
    "20 a second": (3, 20, 0),
    # No Kafka time agrees, so a flipped timestamp has the weight of any other.
    "50 a second, replayed years later": (4, 50, YEARS_S),
}


@pytest.fixture(scope="module", params=STREAMS.values(), ids=STREAMS)
def flipped(request, tmp_path_factory) -> tuple[list[Flight], Settings, Settings]:
    """A stream with 1% random timestamps, and the settings under which it was read without and with them."""
    seed, per_s, replayed_after_s = request.param
    flown = flights(seed, frames=20_000, per_s=per_s, late_share=0.02, late_by_s=200, flip_share=0.01)
    read = []
    for name in ("clean", "flipped"):
        written = [f.event_s if name == "clean" else f.written_s for f in flown]
        log = [f.sent(written_s, replayed_after_s) for f, written_s in zip(flown, written, strict=True)]
        folder = tmp_path_factory.mktemp(name)
        read.append(Settings(data_dir=folder, topic="frames", results_topic=None, lg_k=8, duckdb_threads=1))
        run_tick(read[-1], MemoryTopic(logs={0: log}))
    return flown, *read


def test_random_timestamps_change_no_other_frames_class(flipped):
    flown, clean, dirty = flipped
    before, after = classes(clean), classes(dirty)
    changed = {i: (before[i], after[i]) for i, flight in enumerate(flown) if not flight.is_flipped}
    changed = {i: (was, now) for i, (was, now) in changed.items() if was != now}
    assert changed == {}


@pytest.mark.parametrize("behind_s, event_class", [(4, "on_time"), (6, "late"), (124, "late"), (126, "very_late")])
def test_one_flipped_timestamp_moves_the_front_to_the_next_rank_and_no_further(
    make_settings, tmp_path, behind_s, event_class
):
    """The worst case. Of 64 frames the 15 newest are a second ahead: the front is T0, one short of T0 + 1.

    The flipped frame lands above the front, which is then T0 + 1: only a frame at the very bound, 5 or 125 s behind,
    is of another class than without the flip. A rank cannot be had for less; docs/event-time.md says how often.
    """

    def class_of_the_last(settings: Settings, written_s: int) -> str:
        log = [Flight(T0, T0 + 1, T0, "user") for _ in range(49)] + [Flight(T0 + 1, T0 + 1, T0 + 1, "user")] * 15
        sent = [flight.sent(flight.written_s) for flight in log]
        sent[20] = log[20].sent(written_s)
        sent.append(Flight(T0 - behind_s, T0 + 1, T0 - behind_s, "at the bound").sent(T0 - behind_s))
        run_tick(settings, MemoryTopic(logs={0: sent}))
        return classes(settings)[64][1]

    assert class_of_the_last(make_settings(), T0) == event_class
    assert class_of_the_last(make_settings(data_dir=tmp_path), T0 ^ 1 << 31) == event_class


def test_random_timestamps_change_no_minute_but_by_their_own_users(flipped):
    flown, clean, dirty = flipped
    held = {i for i, (view, _) in classes(clean).items() if view == "held_frames"}
    truth = counted_users(clean)
    least = users_of([flight for i, flight in enumerate(flown) if not flight.is_flipped and i not in held])
    strayed = users_of([flight for flight in flown if flight.is_flipped], written=True)
    found = counted_users(dirty)
    assert held and any(flight.is_flipped for flight in flown)
    for minute in sorted({*truth, *found}):
        assert least[minute] <= found.get(minute, set()) <= truth.get(minute, set()) | strayed[minute], minute


# 3. Delays


def tick_every(period_s: int, settings: Settings, flown: Sequence[Flight]) -> MemoryTopic:
    """Two topic partitions, read five seconds after each full period and at the end."""
    topic = MemoryTopic(logs={0: [], 1: []})
    left = list(flown)
    while left:
        until_s = left[0].arrival_s // period_s * period_s + period_s + 5
        ready = [flight for flight in left if flight.arrival_s < until_s]
        for flight in ready:
            topic.logs[sum(flight.uid.encode()) % 2].append(flight.sent(flight.event_s))
        left = left[len(ready) :]
        run_tick(settings, topic)
    return topic


def documented_very_late(log: Sequence[Sent]) -> set[int]:
    """Offsets more than two minutes behind the event watermark: by the words of docs/event-time.md."""
    seconds = [sent.truth.written_ts for sent in log]
    front, very_late = None, set()
    for place, second in enumerate(seconds):
        if front is not None and second < front - 5 - 120:
            very_late.add(place)
        if (place + 1) % 16 == 0 and place + 1 >= 64:
            look = sorted(seconds[place - 63 : place + 1])[-16]
            front = look if front is None else max(front, look)
    return very_late


@pytest.mark.parametrize("seed", [1, 2])
def test_with_delays_of_up_to_100_s_every_minute_is_exact_and_nothing_is_held(make_settings, seed):
    flown = flights(seed, frames=4_000, per_s=10, late_share=0.05, late_by_s=100)
    settings = make_settings()
    tick_every(60, settings, flown)
    assert counted_users(settings) == users_of(flown)
    assert ask(settings, "SELECT sum(frames)::BIGINT FROM minute_counts") == [(4_000,)]
    assert ask(settings, "SELECT sum(held_frames)::BIGINT FROM minute_counts") == [(0,)]
    assert ask(settings, "FROM held_frames") == ask(settings, "FROM quarantine") == []


def test_with_delays_of_up_to_600_s_exactly_the_frames_beyond_the_window_are_held(make_settings):
    settings = make_settings()
    # The first minute is punctual: before the first looks there is no watermark to be late for.
    punctual = flights(4, frames=600, per_s=10)
    late = flights(5, frames=7_200, per_s=10, late_share=0.05, late_by_s=600)
    flown = sorted([*punctual, *(f for f in late if f.event_s >= T0 + 60)], key=lambda f: f.arrival_s)
    topic = tick_every(180, settings, flown)

    expected = {(p, offset) for p, log in topic.logs.items() for offset in documented_very_late(log)}
    delays = {place: sent.kafka_time_ms / 1000 - sent.truth.event_s for place, sent in topic.delivered.items()}
    ended_ms = (T0 + 720) * 1000  # what comes now comes to a clock that stands
    before_the_end = {place for place, sent in topic.delivered.items() if sent.kafka_time_ms < ended_ms}
    assert {p for p in before_the_end if delays[p] > 150} <= expected
    assert not {p for p, delay_s in delays.items() if delay_s < 120} & expected and len(expected) > 100
    held = ask(settings, "SELECT kafka_partition, kafka_offset, event_class FROM held_frames")
    assert {(p, offset) for p, offset, _ in held} == expected and {what for *_, what in held} == {"very_late"}

    on_their_way = {place: sent.truth for place, sent in topic.delivered.items() if place not in expected}
    truth: Users = defaultdict(set)
    for record in on_their_way.values():
        truth[record.event_s - record.event_s % 60].add(record.uid)
    assert counted_users(settings) == truth
    by_minute = defaultdict(int)
    for place in expected:
        second = topic.delivered[place].truth.event_s
        by_minute[second - second % 60] += 1
    shown = ask(settings, "SELECT epoch(window_start)::BIGINT, held_frames FROM minute_counts WHERE held_frames > 0")
    assert dict(shown) == by_minute
