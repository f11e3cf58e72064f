"""Two runs at the worst moment: each interleaving is forced, and each safeguard is taken out once.

A safeguard whose loss no test notices is either not needed or not tested. So the stories are told twice: with
the product as it is, and with a line of its source removed (support.mutations). The numbers are those of the
fault list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random

import pytest
from support.audit import audit, read_back
from support.frames import MemoryTopic, frame, small_traffic
from support.mutations import MUTATIONS, mutated
from support.ticks import OnceAt, run_tick

from uniq_pipeline.backfill import mark_range
from uniq_pipeline.config import Settings, VeryLate
from uniq_pipeline.count import count_minutes
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.drain import drain
from uniq_pipeline.errors import FileDamaged, LostRace, OffsetsLost
from uniq_pipeline.ledger.upkeep import skip_lost
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.publish import publish
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import Grain, iso

T0 = 1_704_067_200 - 300  # five minutes before an hour ends


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser grains pass the same code as hours, for seven times the time; test_crash.py has them all."""
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


def die() -> None:
    raise Killed


def more(topic: MemoryTopic, start_s: int, end_s: int, frames_per_s: float = 1) -> None:
    traffic = small_traffic(1, frames_per_s=frames_per_s)
    topic.send(traffic.records_between(T0 + start_s, T0 + end_s), Random(start_s))


def filled(end_s: int, frames_per_s: float = 1) -> MemoryTopic:
    topic = MemoryTopic()
    more(topic, 0, end_s, frames_per_s)
    return topic


def run_drain(settings: Settings, topic: MemoryTopic, failpoint: Callable[[str], None] = lambda name: None) -> None:
    with open_workshop(settings, failpoint=failpoint) as shop, suppress(LostRace, Killed):
        drain(settings, shop.ledger, shop.lake, topic, failpoint=failpoint)


def finished(settings: Settings, topic: MemoryTopic) -> list[str]:
    """What the audit finds after one clean run."""
    run_tick(settings, topic, close_windows=True)
    return audit(settings, topic.delivered, grains=("minute", "hour"))


# The stories. Each returns what is wrong at its end.


def a_frame_comes_while_its_minute_is_counted(settings: Settings) -> list[str]:
    """Fault 64. The minute is final: nothing but its mark makes anybody count it again."""
    settings = settings.model_copy(update={"very_late": VeryLate.CORRECT})
    return _while_the_first_minute_is_counted(settings, "count.files_listed")


def a_frame_is_held_while_its_minute_is_counted_for_the_first_time(settings: Settings) -> list[str]:
    return _while_the_first_minute_is_counted(settings, "count.before_commit")


def _while_the_first_minute_is_counted(settings: Settings, point: str) -> list[str]:
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 7}") for i in range(60)])
    topic.send([frame(T0 + 700 + i, "user") for i in range(64)])  # by now the first minute is final

    def meanwhile() -> None:
        topic.send([frame(T0, "somebody new", arrival_s=T0 + 800, kind=Kind.LATE)])
        run_drain(settings, topic)

    at = OnceAt(point, meanwhile)
    run_tick(settings, topic, failpoint=at)
    assert at.happened
    return finished(settings, topic)


def a_slow_count_ends_after_a_newer_one(settings: Settings) -> list[str]:
    topic = filled(200)
    run_tick(settings, topic)
    more(topic, 200, 210)

    def meanwhile() -> None:
        more(topic, 210, 220)
        run_tick(settings, topic)

    at = OnceAt("count.before_commit", meanwhile)
    run_tick(settings, topic, failpoint=at)
    assert at.happened
    return finished(settings, topic)


