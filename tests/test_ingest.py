"""Ingest: files of frames into the ledger's own windows, once each, whatever happens on the way.

The truth is counted here with Python's json, sets and zoneinfo; the command is run as a user runs it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from support.audit import GRAINS, audit, bounds_of, read_back
from support.frames import MemoryTopic, Sent, frame
from support.ticks import OnceAt, run_tick

from uniq_pipeline import files
from uniq_pipeline.cli import ingest as ingest_command
from uniq_pipeline.cli import output
from uniq_pipeline.cli.main import main
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import InputError, LostRace
from uniq_pipeline.ingest import file_log, file_logs, load_file
from uniq_pipeline.ledger.logs import known_watermark_s
from uniq_pipeline.loading import LoadReport
from uniq_pipeline.once import OnceReport, count_files
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.windows import Grain

START_S = 1_709_210_400 - 900  # a quarter of an hour before 2024-02-29T12:40:00Z, a leap day

SEEDS = int(os.environ.get("UNIQ_CRASH_SEEDS", "2"))  # as in test_crash.py
FIRST_SEED = int(os.environ.get("UNIQ_CRASH_FIRST", "1"))

COMMAND = str(Path(sys.executable).with_name("uniq-pipeline"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read 2 kB at a time, so that a small one makes several batches."""
    monkeypatch.setattr(files, "_BLOCK", 2000)


@pytest.fixture
def hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser grains pass the same code as hours, for seven times the time."""
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


def line(ts: Any, uid: Any) -> bytes:
    return json.dumps({"ts": ts, "uid": uid}).encode() + b"\n"


def steady(frames: int = 600, *, start_s: int = START_S, every_s: float = 2, seed: int = 1) -> list[bytes]:
    """Lines in order of arrival, each a few seconds late, some more, none too late."""
    rng = Random(seed)
    arrivals = []
    for i in range(frames):
        event_s = start_s + int(i * every_s)
        delay_s = rng.uniform(0, 5) if rng.random() < 0.97 else rng.uniform(0, 90)
        arrivals.append((event_s + delay_s, line(event_s, f"user-{rng.randrange(60)}")))
    return [one for _, one in sorted(arrivals)]


def eventful(frames: int = 600, seed: int = 1) -> list[bytes]:
    """As steady, with flipped, hours late and broken lines, and a night in the middle that must be proved."""
    rng = Random(seed)
    lines = steady(frames // 2, seed=seed) + steady(frames // 2, start_s=START_S + 40_000, seed=seed + 1)
    for _ in range(frames // 30):
        junk = [line(2**31, "flipped"), line(START_S - 90_000, "old"), b'{"ts":1,\n', b'{"uid":"no ts"}\n', b"\n"]
        lines.insert(rng.randrange(20, len(lines) - 20), rng.choice(junk))
    # What only the end of the file proves: two agree on a jump ahead.
    return [*lines, line(START_S + 70_000, "last"), line(START_S + 70_003, "and very last")]


def written(path: Path, lines: Sequence[bytes], kind: str | None = None) -> str:
    if kind is None:
        path.write_bytes(b"".join(lines))
    else:
        with pa.CompressedOutputStream(str(path), kind) as stream:
            stream.write(b"".join(lines))
    return str(path)


def run_ingest(
    settings: Settings,
    *names: str,
    known_as: str | None = None,
    failpoint: Callable[[str], None] = lambda name: None,
    count: bool = True,
) -> list[LoadReport]:
    """What the command does, in this process; without `count` it stops before the windows."""
    reports = []
    with open_workshop(settings, failpoint=failpoint) as shop:
        for log in file_logs(shop.ledger, names, known_as):
            *_, report = load_file(shop, log)
            reports.append(report)
        if count:
            tick(shop, None, None, close_windows=True)
    return reports


def answers(settings: Settings) -> dict[tuple[str, int], tuple]:
    """Every window's answer, without what tells when and how often it was computed."""
    stored = read_back(settings, problems := [])
    assert problems == []
    return {
        (grain, start_s): tuple(
            row[name] for name in ("frames", "unique_users", "hll", "late_frames", "held_frames", "status")
        )
        for grain, rows in stored.results.items()
        for start_s, row in rows.items()
    }


