"""Processes killed at every point of the commit protocol: nothing is lost, nothing is counted twice.

The numbers are those of the fault list (docs). Real processes, a real broker, SIGKILL. After each story the
audit counts everything again from the files and holds it against what was delivered.

UNIQ_CRASH_SEEDS   how many random stories are told; a long run takes hundreds
UNIQ_CRASH_FIRST   the first of them, so that one story can be told again
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import sleep, time
from typing import Any

import pytest
from support.audit import audit, read_back, read_topic
from support.frames import Delivered, send, small_traffic
from support.nursery import LOST_RACE, Nursery
from support.refined import accepted, consumed, on_topic
from support.tables import asked
from support.ticks import run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.kafka.embedded import EmbeddedBroker

SEEDS = int(os.environ.get("UNIQ_CRASH_SEEDS", "3"))
FIRST_SEED = int(os.environ.get("UNIQ_CRASH_FIRST", "1"))

KILLED = -signal.SIGKILL

# Four minutes before a year ends, and five after: an hour, a day, a week, a month and a year are closed.
YEAR_ENDS_S = {
    "UTC": 1_704_067_200,  # 2024-01-01, a Monday
    "Asia/Kolkata": 1_704_067_200 - 19_800,  # half past an hour in UTC
    "America/New_York": 1_704_067_200 + 18_000,
}
BEFORE_S, AFTER_S = 240, 300


class Story:
    """One topic with its truth, one data folder, and the runs that work on them."""

    def __init__(
        self, bootstrap_servers: str, nursery: Nursery, settings: Settings, seed: int, frames_per_s: float = 4
    ) -> None:
        self.settings = settings
        self.delivered: Delivered = {}
        self._bootstrap_servers = bootstrap_servers
        self._nursery = nursery
        self._rng = Random(seed)
        self._traffic = small_traffic(seed, frames_per_s=frames_per_s)
        self._start_s = YEAR_ENDS_S[settings.timezone] - BEFORE_S
        self._sent_until = 0.0
        self._log = settings.data_dir / "failed-runs.txt"

    def send(self, share: float) -> None:
        """Sends a share of all the traffic, going on where it ended."""
        until = min(1.0, self._sent_until + share)
        seconds = BEFORE_S + AFTER_S
        records = self._traffic.records_between(
            self._start_s + self._sent_until * seconds, self._start_s + until * seconds
        )
        self._sent_until = until
        self.delivered |= send(self._bootstrap_servers, self.settings.topic, records, self._rng)

    def start(self, **job: Any) -> int:
        values = self.settings.model_dump(mode="json", exclude_none=True)
        values["ledger_url"] = self.settings.effective_ledger_url  # as it is: a dump hides it
        return self._nursery.start({"settings": values, "log": str(self._log), **job})

    def wait(self, pid: int) -> int:
        """The exit code; a run that failed in any way but a kill or a lost race is an error of the test."""
        code = self._nursery.wait(pid)
        assert code in (0, LOST_RACE, KILLED), self._log.read_text()
        return code

    def run(self, **job: Any) -> int:
        return self.wait(self.start(**job))

    def kill_at(self, name: str, nth: int = 1, **job: Any) -> None:
        assert self.run(at=name, nth=nth, **job) == KILLED, f"{name} was not reached {nth} times"

    def wait_until_stopped(self, pid: int) -> None:
        assert self._nursery.wait_until_stopped(pid)

    def finish(self, *, close: bool = True) -> list[str]:
        """Sends the rest, does what is left in one clean run, and audits."""
        self.send(1.0)
        run_tick(self.settings, close_windows=close)
        return self.audit(close=close)

    def audit(self, *, close: bool = True) -> list[str]:
        return audit(self.settings, self.delivered, closed=close)

    def path(self, name: str) -> Path:
        return self.settings.data_dir / "lake" / name

    def files(self, folder: str = "") -> set[str]:
        return {p.relative_to(self.path("")).as_posix() for p in self.path(folder).rglob("*") if p.is_file()}

    def ledger(self, sql: str) -> list[tuple]:
        return asked(self.settings, sql)

    def results(self) -> list[dict[str, Any]]:
        """What a reader sees now."""
        stored = read_back(self.settings, problems := [])
        assert problems == []
        return [row for rows in stored.results.values() for row in rows.values()]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def tell(broker: EmbeddedBroker, nursery: Nursery, make_settings: Callable[..., Settings]) -> Callable[..., Story]:
    def make(seed: int = 1, **overrides: Any) -> Story:
        values = {"kafka_bootstrap_servers": broker.bootstrap_servers, "batch_frames": 250, **overrides}
        settings = make_settings(**values)
        settings = settings.model_copy(update={"results_topic": f"{settings.topic}-counts"})
        return Story(broker.bootstrap_servers, nursery, settings, seed)

    return make


# 1 to 4: before the commit. Nothing of a killed run counts, and the next one takes the same range.


def test_fault_01_killed_before_the_fetch_the_next_run_takes_the_same_range(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("drain.before_fetch")
    assert story.finish(close=False) == []


def test_fault_02_killed_while_a_file_is_written_readers_see_nothing_of_it(tell):
    story = tell()
    story.send(0.6)
    for nth in (1, 2, 4):
        story.kill_at("lake.before_fsync", nth, do="drain")
    half_written = {name for name in story.files() if name.endswith(".writing")}
    assert len(half_written) == 3
    assert story.finish(close=False) == []
    assert half_written <= story.files(), "only gc touches them"


def test_fault_03_power_lost_after_the_write_the_range_is_read_again(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("lake.file_stands", 2, do="drain")
    # What a power cut may leave of files that no ledger row names: anything at all.
    for name in story.files("frames"):
        story.path(name).write_bytes(b"PAR1 and then nothing")
    assert story.finish(close=False) == []


def test_fault_04_killed_between_file_and_commit_the_orphan_never_counts_and_gc_removes_it(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("drain.before_commit", do="drain")
    orphans = story.files()
    assert orphans
    assert story.finish(close=False) == []
    old = time() - 100 * 3600
    for name in story.files():
        os.utime(story.path(name), (old, old))
    assert story.run(do="gc") == 0
    assert not orphans & story.files()
    assert story.audit(close=False) == []


def test_fault_05_killed_inside_the_commit_it_is_rolled_back(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("drain.in_commit", 2, do="drain")
    # the ledger is prepared in a transaction of its own, so the second is the next batch's
    story.kill_at("ledger.before_commit", 2, do="drain")
    assert story.finish(close=False) == []


# 6 to 8: after the commit. What was committed is never done again, what is marked is done next.


def test_fault_06_killed_after_the_commit_the_next_run_counts_what_was_marked(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("drain.after_commit", do="drain")
    story.kill_at("ledger.after_commit", 2, do="drain")
    assert story.finish(close=False) == []


def test_fault_07_killed_before_results_are_committed_the_old_revision_stays_visible(tell):
    story = tell()
    story.send(0.3)
    assert story.run() == 0
    shown = story.results()
    story.send(0.3)
    for name in ("count.before_read", "count.files_listed", "count.before_commit", "count.in_commit"):
        story.kill_at(name)
        assert story.results() == shown
    story.kill_at("count.after_commit")
    assert story.results() != shown, "minutes are new, what is merged from them is marked"
    story.kill_at("count.in_commit", 2)
    assert story.finish() == []


def test_fault_07_killed_while_uid_sets_are_built_the_next_run_builds_the_rest(tell):
    story = tell()
    story.send(1.0)
    assert story.run() == 0
    # nothing else is left to be written by now
    story.kill_at("lake.file_stands", 2, do="close")
    assert len(story.ledger("SELECT * FROM uid_sets")) == 1
    assert story.finish() == []


def test_fault_08_killed_after_publishing_the_same_revision_is_sent_again(tell):
    story = tell()
    story.send(0.5)
    story.kill_at("publish.sent")
    assert story.finish(close=False) == []
    times = Counter(read_topic(story.settings.kafka_bootstrap_servers, story.settings.results_topic))
    assert 2 in times.values(), "the very same bytes"


# 10: compaction, expiry and gc. The old or the new set of files, never both, never neither.


MERGE_POINTS = [
    ("compact.before_write", 1),
    ("lake.before_fsync", 1),
    ("lake.file_stands", 2),
    ("compact.before_commit", 1),
    ("merge.in_commit", 2),
    ("ledger.before_commit", 2),
    ("compact.after_commit", 1),
]


def test_fault_10_killed_while_files_are_merged_the_old_or_the_new_set_counts(tell):
    story = tell()
    story.send(0.5)
    assert story.run(do="close") == 0
    for share, (name, nth) in zip([0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0], MERGE_POINTS, strict=True):
        story.kill_at(name, nth, do="compact")
        assert story.audit() == [], name
        story.send(share - story._sent_until)
        assert story.run(do="close") == 0
        assert story.audit() == [], name
    shown = story.results()
    assert story.run(do="compact") == 0
    assert story.finish() == []
    assert story.results() == shown, "nothing was computed again"
    folders = Counter(
        path.rpartition("/")[0]
        for (path,) in story.ledger("SELECT path FROM files WHERE retired_at IS NULL AND kind IN ('frames', 'held')")
    )
    assert set(folders.values()) == {1} and len(folders) >= 2


def test_fault_10_killed_while_gc_removes_what_was_merged_it_goes_on(tell):
    story = tell(gc_grace_h=0)
    story.send(1.0)
    assert story.run(do="close") == 0
    assert story.run(do="compact") == 0
    merged = [path for (path,) in story.ledger("SELECT path FROM files WHERE retired_at IS NOT NULL")]
    assert len(merged) > 4
    for name, nth in (("gc.removed", 1), ("gc.removed", 3), ("ledger.before_commit", 2)):
        story.kill_at(name, nth, do="gc")
        assert [problem for problem in story.audit() if ": files hold {" not in problem] == []
    assert not story.files() & set(merged), "gone, though the ledger does not know it yet"
    assert story.run(do="gc") == 0
    assert not story.files() & set(merged)
    assert story.ledger("SELECT * FROM files WHERE retired_at IS NOT NULL") == []
    assert [problem for problem in story.audit() if ": files hold {" not in problem] == []


def test_fault_10_killed_while_days_expire_each_day_is_there_or_gone(tell):
    story = tell()
    story.send(1.0)
    assert story.run(do="close") == 0
    shown = story.results()
    values = {"retention": "frames=1,held=1,quarantine=1,hour_sets=1,day_sets=1"}
    story.settings = story.settings.model_copy(update=values)
    for name in ("lake.file_stands", "expire.before_commit", "merge.in_commit", "expire.after_commit"):
        story.kill_at(name, do="expire")
        (row,) = story.ledger(
            "SELECT sum(frames) - sum(withdrawn), sum(delivered) - sum(expired), sum(held) - sum(admitted), "
            "sum(quarantined) - sum(replayed) FROM batches"
        )
        (live,) = story.ledger("SELECT sum(rows) FROM files WHERE kind = 'frames' AND retired_at IS NULL")
        assert row[0] == (live[0] or 0) and row[1] == row[0] + row[2] + row[3]
    assert story.run(do="expire") == 0
    left = story.ledger("SELECT path FROM files WHERE kind = 'frames' AND retired_at IS NULL")
    assert left and all("hour=2024-01-01" in path for (path,) in left), "a day that is not over waits for its set"
    expired = {what for (what,) in story.ledger("SELECT what FROM expired")}
    assert expired == {"frames", "hour_sets", "day_sets"}
    assert story.run(do="close") == 0
    assert story.results() == shown


# 9: a run that was given up, and wakes up after others went on.


def test_fault_09_a_drain_that_wakes_up_late_is_fenced_at_its_commit(tell):
    story = tell()
    story.send(0.5)
    zombie = story.start(at="drain.before_commit", signal=signal.SIGSTOP)
    story.wait_until_stopped(zombie)
    assert story.run(do="drain") == 0, "the next run proceeds"
    before = story.ledger("SELECT * FROM batches")
    os.kill(zombie, signal.SIGCONT)
    assert story.wait(zombie) == LOST_RACE
    assert story.ledger("SELECT * FROM batches") == before
    assert story.finish(close=False) == []


def test_fault_09_runs_that_wake_up_with_an_old_count_do_not_store_it(tell):
    story = tell()
    story.send(0.4)
    publisher = story.start(at="publish.sent", signal=signal.SIGSTOP)
    story.wait_until_stopped(publisher)
    story.send(0.2)
    counter = story.start(at="count.before_commit", signal=signal.SIGSTOP)
    story.wait_until_stopped(counter)
    story.send(0.1)
    assert story.run() == 0, "the next run proceeds"
    for zombie in (counter, publisher):
        os.kill(zombie, signal.SIGCONT)
        assert story.wait(zombie) == 0, "it starts over from what is there now"
    assert story.finish() == []


def test_fault_10_killed_in_gc_the_next_one_finishes_and_no_file_that_counts_is_touched(tell):
    story = tell(gc_grace_h=0)
    story.send(0.3)
    assert story.run() == 0
    story.send(0.3)
    assert story.run() == 0
    sleep(0.01)  # files retired at this very moment are not older than it
    retired = {row[0] for row in story.ledger("SELECT path FROM files WHERE retired_at IS NOT NULL")}
    assert retired <= story.files()
    story.kill_at("ledger.before_commit", 2, do="gc")
    assert not retired & story.files()
    story.kill_at("ledger.after_commit", 2, do="gc")
    assert story.run(do="gc") == 0
    assert story.finish(close=False) == []


def test_fault_51_of_three_drains_at_once_each_record_is_committed_by_one(tell):
    story = tell()
    story.send(0.7)
    runs = [story.start(do="drain") for _ in range(3)]
    assert {story.wait(run) for run in runs} <= {0, LOST_RACE}
    assert story.finish(close=False) == []


# Any of it at once.


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_random_kills_of_up_to_three_runs_at_once_lose_nothing_and_double_nothing(tell, seed):
    _tell_at_random(tell, seed)


@pytest.mark.kafka
@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_on_real_kafka_lose_nothing_and_double_nothing(kafka, nursery, make_settings, seed):
    def tell(seed: int, **overrides: Any) -> Story:
        topic = make_settings().topic
        names = {"topic": topic, "results_topic": f"{topic}-counts"}
        kafka.create_topic(topic, 4, retention_ms=-1)  # its records are years old
        kafka.create_topic(names["results_topic"], cleanup_policy="compact")
        kafka.create_topic(overrides["refined_topic"], 3)
        settings = make_settings(kafka_bootstrap_servers=kafka.bootstrap_servers, **names, **overrides)
        return Story(kafka.bootstrap_servers, nursery, settings, seed)

    _tell_at_random(tell, seed)


def _tell_at_random(tell: Callable[..., Story], seed: int) -> None:
    rng = Random(seed)
    story = tell(
        seed,
        timezone=rng.choice(list(YEAR_ENDS_S)),
        batch_frames=rng.choice([100, 250, 1000]),
        very_late=rng.choice(["hold", "correct"]),
        refined_topic=f"refined-{time()}",
    )
    story.send(0.2)
    for _ in range(rng.randint(2, 3)):
        sender = threading.Thread(target=story.send, args=(0.3,))
        sender.start()  # traffic goes on while the runs are at it
        runs = [story.start(**_random_job(rng)) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            sleep(rng.uniform(0.1, 1))
            os.kill(runs[0], signal.SIGKILL)  # where no point has a name
        for run in runs:
            story.wait(run)
        sender.join()
    assert story.finish() == []
    assert consumed(message for _, message in on_topic(story.settings)) == accepted(story.settings)


def _random_job(rng: Random) -> dict[str, Any]:
    job: dict[str, Any] = {"do": rng.choice(["tick", "tick", "close", "drain", "drain"])}
    fate = rng.random()
    if fate < 0.4:
        name = rng.choice(POINTS)
        job |= {"at": name, "nth": rng.choice([1, 1, 2, 3, 5])}
    elif fate < 0.8:
        job |= {"at": "*", "nth": rng.randint(1, 90)}
    return job


POINTS = [
    "drain.before_fetch",
    "drain.before_write",
    "lake.before_fsync",
    "lake.file_stands",
    "drain.before_commit",
    "drain.in_commit",
    "refined.before_send",
    "refined.sent",
    "refined.noted",
    "ledger.before_commit",
    "ledger.after_commit",
    "drain.after_commit",
    "count.before_read",
    "count.files_listed",
    "count.before_commit",
    "count.in_commit",
    "count.after_commit",
    "sets.before_commit",
    "publish.sent",
]