def a_slow_set_ends_after_its_hour_was_counted_anew(settings: Settings) -> list[str]:
    """Fault 64 for uid sets of hours."""
    settings = settings.model_copy(update={"very_late": VeryLate.CORRECT})
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(T0 + 2 * i, f"user-{i % 50}") for i in range(300)])
    run_tick(settings, topic)

    def meanwhile() -> None:
        topic.send([frame(T0 + 30, "somebody new", arrival_s=T0 + 600, kind=Kind.LATE)])
        run_tick(settings, topic)

    at = OnceAt("sets.before_commit", meanwhile)
    run_tick(settings, topic, failpoint=at, close_windows=True)
    assert at.happened
    return finished(settings, topic)


def a_minute_changes_while_its_hour_is_merged(settings: Settings) -> list[str]:
    """Fault 64 for what is merged: the hour was read with the old minute, and must be merged again."""
    settings = settings.model_copy(update={"very_late": VeryLate.CORRECT})
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 7}") for i in range(60)])
    topic.send([frame(T0 + 700 + i, "user") for i in range(64)])

    def meanwhile() -> None:
        topic.send([frame(T0, "somebody new", arrival_s=T0 + 800, kind=Kind.LATE)])
        run_drain(settings, topic)
        with open_workshop(settings) as shop:
            count_minutes(shop, final_before_s=None)

    at = OnceAt("count.before_commit", meanwhile, nth=2)  # the first is that of the minutes
    run_tick(settings, topic, failpoint=at)
    assert at.happened
    run_tick(settings, topic)  # closes nothing: a new set would have its hour merged again, too
    return audit(settings, topic.delivered, grains=("minute", "hour"), closed=False)


def an_hours_set_becomes_stale_while_its_days_is_built(settings: Settings) -> list[str]:
    """Fault 64 for uid sets: the day's would be put together from one of an hour that is out of date by then."""
    settings = settings.model_copy(update={"very_late": VeryLate.CORRECT})
    topic, day_s = MemoryTopic(logs={0: []}), T0 + 300
    topic.send([frame(day_s + i, f"user-{i % 7}") for i in range(0, 7200, 60)])
    topic.send([frame(day_s + 86_400 + 700 + i, "user") for i in range(64)])

    def late(event_s: int, uid: str) -> None:
        topic.send([frame(event_s, uid, arrival_s=day_s + 90_000, kind=Kind.LATE)])

    def meanwhile() -> None:
        late(day_s + 5, "new in the first hour")
        run_tick(settings, topic)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("rollup", "sets"):
            patch.setattr(f"uniq_pipeline.{module}.ROLLUP_ORDER", (Grain.HOUR, Grain.DAY))
        run_tick(settings, topic, close_windows=True)
        late(day_s + 3700, "new in the second hour")
        at = OnceAt("sets.before_commit", meanwhile)  # the second hour's set; the day's comes after it
        run_tick(settings, topic, failpoint=at, close_windows=True)
        assert at.happened
        run_tick(settings, topic, close_windows=True)
    return audit(settings, topic.delivered, grains=("minute", "hour", "day"))


def a_slow_drain_commits_after_another(settings: Settings) -> list[str]:
    """Fault 51. The other drain went further, in batches that end elsewhere."""
    topic = filled(300)

    def meanwhile() -> None:
        more(topic, 300, 400)
        run_drain(settings.model_copy(update={"batch_frames": 130}), topic)

    at = OnceAt("drain.before_commit", meanwhile)
    run_drain(settings, topic, at)
    assert at.happened
    try:
        return finished(settings, topic)
    except LostRace as error:
        return [str(error)]


def a_drain_goes_on_while_another_looks_at_the_topic(settings: Settings) -> list[str]:
    topic = filled(200)

    def meanwhile() -> None:
        more(topic, 200, 300)
        run_drain(settings, topic)

    topic.after_describe = meanwhile
    try:
        run_drain(settings, topic)
    except OffsetsLost as error:
        return [f"false alarm: {error}"]
    return finished(settings, topic)