def counts(settings: Settings, grain: str) -> dict[int, tuple[int, int | None]]:
    return {start_s: answer[:2] for (found, start_s), answer in answers(settings).items() if found == grain}


def places(settings: Settings) -> dict[str, list[tuple]]:
    """Where every line ended: (log, line number, class or reason) by kind of file, and which held ones count."""
    stored = read_back(settings, [])
    ended = {
        kind: sorted(
            (row["topic"], row["kafka_offset"], row.get("event_class") or row.get("reason"))
            for row in stored.files.get(kind, [])
        )
        for kind in ("frames", "held", "quarantine")
    }
    admitted = {(row["topic"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    # A frame that an earlier batch held is in both files until compaction; in one batch it never was.
    ended["held"] = [place for place in ended["held"] if place[:2] not in admitted]
    for kind, found in ended.items():
        assert len({place[:2] for place in found}) == len(found), f"stored twice in {kind}"
    return ended


def truth(lines: Sequence[bytes], grain: str, timezone: str) -> dict[int, tuple[int, int]]:
    """{window start: (frames, users)}"""
    users: dict[int, list[str]] = {}
    for one in lines:
        parsed = json.loads(one)
        users.setdefault(bounds_of(grain, int(float(parsed["ts"])), timezone)[0], []).append(str(parsed["uid"]))
    return {start_s: (len(uids), len(set(uids))) for start_s, uids in users.items()}


# The same windows as any other way.


def test_windows_are_those_that_count_finds_in_the_same_file(make_settings, tmp_path):
    settings = make_settings(timezone="Asia/Kolkata")
    name = written(tmp_path / "frames", eventful(400))
    (report,) = run_ingest(settings, name)
    once = OnceReport()
    by_count = list(count_files(settings, [name], [Grain.MINUTE, Grain.HOUR, Grain.DAY], report=once))
    for grain in (Grain.MINUTE, Grain.HOUR, Grain.DAY):
        expected = {c.window_start_s: (c.frames, c.unique_users) for c in by_count if c.grain is grain}
        found = counts(settings, grain)
        assert {s: n for s, (n, _) in found.items()} == {s: n for s, (n, _) in expected.items()}
        # Minutes are exact at once, hours and days when they are over: the first of them, here.
        exact = {s: count for s, count in found.items() if count[1] is not None}
        assert min(expected) in exact and (grain is not Grain.MINUTE or exact == found)
        assert exact == {s: expected[s] for s in exact}
    assert (once.delivered, once.frames, once.held, once.rejected) == (
        report.delivered,
        report.frames,
        report.held,
        report.quarantined,
    )


def test_plain_and_compressed_files_of_the_same_lines_are_loaded_alike(make_settings, tmp_path):
    ended = {}
    for kind in (None, "gzip", "zstd"):
        settings = make_settings(data_dir=tmp_path / f"data-{kind}")
        run_ingest(settings, written(tmp_path / "frames", eventful(), kind), count=False)
        ended[kind] = places(settings)
    assert len(ended[None]["frames"]) == 602 and ended[None]["held"] and ended[None]["quarantine"]
    assert ended[None] == ended["gzip"] == ended["zstd"]


def test_windows_of_every_grain_equal_a_count_with_json_and_sets(make_settings, tmp_path):
    settings = make_settings(timezone="Europe/Zurich")
    # A leap day, over its midnight in Zurich; then the next week, and the next year; 90 frames in 3 minutes each.
    days = [0, 10.43, 12, 400]
    lines = [one for day in days for one in steady(90, start_s=START_S + int(day * 86_400))]
    names = [written(tmp_path / "1.jsonl", lines[:150]), written(tmp_path / "2.gz", lines[150:], "gzip")]
    reports = run_ingest(settings, *names)
    assert [report.delivered for report in reports] == [150, 210]
    for grain in GRAINS:
        expected, found = truth(lines, grain, settings.timezone), counts(settings, grain)
        assert {s: n for s, (n, _) in found.items()} == {s: n for s, (n, _) in expected.items()}, grain
        closed = {s for s, (_, users) in found.items() if users is not None}
        assert closed >= set(expected) - {max(expected)}, grain
        assert {s: found[s] for s in closed} == {s: expected[s] for s in closed}, grain


def test_order_within_the_lateness_changes_no_answer(make_settings, tmp_path, hours_only):
    frames = [(START_S + i, f"user-{i % 37}") for i in range(900)]
    rng = Random(3)
    shuffled = sorted(frames, key=lambda one: one[0] + rng.uniform(0, 100))
    assert shuffled != frames
    found = []
    for name, order in {"in-order": frames, "shuffled": shuffled}.items():
        settings = make_settings(data_dir=tmp_path / name)
        (report,) = run_ingest(settings, written(tmp_path / f"{name}.jsonl", [line(*one) for one in order]))
        assert (report.frames, report.held) == (900, 0)
        # The seconds of the last look decide what is final, so not the status.
        found.append({window: answer[:3] for window, answer in answers(settings).items() if window[0] == "minute"})
    assert found[0] == found[1]


def test_frames_from_years_ago_are_ordinary_and_their_windows_final(make_settings, tmp_path, hours_only):
    settings = make_settings()
    lines = steady(300, start_s=100_000_000)  # 1973
    (report,) = run_ingest(settings, written(tmp_path / "1973.jsonl", lines))
    assert (report.frames, report.held, report.quarantined) == (300, 0, 0)
    found = answers(settings)
    assert {s: a[:2] for (g, s), a in found.items() if g == "minute"} == truth(lines, "minute", "UTC")
    assert found["minute", min(truth(lines, "minute", "UTC"))][5] == "final"


# Killed and started again.


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


def die() -> None:
    raise Killed


# Of six batches, four are committed by these.
KILLS = [
    ("drain.before_write", 1),
    ("lake.file_stands", 1),
    ("drain.before_commit", 2),
    ("drain.in_commit", 1),
    ("ledger.before_commit", 2),  # the first is that of the ledger's tables
    ("drain.after_commit", 1),
    ("drain.before_write", 2),
    ("drain.in_commit", 2),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict, dict]:
    """Answers and places of the eventful file, loaded in one batch without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = Settings(data_dir=folder / "data", results_topic=None, lg_k=8, duckdb_threads=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
        patched.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))
        run_ingest(settings, written(folder / "frames.jsonl", eventful()))
    return answers(settings), _without_folder(places(settings))


def _without_folder(ended: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    return {kind: [(Path(topic).name, *rest) for topic, *rest in found] for kind, found in ended.items()}


def check_undisturbed(settings: Settings, undisturbed: tuple[dict, dict]) -> None:
    assert _without_folder(places(settings)) == undisturbed[1]
    assert answers(settings) == undisturbed[0]
    batches = read_back(settings, []).tables["batches"]
    for batch in batches:
        assert batch["delivered"] + batch["admitted"] == batch["frames"] + batch["held"] + batch["quarantined"]
    assert sum(batch["delivered"] for batch in batches) == sum(map(len, undisturbed[1].values()))


def test_batches_that_end_anywhere_leave_every_line_where_one_batch_does(
    make_settings, tmp_path, undisturbed, monkeypatch
):
    lines = eventful()
    name = written(tmp_path / "frames.jsonl", lines)
    morning = next(i for i, one in enumerate(lines) if one.startswith(b'{"ts": %d' % ((START_S + 40_000) // 1000)))
    before = sum(1 for one in lines[:morning] if one.strip())
    admitted = set()
    for block, frames in ((250, 100), (1700, 100), (100, before + 1), (100, before + 8)):
        monkeypatch.setattr(files, "_BLOCK", block)
        settings = make_settings(batch_frames=frames, data_dir=tmp_path / f"{block}-{frames}")
        (report,) = run_ingest(settings, name, count=False)
        assert report.batches >= 2
        assert report.delivered + report.admitted == report.frames + report.held + report.quarantined
        assert _without_folder(places(settings)) == undisturbed[1]
        admitted.add(report.admitted)
    assert max(admitted) > 2, "no batch ended where frames waited for their proof"


def test_killed_at_every_point_of_the_load_nothing_is_lost_or_doubled(
    make_settings, tmp_path, undisturbed, small_blocks, hours_only
):
    settings = make_settings(batch_frames=100)
    name = written(tmp_path / "frames.jsonl", eventful())
    for point, nth in KILLS:
        at = OnceAt(point, die, nth=nth)
        with suppress(Killed):
            run_ingest(settings, name, failpoint=at)
        assert at.happened, point
    assert run_ingest(settings, name)[0].delivered, "nothing was left to be loaded"
    check_undisturbed(settings, undisturbed)


class At:
    """Dies at the nth of all points, whatever their names."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def __call__(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_killed_at_random_points_nothing_is_lost_or_doubled(
    make_settings, tmp_path, undisturbed, small_blocks, hours_only, seed
):
    rng = Random(seed)
    settings = make_settings(batch_frames=rng.choice([100, 150, 250]))
    name = written(tmp_path / "frames.jsonl", eventful())
    for _ in range(4):
        with suppress(Killed):
            run_ingest(settings, name, failpoint=At(rng.choice([rng.randint(1, 40), rng.randint(1, 120)])))
    run_ingest(settings, name)
    check_undisturbed(settings, undisturbed)


def test_killed_between_the_last_batch_and_the_end_the_end_is_still_judged(make_settings, tmp_path, hours_only):
    """The two frames that jump ahead are proved by the end of the file, and by nothing before it."""
    settings = make_settings(batch_frames=100)
    lines = [*steady(200), line(START_S + 50_000, "a"), line(START_S + 50_001, "b")]
    name = written(tmp_path / "frames.jsonl", lines)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "_BLOCK", os.path.getsize(name))  # the only batch before the end holds all lines
        with suppress(Killed):
            run_ingest(settings, name, failpoint=OnceAt("drain.after_commit", die))
        assert len(places(settings)["held"]) == 2
        (report,) = run_ingest(settings, name)
    assert (report.delivered, report.admitted, report.frames) == (0, 2, 2)
    assert places(settings)["held"] == []
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")
    (again,) = run_ingest(settings, name)
    assert (again.delivered, again.admitted, again.batches) == (0, 0, 0)


def test_of_two_runs_at_once_each_line_is_committed_by_one(make_settings, tmp_path, small_blocks, hours_only):
    settings = make_settings(batch_frames=100)
    lines = steady(400)
    name = written(tmp_path / "frames.jsonl", lines)
    at = OnceAt("drain.before_commit", lambda: run_ingest(settings, name), nth=2)
    with pytest.raises(LostRace):
        run_ingest(settings, name, failpoint=at)
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")


# Which file is which.


def test_the_same_file_again_changes_nothing(make_settings, tmp_path, hours_only):
    settings = make_settings()
    name = written(tmp_path / "frames.jsonl", eventful(200))
    run_ingest(settings, name)
    before = read_back(settings, [])
    (report,) = run_ingest(settings, name)
    after = read_back(settings, [])
    assert (report.delivered, report.batches) == (0, 0)
    assert after.tables["batches"] == before.tables["batches"]
    assert after.tables["files"] == before.tables["files"]


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_a_renamed_copy_is_refused_and_the_message_names_the_earlier_path(make_settings, tmp_path, kind):
    settings = make_settings()
    lines = steady(100)
    name = written(tmp_path / "first.jsonl", lines)
    copy = written(tmp_path / "copy", lines, kind)
    with open_workshop(settings) as shop:
        list(load_file(shop, file_log(shop.ledger, name)))
        with pytest.raises(InputError, match=f"{copy}: these lines were loaded before, as {name};.*--as"):
            file_log(shop.ledger, copy)
        # as the message says
        (report,) = load_file(shop, file_log(shop.ledger, copy, known_as=name))
        assert report.delivered == 0


def test_two_copies_in_one_command_are_refused_and_one_file_given_twice_is_loaded_once(make_settings, tmp_path):
    settings = make_settings()
    name = written(tmp_path / "a.jsonl", steady(100))
    copy = written(tmp_path / "b.gz", steady(100), "gzip")
    empty = [written(tmp_path / f"empty-{i}", []) for i in range(2)]
    with open_workshop(settings) as shop:
        with pytest.raises(InputError, match=f"{copy}: these lines are in {name}, too"):
            file_logs(shop.ledger, [name, copy])
        assert len(file_logs(shop.ledger, [name, str(tmp_path / "." / "a.jsonl"), *empty])) == 3


def test_another_file_under_a_known_name_is_refused(make_settings, tmp_path):
    settings = make_settings()
    name = written(tmp_path / "log.jsonl", steady(100))
    with open_workshop(settings) as shop:
        list(load_file(shop, file_log(shop.ledger, name)))
        written(tmp_path / "log.jsonl", steady(100, seed=9))
        with pytest.raises(InputError, match="another file was loaded under this name before.*--as"):
            file_log(shop.ledger, name)
        (report,) = load_file(shop, file_log(shop.ledger, name, known_as="log-of-tuesday"))
        assert report.delivered == 100


@pytest.mark.parametrize("kind", [None, "gzip"])
def test_a_file_that_has_grown_is_continued(make_settings, tmp_path, hours_only, kind):
    settings = make_settings()
    lines = steady(400)
    path = tmp_path / "growing"
    for start, end in ((0, 30), (30, 31), (31, 390), (390, 400)):
        more = b"".join(lines[start:end])
        with path.open("ab") as file:
            file.write(gzip.compress(more) if kind else more)
        (report,) = run_ingest(settings, str(path), count=end == 400)
        assert report.delivered == end - start
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")


def test_a_last_line_that_is_still_being_written_is_left_for_the_next_run(make_settings, tmp_path, hours_only):
    settings = make_settings()
    lines = steady(100)
    whole = b"".join(lines)
    path = tmp_path / "growing"
    for cut in (len(whole) // 2, len(whole) - 4, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        (report,) = run_ingest(settings, str(path), count=cut == len(whole))
        assert report.quarantined == 0
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")
    assert sum(n for n, _ in counts(settings, "minute").values()) == 100


def test_a_log_of_stdin_and_one_of_a_file_are_not_mixed_up(make_settings, tmp_path, monkeypatch):
    settings = make_settings()
    lines = steady(100)
    name = written(tmp_path / "old.jsonl", lines)
    with open_workshop(settings) as shop:
        with pytest.raises(InputError, match="stdin: give the log a name with --as"):
            file_log(shop.ledger, "-")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(lines))))
        list(load_file(shop, file_log(shop.ledger, "-", known_as="old")))
        with pytest.raises(InputError, match="old was loaded from stdin before"):
            file_log(shop.ledger, name, known_as="old")
        list(load_file(shop, file_log(shop.ledger, name)))
        with pytest.raises(InputError, match="was loaded from a file before"):
            file_log(shop.ledger, "-", known_as=name)


