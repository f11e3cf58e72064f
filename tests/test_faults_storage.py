"""Storage that fails: a full disk, a read-only one, another writer, a clock that jumps.

The numbers are the rows of the list of faults. Row 49 and 50 are in test_rebuild.py, 52 in test_shell.py, 54 and 55
in test_faults_data.py, 56 in test_rebuild.py; the interleavings behind 51 and 53 are in test_interleaving.py.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from support.audit import audit
from support.disks import Disk, mounted
from support.frames import MemoryTopic, send, small_traffic
from support.stories import T0, mended, minutes_and_hours_only, more
from support.ticks import OnceAt, run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import LakeError, LedgerError, UniqError
from uniq_pipeline.ledger.logs import known_watermark_s, read_positions
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.offsets import TopicState
from uniq_pipeline.schemas import FRAMES_SCHEMA, UID_SET_SCHEMA
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.warehouse import Warehouse, ask_catalog

DAY_S = 86_400

_minutes_and_hours_only = minutes_and_hours_only


def shown(settings: Settings) -> list[dict]:
    """What a person sees in the catalog."""
    return ask_catalog(
        settings.catalog_path,
        "SELECT window_start, frames, unique_users, hll, revision FROM (FROM minute_counts UNION ALL FROM hour_counts) "
        "ORDER BY ALL",
    ).to_pylist()


def ledger_rows(settings: Settings, table: str) -> list[tuple]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()


def command(settings: Settings, *arguments: str, prelude: str = "") -> subprocess.Popen[str]:
    """`uniq-pipeline` as a process of its own."""
    values = settings.model_dump(mode="json", exclude_none=True, include=settings.model_fields_set)
    return subprocess.Popen(
        [sys.executable, "-c", f"{prelude}\nfrom uniq_pipeline.cli import main; main()", *arguments],
        env={**os.environ, **{f"UNIQ_{name.upper()}": str(value) for name, value in values.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Untouched(MemoryTopic):
    """A topic that nobody may ask."""

    def describe(self) -> TopicState:
        raise AssertionError("the topic was asked")


# 47: a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "size=16m") as disk:
        yield disk


@pytest.fixture
def begun(disk: Disk, make_settings: Callable[..., Settings]) -> tuple[Settings, MemoryTopic]:
    """Ten minutes were counted, and more has come."""
    settings, topic = make_settings(data_dir=disk.root / "data"), MemoryTopic()
    more(topic, 0, 350)
    run_tick(settings, topic, close_windows=True)
    more(topic, 350, 500)
    return settings, topic


# When the disk becomes full, and what the error names: (failpoint, which call of it), words.
STEPS = {
    "frames": ("drain.before_write", 1, r"file .*/frames/.* cannot be written: No space left"),
    "held frames": ("lake.file_stands", 2, r"file .*/held/.* cannot be written: No space left"),
    "quarantined records": ("lake.file_stands", 3, r"file .*/quarantine/.* cannot be written: No space left"),
    "half a file": ("lake.before_fsync", 1, r"file .*/frames/.* cannot be written: No space left"),
    "the commit of a batch": ("drain.before_commit", 1, r"ledger sqlite:.*ledger.db: .*full.*No space left"),
    "minutes": ("count.files_listed", 1, r"file .*/results/minute/.* cannot be written: No space left"),
    "the commit of minutes": ("count.before_commit", 1, r"ledger sqlite:.*ledger.db: .*full.*No space left"),
    "hours": ("count.before_read", 2, r"file .*/results/hour/.* cannot be written: No space left"),
    "the commit of hours": ("count.before_commit", 2, r"ledger sqlite:.*ledger.db: .*full.*No space left"),
}


@pytest.mark.mounts
@pytest.mark.parametrize("step", STEPS)
def test_fault_47_a_disk_that_fills_up_while_it_writes(step, disk, begun):
    settings, topic = begun
    name, nth, words = STEPS[step]
    before = shown(settings)
    at = OnceAt(name, disk.fill, nth=nth)
    with pytest.raises(LedgerError if "commit" in step else LakeError, match=words):
        run_tick(settings, topic, failpoint=at, close_windows=True)
    assert shown(settings) == before, "what was counted earlier stays readable, on the full disk"
    disk.clear()
    assert mended(settings, topic) == []
    assert shown(settings) != before


@pytest.mark.mounts
def test_fault_47_a_disk_that_is_full_when_uid_sets_are_built_and_when_the_catalog_is(disk, begun):
    settings, topic = begun
    run_tick(settings, topic)
    more(topic, 500, 550)
    run_tick(settings, topic)  # sets are stale now, everything else is done
    before = shown(settings)
    with open_workshop(settings) as shop:
        disk.fill()
        with pytest.raises(LakeError, match=r"file .*/sets/hour/.* cannot be written: No space left"):
            tick(shop, None, None, close_windows=True)
        with pytest.raises(UniqError, match=r"catalog .*/uniq.duckdb cannot be built: .*No space left"):
            tick(shop, None, None)
        assert shown(settings) == before
        disk.clear()
        tick(shop, None, None, close_windows=True)
    assert audit(settings, topic.delivered, grains=("minute", "hour")) == []


@pytest.mark.mounts
def test_fault_47_whatever_is_left_on_the_disk_a_run_does_all_or_says_what_is_missing(disk, begun):
    settings, topic = begun
    hit = []
    for i, left in enumerate([0, 40, 64, 88, 150, 300, 450, 600, 2000]):
        more(topic, 500 + 20 * i, 520 + 20 * i)
        before = shown(settings)
        disk.fill(left << 10)
        try:
            run_tick(settings, topic, close_windows=True)
            hit.append("nothing")
        except UniqError as error:
            assert "No space left on device" in str(error)
            hit.append(str(error).partition(" ")[0])
            assert shown(settings) == before
        disk.clear()
    assert set(hit) == {"ledger", "file", "catalog", "nothing"}
    assert hit[-1] == "nothing"
    assert mended(settings, topic) == []


@pytest.mark.mounts
def test_fault_47_a_disk_without_room_for_another_file_is_full_too(tmp_path, make_settings):
    topic = MemoryTopic()
    more(topic, 0, 350)
    hit = set()
    with mounted(tmp_path / "disk", "size=16m,nr_inodes=300") as disk:
        settings = make_settings(data_dir=disk.root / "data")
        run_tick(settings, topic)
        for i, left in enumerate([0, 1, 3, 6, 100]):
            more(topic, 350 + 20 * i, 370 + 20 * i)
            before = shown(settings)
            fillers = [disk.root / f"filler-{n}" for n in range(os.statvfs(disk.root).f_favail - left)]
            for filler in fillers:
                filler.touch()
            try:
                run_tick(settings, topic, close_windows=True)
                hit.add("nothing")
            except UniqError as error:
                assert "No space left on device" in str(error)
                hit.add(" ".join(str(error).split()[:2]).partition(" /")[0].partition(" sqlite:")[0])
                assert shown(settings) == before
            for filler in fillers:
                filler.unlink()
        assert hit >= {"ledger", "file", "lake folder", "nothing"}
        assert mended(settings, topic) == []


@pytest.mark.mounts
def test_fault_47_a_spill_that_finds_no_room_says_so_and_not_that_a_file_is_damaged(disk):
    uids = pa.array(np.char.add(np.arange(2_000_000).astype("U8"), "-somebody-with-a-long-name"))
    seconds = pa.array(np.full(len(uids), T0 * 1_000_000), pa.timestamp("us", "UTC"))
    frames = pa.table({"event_time": seconds, "uid": uids, "dimensions": pa.nulls(len(uids), UID_SET_SCHEMA.types[2])})
    with Warehouse(threads=1, memory_mb=128, spill_dir=disk.root) as warehouse:
        warehouse.register("sets", UID_SET_SCHEMA.empty_table())
        warehouse.register("frames", frames)
        disk.fill(1 << 20)
        with pytest.raises(LakeError, match=f"spill folder {disk.root}.*No space left.*UNIQ_DUCKDB_MEMORY_MB"):
            warehouse.run_large("sets/distinct_uids", start_s=T0, end_s=T0 + 1)
        disk.clear()
        warehouse.register("frames", FRAMES_SCHEMA.empty_table())
        assert warehouse.run_large("sets/distinct_uids", start_s=T0, end_s=T0 + 1).num_rows == 0, "the session goes on"


@pytest.mark.mounts
def test_fault_47_on_a_full_disk_the_command_exits_with_6_and_queries_are_answered(disk, begun):
    settings, _ = begun
    question = "SELECT count(*) AS minutes FROM minute_counts"
    (minutes,) = ask_catalog(settings.catalog_path, question)["minutes"].to_pylist()
    disk.fill()
    drained = command(settings, "drain")
    asked = command(settings, "query", "--json", question)
    _, said = drained.communicate(timeout=60)
    assert drained.returncode == 6
    assert said.startswith(f"uniq-pipeline: ledger sqlite:///{settings.data_dir}/ledger.db: ")
    assert "No space left on device" in said and "Traceback" not in said
    answer, _ = asked.communicate(timeout=60)
    assert asked.returncode == 0
    assert json.loads(answer) == {"minutes": minutes}


# 48: a read-only disk


@pytest.mark.mounts
def test_fault_48_a_read_only_folder_fails_before_the_fetch_and_the_offsets_stay(disk, begun):
    settings, topic = begun
    before = ledger_rows(settings, "topic_partitions"), shown(settings)
    disk.remount("ro")
    with pytest.raises(
        LakeError, match=f"lake folder {settings.data_dir}/lake cannot be written: Read-only file system"
    ):
        run_tick(settings, Untouched())
    drained = command(settings, "drain")
    assert "UNIQ_DATA_DIR" in drained.communicate(timeout=60)[1]
    assert drained.returncode == 5
    assert shown(settings) == before[1]
    disk.remount("rw")
    assert ledger_rows(settings, "topic_partitions") == before[0]
    assert mended(settings, topic) == []


@pytest.mark.mounts
@pytest.mark.parametrize("used_before", [True, False])
def test_fault_48_a_ledger_on_a_read_only_disk_fails_before_the_fetch_too(used_before, disk, make_settings, data_dir):
    settings = make_settings(ledger_url=f"sqlite:///{disk.root}/ledger.db")
    if used_before:
        run_tick(settings, MemoryTopic())
    disk.remount("ro")
    with pytest.raises(LedgerError, match=f"ledger sqlite:///{disk.root}/ledger.db: "):
        run_tick(settings, Untouched())


# 51: two writers


# The command, stopped where it has written its files and is about to commit them.
STOPPED = """
import functools, os, signal
from uniq_pipeline.cli import ticking