def lost_offsets_are_skipped_while_a_drain_has_them_in_hand(settings: Settings) -> list[str]:
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i}") for i in range(100)])
    run_drain(settings, topic)
    topic.send([frame(T0 + i, f"user-{i}") for i in range(100, 300)])

    def meanwhile() -> None:
        topic.low = {0: 250}
        with open_workshop(settings) as shop:
            skip_lost(shop.ledger, topic.topic, topic.describe())

    at = OnceAt("drain.before_commit", meanwhile)
    run_drain(settings.model_copy(update={"batch_frames": 100}), topic, at)
    assert at.happened
    tables = read_back(settings, []).tables
    (gap,) = tables["skipped"]
    return [
        f"{batch} was skipped, and counted too"
        for batch in tables["batch_ranges"]
        if batch["start_offset"] < gap["end_offset"] and batch["end_offset"] > gap["start_offset"]
    ]


def gc_runs_while_a_drain_is_about_to_commit(settings: Settings) -> list[str]:
    """Fault 53, at its worst: nothing is to be kept for readers."""
    topic = filled(200)

    def meanwhile() -> None:
        hasty = settings.model_copy(update={"gc_grace_h": 0.0})
        with open_workshop(hasty) as shop:
            collect_garbage(hasty, shop.ledger, shop.lake)

    at = OnceAt("drain.before_commit", meanwhile)
    run_drain(settings, topic, at)
    assert at.happened
    try:
        return finished(settings, topic)
    except FileDamaged as error:
        return [str(error)]


def killed_right_after_the_commit(settings: Settings) -> list[str]:
    topic = filled(300)
    run_drain(settings, topic, OnceAt("drain.after_commit", die))
    try:
        return finished(settings, topic)
    except FileDamaged as error:
        return [str(error)]


def killed_right_after_the_offsets_moved(settings: Settings) -> list[str]:
    topic = filled(300)
    run_drain(settings, topic, OnceAt("drain.in_commit", die))
    return finished(settings, topic)


def killed_while_publishing(settings: Settings) -> list[str]:
    """Fault 8, with a list for a topic."""
    topic = filled(200)
    settings = settings.model_copy(update={"results_topic": "counts"})
    sink = ListSink()
    with open_workshop(settings) as shop:
        with suppress(Killed):
            run_tick(settings, topic, failpoint=OnceAt("publish.sent", die), open_sink=lambda: sink)
        publish(shop.ledger, shop.lake, sink)
    stored = read_back(settings, []).results
    windows = {f"{grain}/{iso(start_s)}".encode() for grain, rows in stored.items() for start_s in rows}
    return sorted(f"{key} was never published" for key in windows - {key for key, _ in sink.messages})


class ListSink:
    def __init__(self) -> None:
        self.messages: list[tuple[bytes | None, bytes]] = []

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        sent = list(messages)
        self.messages += sent
        return len(sent)


STORIES = [
    a_frame_comes_while_its_minute_is_counted,
    a_frame_is_held_while_its_minute_is_counted_for_the_first_time,
    a_slow_count_ends_after_a_newer_one,
    a_slow_set_ends_after_its_hour_was_counted_anew,
    a_minute_changes_while_its_hour_is_merged,
    an_hours_set_becomes_stale_while_its_days_is_built,
    a_slow_drain_commits_after_another,
    a_drain_goes_on_while_another_looks_at_the_topic,
    lost_offsets_are_skipped_while_a_drain_has_them_in_hand,
    gc_runs_while_a_drain_is_about_to_commit,
    killed_right_after_the_commit,
    killed_right_after_the_offsets_moved,
    killed_while_publishing,
]