def test_what_cannot_be_looked_at_twice_is_refused_before_it_is_read(make_settings, tmp_path):
    settings = make_settings()
    os.mkfifo(tmp_path / "pipe")
    with open_workshop(settings) as shop:
        with pytest.raises(InputError, match="pipe: a pipe or device.*stdin, with --as"):
            file_log(shop.ledger, str(tmp_path / "pipe"))
        with pytest.raises(InputError, match="missing: cannot be read: No such file"):
            file_log(shop.ledger, str(tmp_path / "missing"))
        with pytest.raises(InputError, match="cannot be read: Is a directory"):
            file_log(shop.ledger, str(tmp_path))


# Beside a live topic.


def test_history_and_a_live_topic_are_both_right_whichever_comes_first(make_settings, tmp_path, hours_only):
    now_s = int(time.time()) // 60 * 60
    live, history = MemoryTopic(logs={0: []}), steady(200)
    live.send([frame(now_s - 600 + i, f"user-{i % 11}", arrival_s=now_s - 599 + i) for i in range(300)])
    name = written(tmp_path / "history.jsonl", history)
    found = []
    for order in (("live", "history"), ("history", "live")):
        settings = make_settings(data_dir=tmp_path / order[0])
        for what in order:
            if what == "live":
                watermark_s = run_tick(settings, live, close_windows=True).watermark_s
                assert watermark_s and watermark_s > now_s - 400
            else:
                run_ingest(settings, name)
        with open_workshop(settings) as shop:
            assert known_watermark_s(shop.ledger) == watermark_s, "an old file does not take it back"
        found.append(answers(settings))
        lines = history + [sent.payload for sent in live.logs[0]]
        assert counts(settings, "minute") == truth(lines, "minute", "UTC")
        assert {answer[5] for (_, start_s), answer in found[-1].items() if start_s < START_S + 86_400} == {"final"}
    assert found[0] == found[1]