def stop(name):
    if name == "drain.before_commit":
        os.kill(os.getpid(), signal.SIGSTOP)

ticking.open_workshop = functools.partial(ticking.open_workshop, failpoint=stop)
"""


def test_fault_51_of_two_commands_at_once_one_commits_and_the_other_says_lost_race(broker, make_settings):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    records = small_traffic(1, frames_per_s=8).records_between(T0, T0 + 200)
    delivered = send(broker.bootstrap_servers, settings.topic, records, Random(1))
    slow = command(settings, "drain", prelude=STOPPED)
    os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
    quick = command(settings, "drain")
    assert quick.communicate(timeout=60)[1] == ""
    assert quick.returncode == 0
    tables = ("batches", "batch_ranges", "files", "topic_partitions", "dirty")
    before = {table: ledger_rows(settings, table) for table in tables}
    os.kill(slow.pid, signal.SIGCONT)
    said = slow.communicate(timeout=60)[1]
    assert slow.returncode == 7
    assert f"uniq-pipeline: lost race: topic {settings.topic}, topic partition 0: " in said
    assert "its records are in theirs" in said
    assert {table: ledger_rows(settings, table) for table in tables} == before
    run_tick(settings, close_windows=True)
    assert audit(settings, delivered, grains=("minute", "hour")) == []
    lake = settings.data_dir / "lake"
    orphans = set((lake / "frames").rglob("*.parquet")) - {lake / row[0] for row in before["files"]}
    assert orphans, "left without a name"
    with open_workshop(settings, now=lambda: time.time() + 30 * 3600) as shop:
        collect_garbage(settings, shop.ledger, shop.lake)
    assert not any(orphan.exists() for orphan in orphans)


# 53: a clock that jumps


def test_fault_53_when_the_clock_jumps_offsets_watermark_and_answers_do_not(make_settings):
    settings, topic = make_settings(), MemoryTopic()
    watermarks, batch_ids = [], set()
    clock = T0 + 1_000.0
    for i, jump_s in enumerate([0, -3600, 3600, 10 * DAY_S, -T0]):
        clock += jump_s
        more(topic, 100 * i, 100 * i + 100)
        with open_workshop(settings, now=lambda clock=clock: clock) as shop:
            tick(shop, topic, None, close_windows=True)
            watermarks.append(known_watermark_s(shop.ledger))
            positions = read_positions(shop.ledger, topic.topic).by_partition
            collect_garbage(settings, shop.ledger, shop.lake)
        assert {p: position.next_offset for p, position in positions.items()} == {
            p: len(log) for p, log in topic.logs.items()
        }
        batch_ids |= {row[0] for row in ledger_rows(settings, "batches")}
        assert len(batch_ids) == i + 1, "an id of its own for each batch, though the time in it came twice"
        assert shown(settings)
    assert watermarks == sorted(watermarks)
    assert mended(settings, topic) == []


@pytest.mark.parametrize("jump_s", [-3600, 10 * DAY_S])
def test_fault_53_gc_after_a_jump_takes_nothing_that_counts_or_is_about_to(jump_s, make_settings):
    """A clock set ahead makes a new file look old; what was about to commit it notices, and nothing is lost."""
    settings, topic = make_settings(), MemoryTopic()

    def meanwhile() -> None:
        with open_workshop(settings, now=lambda: time.time() + jump_s) as shop:
            collect_garbage(settings, shop.ledger, shop.lake)

    for i, point in enumerate(("drain.before_commit", "count.before_commit", "sets.before_commit")):
        more(topic, 200 * i, 200 * i + 200)  # the first hour is closed by the third
        at = OnceAt(point, meanwhile)
        try:
            run_tick(settings, topic, failpoint=at, close_windows=True)
            assert jump_s < 0, "spared"
        except LakeError as error:
            assert jump_s > 0 and "is gone before its commit" in str(error), error
        assert at.happened, point
    assert mended(settings, topic) == []
