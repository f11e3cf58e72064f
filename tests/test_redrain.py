"""Redrain: a range of offsets that Kafka still holds is read once more, and replaces what the lake has of it.

Held against the files, read back in plain Python (support.audit): a record is in one place, and every window is what
is in them.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.audit import audit, read_back
from support.frames import MemoryTopic, Sent, frame, small_traffic

from uniq_pipeline.compact import compact
from uniq_pipeline.config import Settings, TsUnit, VeryLate
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.errors import InputError, LakeError, LostRace, OffsetsLost, TopicRecreated
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.move import admit, withdraw
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild import carry_out, plan_rebuild
from uniq_pipeline.redrain import RedrainReport, plan_redrain, redrain
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import Grain

T0 = 1_704_067_200 - 300  # five minutes before an hour ends
GRAINS = ("minute", "hour")

Place = tuple[int, int]


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.tick.refresh_catalog", lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _one_warehouse() -> Iterator[None]:
    made: list[Warehouse] = []

    @contextmanager
    def opened(**options: Any) -> Iterator[Warehouse]:
        if not made:
            made.append(Warehouse(**options).__enter__())
        yield made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniq_pipeline.tick.Warehouse", opened)
        yield
    for warehouse in made:
        warehouse.__exit__()


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


def traffic(settings: Settings, seed: int = 1) -> MemoryTopic:
    topic = MemoryTopic(settings.topic)
    topic.send(small_traffic(seed, frames_per_s=2, users=60).records_between(T0, T0 + 600), Random(seed))
    return topic


def whole(topic: MemoryTopic) -> list[OffsetRange]:
    return [OffsetRange(p, 0, len(log)) for p, log in topic.logs.items()]


def run(shop: Workshop, topic: MemoryTopic, offsets: list[OffsetRange] | None = None) -> RedrainReport:
    return redrain(shop, topic, plan_redrain(shop, topic, offsets or whole(topic)))


def where(settings: Settings) -> dict[Place, tuple[str, dict[str, Any]]]:
    """Every record the ledger names; it is an error for one to be in two places."""
    stored = read_back(settings, problems := [])
    assert problems == []
    proved = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    found: dict[Place, tuple[str, dict[str, Any]]] = {}
    for kind in ("frames", "held", "quarantine"):
        for row in stored.files.get(kind, []):
            place = row["kafka_partition"], row["kafka_offset"]
            if kind == "held" and place in proved:
                continue
            assert place not in found, f"{place} is in {kind} and in {found[place][0]}"
            found[place] = kind, row
    return found


def live(settings: Settings, kind: str) -> list[str]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        sql = "SELECT path FROM files WHERE retired_at IS NULL AND kind = ? AND rows > 0 ORDER BY path"
        return [row[0] for row in connection.execute(sql, [kind])]


def asked(settings: Settings, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        return connection.execute(sql).fetchall()


def destroy(settings: Settings, path: str, how: str = "missing") -> None:
    full = settings.data_dir / "lake" / path
    if how == "missing":
        full.unlink()
    else:
        full.write_bytes(full.read_bytes()[:-9])


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(batch_frames=150)


def moved_now(settings: Settings, topic: MemoryTopic) -> dict[Place, str]:
    """Where records are that a person moved: counted though of a class that is held, or quarantined in vain."""
    moved = {}
    for place, (kind, row) in where(settings).items():
        if kind == "frames" and row["event_class"] in ("very_late", "future"):
            moved[place] = kind
    return moved


def wrong(shop: Workshop, topic: MemoryTopic) -> list[str]:
    tick(shop, None, None, close_windows=True)
    assert overview(shop.ledger).is_conserved
    problems = audit(shop.settings, topic.delivered, grains=GRAINS, moved=moved_now(shop.settings, topic))
    return [problem for problem in problems if ": files hold {" not in problem]


def rebuilt(settings: Settings) -> None:
    """The ledger is lost, and made anew from the lake."""
    for end in ("", "-wal", "-shm"):
        settings.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    try:
        planned = plan_rebuild(settings, ledger, lake)
        assert planned.losses == []
        carry_out(settings, ledger, lake, planned)
    finally:
        ledger.close()


def test_what_comes_out_the_same_is_left_as_it_is(settings):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None, close_windows=True)
        before, files = where(settings), asked(settings, "SELECT * FROM files ORDER BY path")
        report = run(shop, topic)
        assert (report.read, report.replaced, report.kept) == (len(topic.delivered), 0, 0)
        assert asked(settings, "SELECT * FROM files ORDER BY path") == files
        assert where(settings) == before
        assert wrong(shop, topic) == []


@pytest.mark.parametrize("how", ["missing", "cut off"])
@pytest.mark.parametrize("kind", ["frames", "held", "quarantine"])
def test_fault_50_what_a_lost_file_held_is_read_again_and_put_back_where_it_was(settings, kind, how):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None, close_windows=True)
        before, rows = where(settings), read_back(settings, []).results
        tallies = asked(settings, "SELECT * FROM tallies ORDER BY 1, 2, 3")
        lost = max(live(settings, kind), key=lambda path: len(path))
        for path in live(settings, kind)[1:3]:
            lost = path
            destroy(settings, path, how)
        plan = plan_redrain(shop, topic, whole(topic))
        assert any(lost in line and "missing or damaged" in line for line in plan.lines())
        report = redrain(shop, topic, plan)
        assert report.restored > 0
        after = where(settings)
        assert {place: found[0] for place, found in after.items()} == {p: found[0] for p, found in before.items()}
        names = ("event_time", "uid", "coupon", "kafka_time", "payload", "reason", "detail")
        for place, (_, row) in after.items():
            assert {n: row[n] for n in names if n in row} == {n: v for n, v in before[place][1].items() if n in names}
        assert asked(settings, "SELECT * FROM tallies ORDER BY 1, 2, 3") == tallies
        assert wrong(shop, topic) == []
        for grain in GRAINS:
            for start_s, row in read_back(settings, []).results[grain].items():
                old = rows[grain][start_s]
                assert (row["frames"], row["hll"]) == (old["frames"], old["hll"])
                assert row["revision"] >= old["revision"]
    rebuilt(settings)
    assert {place: found[0] for place, found in where(settings).items()} == {p: f[0] for p, f in before.items()}
    with open_workshop(settings) as shop:
        assert wrong(shop, topic) == []


def kinds_by_minute(found):
    """(kind, event minute) -> records."""
    times = ((kind, row.get("event_time")) for kind, row in found.values())
    return Counter((kind, time and int(time.timestamp()) // 60) for kind, time in times)


def test_files_of_one_batch_that_are_lost_together_are_put_back_together(settings):
    topic = traffic(settings, seed=3)
    with open_workshop(settings) as shop:
        tick(shop, topic, None, close_windows=True)
        before = where(settings)
        batch_id = Path(live(settings, "held")[2]).stem
        lost = [path for kind in ("frames", "held", "quarantine") for path in live(settings, kind) if batch_id in path]
        assert len(lost) >= 3
        ((rows,),) = asked(settings, f"SELECT sum(rows) FROM files WHERE batch_id = '{batch_id}'")
        for path in lost:
            destroy(settings, path)
        report = run(shop, topic)
        assert (report.restored, report.files) == (rows, len(lost))
        # which of the frames of a minute were held nothing says any more, how many does
        assert kinds_by_minute(where(settings)) == kinds_by_minute(before)
        again = where(settings)
        assert overview(shop.ledger).is_conserved
    rebuilt(settings)
    assert {p: f[0] for p, f in where(settings).items()} == {p: f[0] for p, f in again.items()}


def test_what_a_person_admitted_and_withdrew_stays_so_when_its_file_is_lost(settings):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        admit(shop, 0, 1 << 40)
        withdraw(shop, T0, T0 + 300)
        tick(shop, None, None, close_windows=True)
        before = where(settings)
        moves = [b for (b,) in asked(settings, "SELECT batch_id FROM batches WHERE kind <> 'drain' ORDER BY 1")]
        lost = [p for kind in ("frames", "held") for p in live(settings, kind) if any(f"/{m}" in p for m in moves)]
        assert len(lost) > 2
        destroy(settings, lost[0])
        report = run(shop, topic)
        assert report.restored > 0
        assert {p: found[0] for p, found in where(settings).items()} == {p: f[0] for p, f in before.items()}
        assert overview(shop.ledger).is_conserved


def test_a_frame_that_its_log_proved_is_counted_once_when_its_held_row_is_lost(settings):
    topic = MemoryTopic(settings.topic, logs={0: []}, at_once=50)
    topic.send([frame(T0 + i, f"user-{i % 20}") for i in range(100)])
    topic.send([frame(T0 + 7200 + i, f"early-{i}", arrival_s=T0 + 101, kind=Kind.FLIPPED) for i in range(4)])
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        topic.send([frame(T0 + 7200 + i, f"user-{i % 20}") for i in range(64)])
        tick(shop, topic, None, close_windows=True)
        assert len(asked(settings, "SELECT * FROM admissions")) == 4
        before = where(settings)
        destroy(settings, live(settings, "held")[0])
        assert run(shop, topic).restored == 4
        assert where(settings) == before
        assert wrong(shop, topic) == []
        for path in live(settings, "held") + live(settings, "frames")[-1:]:
            destroy(settings, path)
        run(shop, topic)
        assert {p: f[0] for p, f in where(settings).items()} == {p: f[0] for p, f in before.items()}
        assert wrong(shop, topic) == []
    rebuilt(settings)
    assert len(asked(settings, "SELECT * FROM admissions")) == 4
    with open_workshop(settings) as shop:
        assert wrong(shop, topic) == []


def test_a_frame_admitted_while_it_awaited_proof_is_counted_once_though_its_file_and_then_the_ledger_are_lost(settings):
    topic = MemoryTopic(settings.topic, logs={0: []}, at_once=50)
    topic.send([frame(T0 + i, f"user-{i % 20}") for i in range(100)])
    topic.send([frame(T0 + 7200 + i, f"early-{i}", arrival_s=T0 + 101, kind=Kind.FLIPPED) for i in range(4)])
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        assert admit(shop, T0 + 7200, T0 + 7300).frames == 4
        path = live(settings, "frames")[-1]
        destroy(settings, path)
        assert run(shop, topic).restored == 4
    rebuilt(settings)
    topic.send([frame(T0 + 7200 + i, f"user-{i % 20}") for i in range(64)])
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        assert set(where(settings)) == set(topic.delivered)
        assert overview(shop.ledger).is_conserved


def test_under_a_mended_setting_what_was_quarantined_becomes_frames_and_what_counted_goes_on_counting(settings):
    topic = MemoryTopic(settings.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 9}") for i in range(300)])
    log = topic.logs[0]
    for i in range(100, 120):  # a producer that counts milliseconds
        log[i] = Sent(log[i].kafka_time_ms, log[i].truth, log[i].payload.replace(b',"uid"', b'000,"uid"'))
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        assert sum(kind == "quarantine" for kind, _ in where(settings).values()) == 20
    milliseconds = settings.model_copy(update={"ts_unit": TsUnit.MILLISECONDS})
    with open_workshop(milliseconds) as shop:
        report = run(shop, topic)
        # Seconds read as milliseconds are 1970: what counted goes on counting, at its new time.
        assert report.replaced == 300
        found = where(settings)
        assert {kind for kind, _ in found.values()} == {"frames"}
        assert overview(shop.ledger).is_conserved
    with open_workshop(settings) as shop:
        report = run(shop, topic)
        assert (report.replaced, report.kept) == (280, 20), "what cannot be read now stays what it was"
        tick(shop, None, None, close_windows=True)
        minutes = read_back(settings, []).results["minute"]
        assert {s: row["frames"] for s, row in minutes.items() if row["frames"]} == {T0 + 60 * i: 60 for i in range(5)}
        assert minutes[T0 + 60]["reason"] == "redrained" and minutes[T0]["reason"] == "live"


def test_held_frames_count_where_the_settings_say_so_by_now(settings):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        before = where(settings)
    correct = settings.model_copy(update={"very_late": VeryLate.CORRECT})
    with open_workshop(correct) as shop:
        very_late = {p for p, (k, row) in before.items() if k == "held" and row["event_class"] == "very_late"}
        assert run(shop, topic).replaced == len(very_late) > 0
        after = where(settings)
        assert {p for p in after if after[p] != before[p]} == very_late
        assert all(after[p] == ("frames", before[p][1]) for p in very_late)
        assert run(shop, topic).replaced == 0
        assert wrong(shop, topic) == []


def test_only_the_range_is_touched(settings):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        before = where(settings)
    correct = settings.model_copy(update={"dimensions": "country"})
    with open_workshop(correct) as shop:
        run(shop, topic, [OffsetRange(0, 40, 60)])
        after = where(settings)
        changed = {p for p in after if after[p] != before[p]}
        assert changed == {(0, o) for o in range(40, 60) if before[0, o][0] != "quarantine"}
        assert {dict(after[p][1]["dimensions"])["country"] for p in changed} == {"(none)"}


def test_what_cannot_be_read_again_is_refused_by_name(settings):
    topic = MemoryTopic(settings.topic, logs={0: [], 1: []})
    topic.send([frame(T0 + i, f"user-{i % 9}") for i in range(200)])
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        end = len(topic.logs[0])
        for r, words in [
            (OffsetRange(0, 5, 5), "0 <= start < end"),
            (OffsetRange(0, -1, 5), "0 <= start < end"),
            (OffsetRange(7, 0, 5), "no such topic partition of this topic, only [0, 1]"),
            (OffsetRange(0, 5, end + 1), f"offsets from {end} on were not drained yet"),
        ]:
            with pytest.raises(InputError, match=words.replace("[", r"\[").replace("]", r"\]")) as refused:
                plan_redrain(shop, topic, [r])
            assert settings.topic in str(refused.value)
        topic.low = {0: 30}
        with pytest.raises(OffsetsLost, match="low watermark is 30"):
            plan_redrain(shop, topic, [OffsetRange(0, 29, 50)])
        plan_redrain(shop, topic, [OffsetRange(0, 30, 50)])
        # A lost file reaches further than the range that was asked for.
        for path in live(settings, "frames"):
            destroy(settings, path)
        with pytest.raises(OffsetsLost, match="low watermark is 30"):
            plan_redrain(shop, topic, [OffsetRange(0, 30, 50)])
        topic.topic_id = "another"
        with pytest.raises(TopicRecreated, match="another"):
            plan_redrain(shop, topic, [OffsetRange(0, 30, 50)])


def test_where_kafka_has_other_records_than_were_lost_nothing_is_changed_and_both_numbers_are_named(settings):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        (rows,) = asked(settings, "SELECT rows FROM files WHERE kind = 'frames' ORDER BY path LIMIT 1")[0]
        path = live(settings, "frames")[0]
        destroy(settings, path)
        with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection, connection:
            connection.execute("UPDATE files SET rows = rows + 1 WHERE path = ?", [path])
        with pytest.raises(LakeError, match=f"{rows + 1:,} rows were lost, but {rows:,} records"):
            plan_redrain(shop, topic, whole(topic))


# Killed on the way, and two at once.


POINTS = [
    "move.before_write",
    "lake.before_fsync",
    "lake.file_stands",
    "move.before_commit",
    "move.in_commit",
    "ledger.before_commit",
    "ledger.after_commit",
    "move.after_commit",
]


class At:
    """Kills where a name is reached."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.happened = False

    def __call__(self, name: str) -> None:
        if name == self._name and not self.happened:
            self.happened = True
            raise Killed


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, MemoryTopic]:
    """A lake whose settings changed after it was filled, and that has lost files."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("redrain"),
        topic="frames",
        results_topic=None,
        lg_k=8,
        duckdb_threads=1,
        batch_frames=150,
        kafka_bootstrap_servers="localhost:1",
    )
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
    for kind in ("frames", "held"):
        destroy(settings, live(settings, kind)[1])
    return settings.model_copy(update={"very_late": VeryLate.CORRECT}), topic


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_a_second_run_ends_where_one_would_have_that_was_not(template, tmp_path, monkeypatch, point):
    monkeypatch.setattr("uniq_pipeline.redrain.RECORDS_AT_ONCE", 200)
    source, topic = template
    states = []
    for name in ("clean", "killed"):
        shutil.copytree(source.data_dir, tmp_path / name)
        settings = source.model_copy(update={"data_dir": tmp_path / name})
        if name == "killed":
            for _ in range(2):
                failpoint = At(point)
                with open_workshop(settings) as shop, suppress(Killed):
                    ledger = Ledger(settings.effective_ledger_url, failpoint=failpoint)
                    lake = Lake(settings.data_dir / "lake", failpoint)
                    run(Workshop(settings, ledger, lake, shop.warehouse, shop.empty_hll, failpoint), topic)
                assert failpoint.happened
                ledger.close()
        with open_workshop(settings) as shop:
            run(shop, topic)
            tick(shop, None, None)
            assert overview(shop.ledger).is_conserved
            assert run(shop, topic).replaced == 0
            states.append((where(settings), asked(settings, "SELECT * FROM tallies WHERE records ORDER BY 1, 2, 3")))
    assert set(states[0][0]) == set(topic.delivered)
    assert states[0] == states[1]


def test_of_two_at_once_one_commits_and_the_other_says_that_it_lost(settings, monkeypatch):
    topic = traffic(settings)
    with open_workshop(settings) as shop:
        tick(shop, topic, None)
        destroy(settings, live(settings, "frames")[0])
        plan = plan_redrain(shop, topic, whole(topic))
        assert redrain(shop, topic, plan).restored > 0
        before = where(settings)
        with pytest.raises(LostRace):
            redrain(shop, topic, plan)
        assert where(settings) == before
        assert wrong(shop, topic) == []


@pytest.mark.parametrize("cleaned", [False, True])
@pytest.mark.parametrize("kind", ["frames", "quarantine"])
def test_a_lost_file_that_was_merged_of_many_batches_is_put_back(settings, kind, cleaned):
    topic = traffic(settings, seed=4)
    with open_workshop(settings) as shop:
        tick(shop, topic, None, close_windows=True)
        assert admit(shop, T0, T0 + 60).frames >= 0
        tick(shop, None, None, close_windows=True)
    # held frames are not in the file that is lost, so what was admitted of an hour is known from what was not
    with open_workshop(settings, now=lambda: time.time() + 2 * 86_400) as shop:
        assert compact(shop, closed_before_s=2**40).merged_into >= 3
        if cleaned:
            collect_garbage(settings.model_copy(update={"gc_grace_h": 0.0}), shop.ledger, shop.lake)
    with open_workshop(settings) as shop:
        before = where(settings)
        path = max(live(settings, kind), key=lambda path: (settings.data_dir / "lake" / path).stat().st_size)
        destroy(settings, path)
        (range_,) = asked(settings, f"SELECT rows FROM files WHERE path = '{path}'")
        report = run(shop, topic)
        assert (report.restored, report.files) == (range_[0], 1)
        assert kinds_by_minute(where(settings)) == kinds_by_minute(before)
        assert wrong(shop, topic) == []
        again = where(settings)
    rebuilt(settings)
    assert {p: f[0] for p, f in where(settings).items()} == {p: f[0] for p, f in again.items()}
    with open_workshop(settings) as shop:
        assert wrong(shop, topic) == []