def test_a_history_loaded_while_a_drain_is_at_work_is_in_the_same_windows(make_settings, tmp_path, hours_only):
    settings = make_settings()
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(START_S + i, f"live-{i % 7}", arrival_s=START_S + i + 1) for i in range(600)])
    history = steady(300)
    name = written(tmp_path / "history.jsonl", history)
    at = OnceAt("drain.before_commit", lambda: run_ingest(settings, name))
    run_tick(settings, topic, failpoint=at, close_windows=True)
    assert at.happened
    run_tick(settings, topic, close_windows=True)
    lines = history + [sent.payload for sent in topic.logs[0]]
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")


# Where a file begins and ends.


@pytest.mark.parametrize("place", [0, 7, 15])
@pytest.mark.parametrize("ts", [2**31, START_S - 86_400, 12])
def test_a_flipped_time_among_the_first_lines_is_held(make_settings, tmp_path, place, ts):
    settings = make_settings()
    lines = steady(100)
    lines.insert(place, line(ts, "flipped"))
    (report,) = run_ingest(settings, written(tmp_path / "f.jsonl", lines), count=False)
    assert (report.frames, report.held) == (100, 1)
    assert [offset for _, offset, _ in places(settings)["held"]] == [place]


@pytest.mark.parametrize("block", [1 << 20, 1500, 100])
@pytest.mark.parametrize("agreeing, counted", [(1, False), (2, True), (3, True)])
def test_a_jump_ahead_at_the_end_counts_when_two_frames_agree_on_it(
    make_settings, tmp_path, monkeypatch, block, agreeing, counted
):
    """Also when the last batch ends between them, or at the end of the file."""
    monkeypatch.setattr(files, "_BLOCK", block)
    settings = make_settings(batch_frames=100)
    jump = [line(START_S + 30_000 + i, f"jumped-{i}") for i in range(agreeing)]
    ordinary = steady(199)
    (report,) = run_ingest(settings, written(tmp_path / "f.jsonl", ordinary + jump), count=False)
    assert report.delivered == 199 + agreeing
    ended = places(settings)
    assert len(ended["held"]) == (0 if counted else agreeing)
    assert len(ended["frames"]) == 199 + (agreeing if counted else 0)


