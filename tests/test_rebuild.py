"""A lost ledger is made anew from the lake: nothing lost, nothing counted twice, or refused with what is missing."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from support.audit import Stored, audit, read_back
from support.frames import MemoryTopic, frame, small_traffic
from support.ticks import OnceAt, run_tick

from uniq_pipeline.cli.main import main
from uniq_pipeline.compact import compact
from uniq_pipeline.config import Settings, TsUnit
from uniq_pipeline.demo.traffic import Kind, Record
from uniq_pipeline.drain import drain
from uniq_pipeline.errors import LakeError, LedgerError, LostRace, OffsetsLost, SettingError
from uniq_pipeline.ingest import file_log, load_file
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.moves import Context, contexts
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.upkeep import forget_topic
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.move import admit, replay, withdraw
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild import Plan, carry_out, plan_rebuild
from uniq_pipeline.rebuild.chains import Link, Overlap, find_chain
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import Grain

SEEDS = int(os.environ.get("UNIQ_CRASH_REBUILDS", "3"))
FIRST_SEED = int(os.environ.get("UNIQ_CRASH_FIRST", "1"))

T0 = 1_704_067_200 - 300  # five minutes before an hour ends
GRAINS = ("minute", "hour")
HELD = ("very_late", "future")


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser grains pass the same code as hours, for seven times the time."""
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


def die() -> None:
    raise Killed


def nothing(name: str) -> None:
    pass


def lose_ledger(settings: Settings) -> None:
    for end in ("", "-wal", "-shm"):
        settings.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)


def plan(settings: Settings) -> Plan:
    ledger = Ledger(settings.effective_ledger_url)
    try:
        return plan_rebuild(settings, ledger, Lake(settings.data_dir / "lake"))
    finally:
        ledger.close()


def rebuild(settings: Settings, failpoint: Callable[[str], None] = nothing, **options: Any) -> Plan:
    ledger = Ledger(settings.effective_ledger_url, failpoint=failpoint)
    lake = Lake(settings.data_dir / "lake")
    try:
        planned = plan_rebuild(settings, ledger, lake)
        carry_out(settings, ledger, lake, planned, **options)
        return planned
    finally:
        ledger.close()


@contextmanager
def opened(
    settings: Settings, failpoint: Callable[[str], None] = nothing, now: Callable[[], float] = time.time
) -> Iterator[Workshop]:
    """A workshop for what computes nothing: opening DuckDB takes longer than all the rest."""
    ledger = Ledger(settings.effective_ledger_url, failpoint=failpoint, now=now)
    ledger.prepare(timezone=settings.timezone, lg_k=str(settings.lg_k))
    try:
        yield Workshop(settings, ledger, Lake(settings.data_dir / "lake", failpoint), None, b"", failpoint)
    finally:
        ledger.close()


def run_drain(settings: Settings, topic: MemoryTopic, failpoint: Callable[[str], None] = nothing) -> None:
    with opened(settings, failpoint) as shop, suppress(LostRace, Killed):
        drain(settings, shop.ledger, shop.lake, topic, failpoint=failpoint)