# Each safeguard, and the story that needs it.
NEEDED = {
    "marks are cleared whatever their seq": a_frame_comes_while_its_minute_is_counted,
    "only counted hours note what is held": a_frame_is_held_while_its_minute_is_counted_for_the_first_time,
    "bucket versions are not compared": a_slow_count_ends_after_a_newer_one,
    "set marks are cleared whatever their seq": a_slow_set_ends_after_its_hour_was_counted_anew,
    "marks of merged windows are cleared whatever their seq": a_minute_changes_while_its_hour_is_merged,
    "sets are put together from stale ones": an_hours_set_becomes_stale_while_its_days_is_built,
    "offsets are not compared and ranges may start twice": a_slow_drain_commits_after_another,
    "offsets are read after the topic": a_drain_goes_on_while_another_looks_at_the_topic,
    "offsets are not compared": lost_offsets_are_skipped_while_a_drain_has_them_in_hand,
    "young orphans are not spared and files are not looked for": gc_runs_while_a_drain_is_about_to_commit,
    "files are committed before they stand": killed_right_after_the_commit,
    "offsets move in a transaction of their own": killed_right_after_the_offsets_moved,
    "the outbox is cleared before sending": killed_while_publishing,
}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_nothing_is_wrong_when(story, make_settings):
    assert story(make_settings(batch_frames=200)) == []


@pytest.mark.parametrize("mutation", NEEDED)
def test_the_audit_finds_it_when(mutation, make_settings):
    with mutated(mutation):
        assert NEEDED[mutation](make_settings(batch_frames=200)) != []


@pytest.mark.parametrize("mutation", ["offsets are not compared", "ranges may start twice"])
def test_against_another_drain_either_fence_is_enough_when(mutation, make_settings):
    with mutated(mutation):
        assert a_slow_drain_commits_after_another(make_settings(batch_frames=200)) == []


def test_every_mutation_is_used():
    assert set(NEEDED) | {"ranges may start twice"} == set(MUTATIONS)


# Whatever the order, the same answers.


def answers(settings: Settings) -> dict[tuple[str, int], tuple]:
    rows = read_back(settings, []).results
    return {
        (grain, start_s): tuple(row[name] for name in ("frames", "unique_users", "hll", "late_frames", "status"))
        for grain in rows
        for start_s, row in rows[grain].items()
    }


def test_fault_57_after_three_hours_without_a_tick_one_run_fills_every_minute(make_settings):
    settings = make_settings(batch_frames=1000)
    topic = filled(3 * 3600, frames_per_s=0.3)
    assert finished(settings, topic) == []
    minutes = {start_s for grain, start_s in answers(settings) if grain == "minute"}
    assert set(range(T0, T0 + 3 * 3600 - 60, 60)) <= minutes


def test_fault_60_the_same_windows_computed_twice_are_the_same_rows(make_settings):
    settings = make_settings()
    topic = filled(500)
    assert finished(settings, topic) == []
    before = read_back(settings, [])
    with open_workshop(settings) as shop:
        for grain in (Grain.MINUTE, Grain.HOUR):
            assert mark_range(shop, grain, T0 - 3600, T0 + 3600)
    assert finished(settings, topic) == []
    after = read_back(settings, [])
    assert after.results == before.results, "also their revisions, times and history"


def test_fault_60_one_log_gives_one_answer_whatever_the_batches_and_ticks(make_settings, tmp_path):
    at_once, in_pieces = make_settings(), make_settings(batch_frames=100, data_dir=tmp_path)
    topic = MemoryTopic()
    for start_s in range(0, 450, 150):
        more(topic, start_s, start_s + 150)
        run_tick(in_pieces, topic)
    assert finished(at_once, topic) == finished(in_pieces, topic) == []
    assert answers(at_once) == answers(in_pieces)


def test_fault_61_a_backfill_beside_the_live_run_converges_to_the_same_answer(make_settings):
    settings = make_settings()
    topic = filled(400)
    run_tick(settings, topic)
    more(topic, 400, 450)

    def meanwhile() -> None:
        with open_workshop(settings) as shop:
            mark_range(shop, Grain.MINUTE, T0, T0 + 400)
            mark_range(shop, Grain.HOUR, T0 - 3600, T0 + 3600)
        more(topic, 450, 500)
        run_tick(settings, topic)

    at = OnceAt("count.files_listed", meanwhile)
    run_tick(settings, topic, failpoint=at)
    assert at.happened
    assert finished(settings, topic) == []