def test_a_frame_that_the_end_left_held_is_proved_when_the_file_grows(make_settings, tmp_path, hours_only):
    settings = make_settings()
    path = tmp_path / "f.jsonl"
    before, after = steady(100), steady(100, start_s=START_S + 30_000)
    written(path, [*before, after[0]])
    (report,) = run_ingest(settings, str(path), count=False)
    assert (report.held, report.admitted) == (1, 0)
    written(path, before + after)
    (report,) = run_ingest(settings, str(path))
    assert (report.delivered, report.held, report.admitted) == (99, 0, 1)
    assert counts(settings, "minute") == truth(before + after, "minute", "UTC")


# The command.


@dataclass
class Done:
    returncode: Any
    stdout: bytes
    stderr: str


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch, capsysbinary) -> Callable[..., Done]:
    """Runs the command in this process."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"DATA_DIR": data_dir, "RESULTS_TOPIC": "", "LG_K": 8, "DUCKDB_THREADS": 1}.items():
        monkeypatch.setenv(f"UNIQ_{name}", str(value))

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["uniq-pipeline", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status: Any = 0
        try:
            main()
        except SystemExit as left:
            status = left.code
        out, err = capsysbinary.readouterr()
        return Done(status, out, err.decode())

    return run


def test_the_report_adds_up_and_the_exit_code_is_0(run, tmp_path, hours_only, monkeypatch):
    monkeypatch.setenv("UNIQ_BATCH_FRAMES", "100")
    monkeypatch.setattr(files, "_BLOCK", 100)  # the two last lines are in batches of their own
    lines = eventful(300)
    written(tmp_path / "a.jsonl", lines)
    written(tmp_path / "b.zst", steady(100, start_s=START_S + 90_000), "zstd")
    done = run("ingest", "--json", "a.jsonl", "b.zst")
    assert done.returncode == 0 and "all windows are counted" in done.stderr
    a, b = map(json.loads, done.stdout.splitlines())
    assert [a["file"], b["file"]] == ["a.jsonl", "b.zst"]
    assert a["topic"] == f"file:{tmp_path / 'a.jsonl'}"
    assert a["delivered"] == sum(1 for one in lines if one.strip())
    for report in (a, b):
        assert report["delivered"] + report["admitted"] == report["frames"] + report["held"] + report["quarantined"]
        assert sum(report["reasons"].values()) == report["delivered"]
    assert (b["delivered"], b["frames"]) == (100, 100)
    done = run("ingest", "a.jsonl")
    assert done.returncode == 0 and done.stdout.startswith(b"a.jsonl: 0 lines in ")


def test_windows_are_counted_while_a_long_file_is_loading(run, tmp_path, small_blocks, hours_only, monkeypatch):
    monkeypatch.setattr(ingest_command, "COUNT_EVERY", 150)
    monkeypatch.setenv("UNIQ_BATCH_FRAMES", "100")
    ticks = []

    def noted(*rest, **options):
        ticks.append(tick(*rest, **options))
        return ticks[-1]

    monkeypatch.setattr(ingest_command, "tick", noted)
    for i in range(3):
        written(tmp_path / f"{i}.jsonl", steady(40, start_s=START_S + 1000 * i))
    written(tmp_path / "long.jsonl", steady(300, start_s=START_S + 3000))
    assert run("ingest", "0.jsonl", "1.jsonl", "2.jsonl", "long.jsonl").returncode == 0
    assert 2 <= len(ticks) <= 3, "not after every file, and not only at the end"
    assert all(sum(report.computed for report in each.refreshed) > 0 for each in ticks[:-1])


def test_stdin_needs_a_name_and_goes_on_with_it(run, hours_only):
    lines = steady(200)
    done = run("ingest", "-", stdin=lines[0])
    assert done.returncode == 2 and "--as" in done.stderr and "Traceback" not in done.stderr
    assert run("ingest", "-", "--as", "old", stdin=b"".join(lines[:120])).stdout.startswith(b"stdin: 120 lines")
    zipped = gzip.compress(b"".join(lines))
    assert run("ingest", "-", "--as", "old", stdin=zipped).stdout.startswith(b"stdin: 80 lines")


def test_a_wrong_name_among_many_is_found_before_anything_is_loaded(run, tmp_path, data_dir, make_settings):
    written(tmp_path / "good.jsonl", steady(50))
    for arguments, said in {
        ("good.jsonl", "missing.jsonl"): "missing.jsonl: cannot be read: No such file",
        ("good.jsonl", "."): "cannot be read: Is a directory",
        ("--as", "x", "good.jsonl", "good.jsonl"): "--as names one log",
    }.items():
        done = run("ingest", *arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    with open_workshop(make_settings()):
        assert read_back(make_settings(), []).tables["batches"] == []


@contextmanager
def started(data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "UNIQ_DATA_DIR": str(data_dir), "UNIQ_RESULTS_TOPIC": "", "UNIQ_LG_K": "8"}
    process = subprocess.Popen(
        [COMMAND, "ingest", *arguments],
        env={**environment, "UNIQ_BATCH_FRAMES": "1000", "UNIQ_DUCKDB_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What runs in the background of a script is started with Ctrl-C ignored, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signal_number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_ctrl_c_and_kill_leave_what_the_next_run_goes_on_from(
    data_dir, make_settings, monkeypatch, hours_only, signal_number, code
):
    settings = make_settings()
    # 4 MB are read at once. The second half is written when the first is known to be loaded.
    pad = b'{"pad":"%s",' % (b"x" * 4000)
    lines = [pad + one[1:] for one in steady(4000, every_s=0.5)]
    whole = b"".join(lines)
    with started(data_dir, "-", "--as", "pipe") as process:
        assert process.stdin and process.stderr
        process.stdin.write(whole[: len(whole) // 2])
        process.stdin.flush()
        wait_for_batch(settings)
        process.send_signal(signal_number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == code, err.decode()
        if code == 130:
            assert b"interrupted; what was committed stays" in err and b"Traceback" not in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole)))
    (report,) = run_ingest(settings, "-", known_as="pipe")
    assert 0 < report.delivered < 4000
    assert counts(settings, "minute") == truth(lines, "minute", "UTC")


def wait_for_batch(settings: Settings) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.05)
        with suppress(sqlite3.Error), closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
            if connection.execute("SELECT count(*) FROM batches").fetchone()[0]:
                return
    raise AssertionError("no batch was committed")


@dataclass
class Clock:
    """Time that passes when told to."""

    now_s: float = 1000.0
    lines: list[str] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now_s


def test_progress_is_a_line_every_30_seconds_where_there_is_no_terminal(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(output.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(output, "complain", clock.lines.append)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = output.Progress("ingest")
    for second in range(1, 91):
        clock.now_s = 1000.0 + second
        progress(second * 1000, 120_000, "bytes")
    progress.close()
    assert len(clock.lines) == 3
    assert clock.lines[0].startswith("ingest: 30,000 of 120,000 bytes, ")
    assert clock.lines[2].endswith(" left") and sys.stderr.getvalue() == ""


def test_a_short_load_says_nothing_but_its_result(run, tmp_path, hours_only):
    written(tmp_path / "a.jsonl", steady(50))
    assert run("ingest", "a.jsonl").stderr == "all windows are counted\n"


def test_the_ledger_and_the_lake_agree_after_all(make_settings, tmp_path, small_blocks):
    """The audit's own checks of files, footers, sets and windows, for a log of steady frames."""
    settings = make_settings(batch_frames=100)
    lines = steady(300)
    name = written(tmp_path / "f.jsonl", lines)
    run_ingest(settings, name)
    problems = audit(settings, {(0, i): _sent(one) for i, one in enumerate(lines)})
    assert problems == []


def _sent(one: bytes) -> Sent:
    parsed = json.loads(one)
    return Sent(-1, frame(parsed["ts"], parsed["uid"]), one[:-1])