def files(settings: Settings, folder: str = "") -> dict[str, bytes]:
    root = settings.data_dir / folder
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def table(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        return connection.execute(sql).fetchall()


def in_milliseconds(event_s: int, uid: str) -> Record:
    """Rejected as long as ts is read as seconds."""
    payload = b'{"ts":%d000,"uid":"%s"}' % (event_s, uid.encode())
    return Record(event_s + 1.0, event_s, event_s, uid, Kind.BAD, None, payload)


def moved_places(settings: Settings, topic: MemoryTopic) -> dict[tuple[int, int], str]:
    """Where the records are now that a person moved."""
    stored, delivered = read_back(settings, []).files, topic.delivered
    moved = {}
    for kind in ("frames", "held"):
        for row in stored.get(kind, []):
            place = row["kafka_partition"], row["kafka_offset"]
            bad = delivered[place].truth.kind is Kind.BAD
            if bad or (kind == "frames" and row["event_class"] in HELD):
                moved[place] = kind
    return moved


def ranges_of(stored: Stored) -> list[tuple[Any, ...]]:
    """Without the batches' names: of two that read the same either may have been chosen."""
    left_out = ("batch_id", "front_s")
    return sorted(tuple(v for name, v in row.items() if name not in left_out) for row in stored.tables["batch_ranges"])


def fronts_of(shop: Workshop, topic: MemoryTopic) -> list[Context]:
    """The front before each range; where there was none, what came first is noted before or after a compaction."""
    return [found for p in topic.logs for found in contexts(shop.ledger, topic.topic, p, 0, 2**40)]


class Story:
    """Random traffic, drains, kills, races and moves; what happened is written down for a failing seed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.rng = Random(seed)
        self.topic = MemoryTopic(settings.topic)
        self.told: list[str] = []
        self._traffic = small_traffic(seed, frames_per_s=2, users=60)
        self._at_s = 0

    def go_on(self, steps: int) -> None:
        acts = [self.killed, self.killed, self.killed, self.beaten, self.drained, self.drained, self.ticked]
        acts += [self.admitted, self.withdrawn, self.replayed, self.compacted, self.compacted, self.cleaned]
        for _ in range(steps):
            act = self.rng.choice(acts)
            self.told.append(act.__name__)
            act()

    def send(self) -> None:
        length = self.rng.choice([20, 60, 100])
        records = list(self._traffic.records_between(T0 + self._at_s, T0 + self._at_s + length))
        records += [in_milliseconds(T0 + self._at_s + i, f"ms-{i}") for i in range(3)]
        self.topic.send(records, self.rng)
        self._at_s += length

    def drained(self) -> None:
        self.send()
        run_drain(self.settings, self.topic)

    def killed(self) -> None:
        self.send()
        point = self.rng.choice(["drain.before_commit", "lake.file_stands", "drain.in_commit"])
        run_drain(self.settings, self.topic, OnceAt(point, die, nth=self.rng.randint(1, 4)))

    def beaten(self) -> None:
        """A race; the winner's batches end elsewhere."""
        self.send()

        def meanwhile() -> None:
            self.send()
            run_drain(self.settings.model_copy(update={"batch_frames": 37}), self.topic)

        run_drain(self.settings, self.topic, OnceAt("drain.before_commit", meanwhile, nth=self.rng.randint(1, 2)))

    def ticked(self) -> None:
        self.send()
        run_tick(self.settings, self.topic, close_windows=True)

    def admitted(self) -> None:
        self._move(lambda shop: admit(shop, *self._range()))

    def withdrawn(self) -> None:
        self._move(lambda shop: withdraw(shop, *self._range()))

    def replayed(self) -> None:
        self._move(replay, self.settings.model_copy(update={"ts_unit": TsUnit.MILLISECONDS}))

    def _move(self, move: Callable[..., object], settings: Settings | None = None) -> None:
        fail = nothing
        if self.rng.random() < 0.3:
            fail = OnceAt(self.rng.choice(["lake.file_stands", "move.before_commit", "move.in_commit"]), die)
        with opened(settings or self.settings, fail) as shop, suppress(Killed):
            move(shop)

    def compacted(self) -> None:
        """All hours and days, as if they were over; anew as soon as there is a new file."""
        points = ["lake.file_stands", "compact.before_commit", "merge.in_commit", "compact.after_commit"]
        fail = OnceAt(self.rng.choice(points), die, nth=self.rng.randint(1, 3)) if self.rng.random() < 0.4 else nothing
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr("uniq_pipeline.compact.AGAIN_AT", 1)
            with open_workshop(self.settings, failpoint=fail, now=lambda: time.time() + 86_400) as shop:
                assert compact(shop, closed_before_s=2**40).failed == []

    def _range(self) -> tuple[int, int]:
        if self.rng.random() < 0.3:
            return 0, 2**40
        start_s = T0 + self.rng.randint(-500, self._at_s)
        return start_s, start_s + self.rng.choice([60, 300, 10**6])

    def cleaned(self) -> None:
        settings = self.settings.model_copy(update={"gc_grace_h": 0.0})
        with opened(settings, now=lambda: time.time() + 7200) as shop:
            collect_garbage(settings, shop.ledger, shop.lake)

    def finish(self) -> list[str]:
        run_tick(self.settings, self.topic, close_windows=True)
        moved = moved_places(self.settings, self.topic)
        problems = audit(self.settings, self.topic.delivered, grains=GRAINS, moved=moved)
        # gc has removed files that moves took rows out of, so what their batches wrote cannot be added up any more
        return [problem for problem in problems if not ("cleaned" in self.told and ": files hold {" in problem)]


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_fault_56_a_lost_ledger_is_rebuilt_and_nothing_is_lost_or_counted_twice(make_settings, seed):
    story = Story(make_settings(batch_frames=100), seed)
    story.go_on(8)
    clean = seed % 2 == 0
    if clean:
        run_tick(story.settings, story.topic, close_windows=True)
    before = read_back(story.settings, [])
    places = moved_places(story.settings, story.topic)
    with opened(story.settings) as shop:
        seen, fronts = overview(shop.ledger), fronts_of(shop, story.topic)

    lose_ledger(story.settings)
    planned = rebuild(story.settings)
    assert planned.losses == [], story.told
    with opened(story.settings) as shop:
        again, fronts_again = overview(shop.ledger), fronts_of(shop, story.topic)
    assert again.is_conserved
    assert story.finish() == [], story.told

    after = read_back(story.settings, [])
    if clean and moved_places(story.settings, story.topic) == places:
        assert after.results == before.results, "also their revisions, times and history"
        assert (again.delivered, again.frames, again.late) == (seen.delivered, seen.frames, seen.late)
        assert again.partitions == seen.partitions
        tallied = [[t for t in one.tables["tallies"] if t["records"]] for one in (before, after)]
        assert sorted(tallied[0], key=str) == sorted(tallied[1], key=str)
        assert (ranges_of(after), fronts_again) == (ranges_of(before), fronts)
    for grain in GRAINS:
        for start_s, row in before.results[grain].items():
            assert after.results[grain][start_s]["revision"] >= row["revision"]

    story.go_on(3)
    assert story.finish() == [], story.told
    assert len(after.tables["batches"]) <= len(read_back(story.settings, []).tables["batches"])


# Files of one topic partition, in batches that end where the test says.


def log_in_batches(settings: Settings, *ends: int) -> MemoryTopic:
    topic = MemoryTopic(settings.topic, logs={0: []}, at_once=1000)
    for end in ends:
        at = len(topic.logs[0])
        topic.send([frame(T0 + i, f"user-{i % 20}") for i in range(at, end)])
        run_drain(settings, topic)
    return topic


def batch_files(settings: Settings) -> list[tuple[int, int, Path]]:
    """(start, end, file) of frames files of topic partition 0, in order."""
    found = []
    for path in settings.data_dir.glob("lake/frames/*/*.parquet"):
        ((_, start, end, _),) = json.loads(pq.read_metadata(path).metadata[b"uniq.ranges"])
        found.append((start, end, path))
    return sorted(found)


def test_fault_56_an_overlap_that_no_choice_resolves_is_refused_by_name(make_settings, tmp_path):
    settings, other = make_settings(), make_settings(data_dir=tmp_path)
    topic = log_in_batches(settings, 100)
    topic.send([frame(T0 + i, "user") for i in range(100, 150)])
    topic.low = {0: 50}
    run_drain(other.model_copy(update={"topic": topic.topic}), topic)  # it reads [50, 150)
    (_, _, path), (_, _, mine) = batch_files(other)[0], batch_files(settings)[0]
    target = mine.with_name(path.name)
    target.write_bytes(path.read_bytes())
    lose_ledger(settings)
    before = files(settings)
    with pytest.raises(LakeError) as refused:
        plan(settings)
    text = str(refused.value)
    for name in (topic.topic, "topic partition 0", "[0, 100)", "[50, 150)", mine.stem, target.stem):
        assert name in text
    assert files(settings) == before, "no ledger was made"
    target.unlink()
    assert [line for line in rebuild(settings).lines() if "lost" in line] == []


def test_fault_56_a_file_that_is_missing_is_a_named_loss_and_going_on_is_recorded(make_settings):
    settings = make_settings()
    topic = log_in_batches(settings, 100, 200, 300)
    run_tick(settings, topic, close_windows=True)
    lost = batch_files(settings)[1][2]
    lost.unlink()
    lose_ledger(settings)
    with pytest.raises(OffsetsLost) as refused:
        rebuild(settings)
    for name in (topic.topic, "topic partition 0", "[100, 200)", "--accept-gaps"):
        assert name in str(refused.value)
    assert not (settings.data_dir / "ledger.db").exists()

    rebuild(settings, accept_gaps=True)
    assert table(settings, "SELECT topic, kafka_partition, start_offset, end_offset FROM skipped") == [
        (topic.topic, 0, 100, 200)
    ]
    run_tick(settings, topic, close_windows=True)
    assert table(settings, "SELECT next_offset FROM topic_partitions") == [(300,)]
    minutes = read_back(settings, []).results["minute"]
    assert sum(row["frames"] for row in minutes.values()) == 200, "the minutes that lost frames were counted again"


def test_of_a_batch_whose_frames_were_merged_with_others_what_is_left_counts(make_settings):
    """Its rows cannot be told apart any more; the ledger says that some of its records are lost, and adds up."""
    settings = make_settings()
    topic = MemoryTopic(settings.topic, logs={0: []}, at_once=1000)
    for start in (0, 100, 200):
        topic.send([frame(T0 + start + i, f"user-{i % 20}") for i in range(100)])
        if start == 100:
            topic.send([frame(T0 - 10**6 + i, "too late") for i in range(5)])
        run_drain(settings, topic)
    run_tick(settings, topic, close_windows=True)
    with open_workshop(settings) as shop:
        assert compact(shop, closed_before_s=2**40).merged_into == 1
        collect_garbage(settings.model_copy(update={"gc_grace_h": 0.0}), shop.ledger, shop.lake)
    (held,) = settings.data_dir.glob("lake/held/*/*.parquet")
    held.unlink()
    lose_ledger(settings)
    with pytest.raises(OffsetsLost, match=r"topic partition 0 \[100, 205\).* 0 of 5 rows of held/"):
        rebuild(settings)
    rebuild(settings, accept_gaps=True)
    run_tick(settings, topic, close_windows=True)
    with opened(settings) as shop:
        seen = overview(shop.ledger)
    assert (seen.delivered, seen.frames, seen.held) == (300, 300, 0) and seen.is_conserved
    assert sum(row["frames"] for row in read_back(settings, []).results["minute"].values()) == 300
    assert table(settings, "SELECT start_offset, end_offset FROM skipped") == [(100, 205)]


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_of_a_batch_with_one_file_gone_the_message_says_what_is_left(make_settings, damage):
    settings = make_settings()
    topic = MemoryTopic(settings.topic, logs={0: []})
    for start in (0, 100):
        topic.send([frame(T0 + start + i, f"user-{i}") for i in range(100)])
        topic.send([frame(T0 - 40_000, "late", arrival_s=T0 + start + 100, kind=Kind.LATE)])
        run_drain(settings, topic)
    held = sorted(
        settings.data_dir.glob("lake/held/*/*.parquet"), key=lambda p: pq.read_metadata(p).metadata[b"uniq.ranges"]
    )
    if damage == "missing":
        held[0].unlink()
    else:
        held[0].write_bytes(held[0].read_bytes()[:-10])
    lose_ledger(settings)
    (loss,) = plan(settings).losses
    assert held[0].stem in str(loss) and "0 of 1 rows of held/" in str(loss)
    assert ("cannot be read" in str(loss)) == (damage == "cut off")


def test_what_is_missing_at_the_end_is_read_again(make_settings):
    settings = make_settings()
    topic = log_in_batches(settings, 100, 200)
    batch_files(settings)[1][2].unlink()
    lose_ledger(settings)
    assert rebuild(settings).losses == []
    run_tick(settings, topic, close_windows=True)
    assert audit(settings, topic.delivered, grains=GRAINS) == []


def test_a_file_that_a_move_left_is_missed_too(make_settings):
    settings = make_settings()
    topic = MemoryTopic(settings.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i}") for i in range(100)])
    late = [frame(T0 - 40_000 - 9_000 * i, "late", arrival_s=T0 + 100, kind=Kind.LATE) for i in range(2)]
    topic.send(late)
    run_tick(settings, topic)
    with opened(settings) as shop:
        assert admit(shop, T0 - 40_000, T0).frames == 1
    run_tick(settings, topic, close_windows=True)
    (rest,) = settings.data_dir.glob("lake/held/*/*.rest-*.parquet")
    (taken,) = set(settings.data_dir.glob("lake/held/*/*.parquet")) - {rest}
    content = rest.read_bytes()
    lose_ledger(settings)
    rest.unlink()
    assert plan(settings).losses == [], "the file it was taken from still stands: the frame is held again"
    taken.unlink()
    assert plan(settings).losses != []
    rest.write_bytes(content)
    assert rebuild(settings).losses == []
    run_tick(settings, topic, close_windows=True)
    moved = moved_places(settings, topic)
    assert moved == {(0, 100): "frames"}
    problems = audit(settings, topic.delivered, grains=GRAINS, moved=moved)
    assert [problem for problem in problems if ": files hold {" not in problem] == []


def waiting_for_proof(settings: Settings) -> MemoryTopic:
    """The last four frames are two hours ahead: held, until those after them are there too."""
    topic = MemoryTopic(settings.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 20}") for i in range(100)])
    topic.send([frame(T0 + 7200 + i, f"early-{i}", arrival_s=T0 + 101, kind=Kind.FLIPPED) for i in range(4)])
    run_drain(settings, topic)
    return topic


def prove(topic: MemoryTopic) -> None:
    topic.send([frame(T0 + 7200 + i, f"user-{i % 20}") for i in range(64)])


def test_a_frame_that_was_admitted_while_it_awaited_proof_is_not_counted_twice(make_settings):
    settings = make_settings()
    topic = waiting_for_proof(settings)
    with opened(settings) as shop:
        assert admit(shop, T0 + 7200, T0 + 7202).frames == 2
    before = table(settings, "SELECT * FROM admissions ORDER BY kafka_offset")
    lose_ledger(settings)
    rebuild(settings)
    assert table(settings, "SELECT * FROM admissions ORDER BY kafka_offset") == before and len(before) == 2
    prove(topic)
    run_tick(settings, topic, close_windows=True)
    moved = moved_places(settings, topic)
    assert set(moved) == {(0, 100), (0, 101)}
    assert audit(settings, topic.delivered, grains=GRAINS, moved=moved) == []


def test_an_admit_that_was_killed_before_the_log_proved_its_frames_does_not_count(make_settings):
    settings = make_settings()
    topic = waiting_for_proof(settings)
    with opened(settings, OnceAt("move.before_commit", die)) as shop, suppress(Killed):
        admit(shop, T0 + 7200, T0 + 7202)
    prove(topic)
    run_drain(settings, topic)
    assert table(settings, "SELECT count(*) FROM admissions") == [(4,)]
    lose_ledger(settings)
    planned = rebuild(settings)
    assert planned.committed.moves == [] and any("beaten" in notice for notice in planned.committed.notices)
    run_tick(settings, topic, close_windows=True)
    assert audit(settings, topic.delivered, grains=GRAINS) == []


def test_a_living_ledger_is_not_touched(make_settings):
    settings = make_settings()
    log_in_batches(settings, 50)
    before = table(settings, "SELECT * FROM files")
    with pytest.raises(LedgerError, match="is not lost: it has 1 batches"):
        plan(settings)
    assert table(settings, "SELECT * FROM files") == before


def test_a_drain_that_began_meanwhile_is_not_touched(make_settings):
    settings = make_settings()
    topic = log_in_batches(settings, 50)
    lose_ledger(settings)
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    planned = plan_rebuild(settings, ledger, lake)
    run_drain(settings, topic)
    before = table(settings, "SELECT * FROM batch_ranges")
    with pytest.raises(LedgerError, match="is not lost"):
        carry_out(settings, ledger, lake, planned)
    ledger.close()
    assert table(settings, "SELECT * FROM batch_ranges") == before


@pytest.mark.parametrize("point", ["rebuild.in_commit", "ledger.before_commit"])
def test_a_rebuild_that_is_killed_leaves_an_empty_ledger_and_is_done_again(make_settings, point):
    settings = make_settings()
    topic = log_in_batches(settings, 100, 250)
    lose_ledger(settings)
    nth = 2 if point == "ledger.before_commit" else 1  # the first commit makes the tables
    with pytest.raises(Killed):
        rebuild(settings, OnceAt(point, die, nth=nth))
    assert table(settings, "SELECT count(*) FROM batches") == [(0,)]
    rebuild(settings)
    run_tick(settings, topic, close_windows=True)
    assert audit(settings, topic.delivered, grains=GRAINS) == []


def test_a_recreated_topic_goes_on_and_the_older_one_still_counts(make_settings):
    settings = make_settings()
    log_in_batches(settings, 100)
    with opened(settings) as shop:
        forget_topic(shop.ledger, settings.topic, "id-2")
    time.sleep(1.1)  # the names of its batches are later
    topic = MemoryTopic(settings.topic, "id-2", logs={0: []})
    topic.send([frame(T0 + i, f"other-{i}") for i in range(60)])
    run_tick(settings, topic)
    before = read_back(settings, []).results
    lose_ledger(settings)
    notices = rebuild(settings).committed.notices
    assert any("id-1" in notice and "recreated" in notice for notice in notices)
    assert table(settings, "SELECT topic_id, next_offset FROM topic_partitions") == [("id-2", 60)]
    topic.send([frame(T0 + i, f"other-{i}") for i in range(60, 70)])
    run_tick(settings, topic)
    minutes = read_back(settings, []).results["minute"]
    assert sum(row["frames"] for row in minutes.values()) == 170
    assert sum(row["frames"] for row in before["minute"].values()) == 160


def test_files_that_were_loaded_are_not_loaded_again(make_settings, tmp_path):
    settings = make_settings(batch_frames=100)
    lines = [b'{"ts":%d,"uid":"user-%d"}' % (T0 + i, i) for i in range(100)]
    lines.append(b'{"ts":%d,"uid":"last"}' % (T0 + 50_000))
    lines.append(b'{"ts":%d,"uid":"last"}' % (T0 + 50_001))
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")

    def load() -> int:
        with opened(settings) as shop:
            return [report.delivered for report in load_file(shop, file_log(shop.ledger, str(path)))][-1]

    assert load() == 102
    assert table(settings, "SELECT delivered, admitted FROM batches ORDER BY 1") == [(0, 2), (102, 0)]
    admissions = table(settings, "SELECT kafka_offset FROM admissions ORDER BY 1")
    counted = table(settings, "SELECT sum(frames), sum(held), sum(admitted) FROM batches")
    lose_ledger(settings)
    rebuild(settings)
    assert load() == 0
    assert table(settings, "SELECT sum(frames), sum(held), sum(admitted) FROM batches") == counted
    assert table(settings, "SELECT kafka_offset FROM admissions ORDER BY 1") == admissions


def test_results_of_another_precision_or_time_zone_are_refused_naming_both(make_settings):
    settings = make_settings()
    topic = log_in_batches(settings, 100)
    run_tick(settings, topic)
    lose_ledger(settings)
    with pytest.raises(SettingError, match="lg_k=8 .*UNIQ_LG_K is 9"):
        plan(settings.model_copy(update={"lg_k": 9}))
    day_of_hours = settings.model_copy(update={"timezone": "Asia/Kolkata"})
    with pytest.raises(SettingError, match="UNIQ_TIMEZONE, Asia/Kolkata"):
        plan(day_of_hours)
    assert not (settings.data_dir / "ledger.db").exists()


@pytest.mark.parametrize("published", [True, False])
def test_what_is_stored_is_published_again_unless_told_not_to(make_settings, published):
    settings = make_settings(results_topic="counts")
    topic = log_in_batches(settings, 100)
    sink = ListSink()
    run_tick(settings, topic, open_sink=lambda: sink)
    sent = set(sink.messages)
    lose_ledger(settings)
    rebuild(settings, published=published)
    again = ListSink()
    run_tick(settings, topic, open_sink=lambda: again)
    assert set(again.messages) == (sent if published else set())


class ListSink:
    def __init__(self) -> None:
        self.messages: list[tuple[bytes | None, bytes]] = []

    def send(self, messages: Any) -> int:
        new = list(messages)
        self.messages += new
        return len(new)


# The command


@pytest.fixture
def command(make_settings, monkeypatch, capsys):
    """(settings, call): call(*arguments) returns the exit code, and what was printed."""
    settings = make_settings()
    for name in ("data_dir", "topic", "lg_k"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["uniq-pipeline", "rebuild", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return settings, call


def test_the_command_says_first_what_it_will_do_and_a_dry_run_changes_nothing(command):
    settings, call = command
    log_in_batches(settings, 100, 200)
    code, _, complaint = call("--yes")
    assert code == 6 and "is not lost" in complaint
    lose_ledger(settings)
    before = files(settings)
    code, said, _ = call("--dry-run")
    assert code == 0 and files(settings) == before
    assert f"topic {settings.topic}: 2 batches; topic partition 0 [0, 200)" in said
    assert "2 batches (0 of them moves) with 200 frames, 0 held, 0 quarantined" in said
    code, said, _ = call("--dry-run", "--json")
    assert json.loads(said)["rows"] == {"frames": 200, "held": 0, "quarantine": 0}
    assert call("--json")[0] == 2
    code, _, complaint = call("--yes")
    assert code == 0 and "ledger rebuilt" in complaint
    assert table(settings, "SELECT next_offset FROM topic_partitions") == [(200,)]


def test_the_command_asks(command, monkeypatch):
    settings, call = command
    log_in_batches(settings, 100)
    lose_ledger(settings)
    monkeypatch.setattr("click.confirm", lambda *args, **kwargs: (_ for _ in ()).throw(click.Abort()))
    assert call()[0] == 130
    assert not (settings.data_dir / "ledger.db").exists()


def test_the_command_refuses_losses_and_an_empty_lake(command):
    settings, call = command
    assert call("--yes")[0] == 2
    log_in_batches(settings, 100, 200, 300)
    batch_files(settings)[1][2].unlink()
    lose_ledger(settings)
    code, said, complaint = call("--yes")
    assert code == 4 and "lost: topic" in said and "[100, 200)" in complaint
    assert call("--yes", "--accept-gaps")[0] == 0


# The choice of batches alone


def link(name: str, *ranges: tuple[int, int, int], **more: bool) -> Link:
    return Link(name, tuple(OffsetRange(*r) for r in ranges), **more)


def test_of_batches_that_read_the_same_the_certain_then_the_whole_then_the_later_is_chosen():
    same = (0, 0, 10)
    assert find_chain([link("a", same), link("b", same)]).batch_ids == ["b"]
    assert find_chain([link("a", same), link("b", same, is_whole=False)]).batch_ids == ["a"]
    assert find_chain([link("a", same, is_certain=True), link("b", same)]).batch_ids == ["a"]


def test_a_batch_is_used_for_all_its_topic_partitions_or_not_at_all():
    beaten = link("c", (0, 0, 20), (1, 0, 8))
    chain = find_chain([link("a", (0, 0, 10), (1, 0, 10)), link("b", (0, 10, 20)), beaten, link("d", (1, 10, 20))])
    assert chain.batch_ids == ["a", "b", "d"] and chain.ends == {0: 20, 1: 20} and chain.gaps == []


@pytest.mark.parametrize("seed", range(30))
def test_whatever_was_beaten_or_killed_the_chain_has_every_offset_once(seed):
    rng = Random(seed)
    at = {p: rng.randrange(5) for p in range(rng.choice([1, 2, 3]))}
    first = dict(at)
    links: list[Link] = []

    def batch(is_whole: bool = True) -> Link:
        chosen = [p for p in at if rng.random() < 0.7] or [0]
        ranges = [(p, at[p], at[p] + rng.randint(1, 12)) for p in chosen]
        return link(f"{len(links):03}", *ranges, is_whole=is_whole)

    for _ in range(40):
        for _ in range(rng.choice([0, 0, 1, 2])):
            links.append(batch(is_whole=rng.random() < 0.5))  # an orphan
        links.append(batch())
        at |= {r.kafka_partition: r.end_offset for r in links[-1].ranges}
    rng.shuffle(links)
    chain = find_chain(links)
    by_name = {one.batch_id: one for one in links}
    reached = dict(first)
    for batch_id in chain.batch_ids:
        assert by_name[batch_id].is_whole
        for r in by_name[batch_id].ranges:
            assert r.start_offset == reached[r.kafka_partition]
            reached[r.kafka_partition] = r.end_offset
    assert chain.gaps == [] and sum(reached.values()) >= sum(at.values())


def test_a_gap_is_named_and_a_crossing_is_refused():
    chain = find_chain([link("a", (0, 0, 10)), link("b", (0, 15, 20))])
    assert chain.gaps == [OffsetRange(0, 10, 15)] and chain.batch_ids == ["a", "b"]
    with pytest.raises(Overlap):
        find_chain([link("a", (0, 0, 10)), link("b", (0, 5, 20))])
