"""Repair: what is missing or damaged is mended as far as it can be, and what cannot be stops nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.audit import audit, read_back
from support.desks import T0, cut, delete, flip, live, results, stands, traffic, wreck
from support.frames import MemoryTopic, frame
from support.tables import asked, told

from uniq_pipeline.cli.main import main
from uniq_pipeline.config import Settings
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.repair import Plan, RepairReport, plan_repair, repair
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import TickReport, open_workshop, tick
from uniq_pipeline.verify import Report, verify
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain

GRAINS = ("minute", "hour")


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


class Sink:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent: dict[bytes, list[dict[str, Any]]] = {}

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        count = 0
        for key, value in messages:
            self.sent.setdefault(key or b"", []).append(json.loads(value))
            count += 1
        return count


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(batch_frames=300).model_copy(update={"results_topic": "counts"})


@pytest.fixture
def topic(settings: Settings) -> MemoryTopic:
    return traffic(settings)


@pytest.fixture
def sink() -> Sink:
    return Sink()


def ticked(shop: Workshop, topic: MemoryTopic | None, sink: Sink) -> TickReport:
    return tick(shop, topic, lambda: sink, close_windows=True)


def mended(shop: Workshop, topic: MemoryTopic, sink: Sink, **options: Any) -> tuple[Plan, RepairReport]:
    plan = plan_repair(shop, audited(shop, **options), lambda name: topic)
    done = repair(shop, plan, lambda name: topic)
    ticked(shop, None, sink)
    ticked(shop, None, sink)
    return plan, done


def audited(shop: Workshop, **options: Any) -> Report:
    return verify(shop, **{"sample": None, **options})


def rows(settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    stored = read_back(settings, problems := [])
    assert problems == []
    return {(grain, start): row for grain in GRAINS for start, row in stored.results[grain].items()}


def two_hours(settings: Settings) -> MemoryTopic:
    """A frame a second, of the last five minutes of an hour and the first of the next."""
    topic = MemoryTopic(settings.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 40}") for i in range(360)])
    return topic


# Row 49: one damaged file stops nothing but what needs it.


@pytest.mark.parametrize("how", [delete, wreck, cut])
@pytest.mark.parametrize("kind", ["frames", "result"])
def test_fault_49_the_error_names_the_file_and_all_other_windows_are_computed_published_and_shown(
    settings, sink, kind, how
):
    topic = two_hours(settings)
    with open_workshop(settings) as shop:
        ticked(shop, topic, sink)
        first = live(settings, "frames")[0] if kind == "frames" else results(settings, "minute")[0]
        how(stands(settings, first))
        # Frames of both hours: those of the first cannot be counted now.
        log = [frame(T0 + 255 + i, f"new-{i}", arrival_s=T0 + 361, kind=Kind.LATE) for i in range(0, 45, 5)]
        topic.send([*log, *(frame(T0 + 360 + i, f"later-{i}") for i in range(120))])
        sink.sent.clear()
        report = ticked(shop, topic, sink)
        assert report.file_error is not None
        assert first in str(report.file_error) and "uniq-pipeline repair" in str(report.file_error)
        if kind == "frames":
            assert "hour 2023-12-31T23:00:00Z" in str(report.file_error)
        later = {s: row for s, row in shown(settings, T0 + 300).items() if s >= T0 + 360}
        assert later == {T0 + 360: 60, T0 + 420: 60}
        assert b"minute/2024-01-01T00:01:00Z" in sink.sent, "the second hour is published"
        assert asked(settings, "SELECT count(*) FROM dirty WHERE task = 'count' AND grain = 'minute'")[0][0] > 0
        again = ticked(shop, None, sink)
        assert again.file_error is not None and first in str(again.file_error), "until it is mended"
        _, done = mended(shop, topic, sink)
        assert done.left == []
        assert ticked(shop, None, sink).file_error is None
        assert audited(shop).passed
        assert shown(settings, T0)[T0 + 240] == 69, "the frames that came meanwhile are counted"


def shown(settings: Settings, from_s: int) -> dict[int, int]:
    found = ask_catalog(
        settings.catalog_path,
        f"SELECT epoch(window_start)::BIGINT AS s, frames FROM minute_counts WHERE epoch(window_start) >= {from_s}",
    )
    return {row["s"]: row["frames"] for row in found.to_pylist()}


# Row 50, and everything else an audit finds.


@pytest.mark.parametrize("how", [delete, flip])
def test_fault_50_everything_that_is_lost_is_there_again_and_nothing_else_changed(settings, topic, sink, how):
    with open_workshop(settings) as shop:
        ticked(shop, topic, sink)
        before = rows(settings)
        # Of a batch that loses frames and held at once, which records of a minute were held is judged again.
        damaged = [live(settings, "frames")[0], live(settings, "uid_set")[0]]
        for kind in ("held", "quarantine"):
            damaged += [path for path in live(settings, kind) if Path(path).name != Path(damaged[0]).name][:1]
        damaged += [results(settings, grain)[-1] for grain in GRAINS]
        for path in damaged:
            how(stands(settings, path))
        assert {fault.path for fault in audited(shop).faults if fault.path} >= set(damaged)
        plan, done = mended(shop, topic, sink)
        assert done.left == []
        assert (done.results, done.sets) == (2, 1) and done.files >= 3
        assert all(any(path in line for line in plan.lines()) for path in damaged if "/sets/" not in f"/{path}")
        report = audited(shop)
        assert [fault.text for fault in report.faults] == []
        assert overview(shop.ledger).is_conserved
        after = rows(settings)
        assert after.keys() == before.keys()
        for key, row in after.items():
            assert row["revision"] >= before[key]["revision"]
            assert (row["frames"], row["hll"]) == (before[key]["frames"], before[key]["hll"])
            newest = sink.sent[f"{key[0]}/{row['window_start']:%Y-%m-%dT%H:%M:%SZ}".encode()][-1]
            assert newest["revision"] == row["revision"]
    offline = settings.model_copy(update={"results_topic": None})
    problems = audit(offline, topic.delivered, grains=GRAINS)
    assert [p for p in problems if ": files hold {" not in p and "not published" not in p] == []


@pytest.mark.parametrize("has_earlier_version", [True, False])
def test_revisions_of_a_lost_result_file_go_on_and_never_back(settings, sink, has_earlier_version):
    topic = two_hours(settings)
    with open_workshop(settings) as shop:
        for i in range(4):  # four versions of the first hour, and four revisions of a minute in it
            ticked(shop, topic, sink)
            topic.send([frame(T0 + 280, f"late-{i}", arrival_s=T0 + 361 + i, kind=Kind.LATE)])
        ticked(shop, topic, sink)
        before = rows(settings)
        path = results(settings, "minute")[0]
        for one in stands(settings, path).parent.iterdir():
            if one.name == Path(path).name or not has_earlier_version:
                one.unlink()
        _, done = mended(shop, topic, sink)
        assert (done.results, done.left) == (1, [])
        after = rows(settings)
        assert after.keys() == before.keys()
        assert before["minute", T0 + 240]["revision"] >= 4
        for key, row in after.items():
            assert row["revision"] > before[key]["revision"] or key[0] == "hour" or key[1] >= T0 + 300
            assert (row["frames"], row["unique_users"]) == (before[key]["frames"], before[key]["unique_users"])
        for messages in sink.sent.values():
            contents: dict[int, Any] = {}
            for message in messages:
                answer = {name: message[name] for name in ("frames", "unique_users", "hll", "held_frames")}
                assert contents.setdefault(message["revision"], answer) == answer, "one content a revision"
        assert audited(shop).passed


def test_what_kafka_no_longer_has_is_named_and_left_and_the_rest_is_mended(settings, topic, sink):
    with open_workshop(settings) as shop:
        ticked(shop, topic, sink)
        lost, other = live(settings, "frames")[0], live(settings, "uid_set")[0]
        delete(stands(settings, lost))
        delete(stands(settings, other))
        topic.low = {0: 10_000, 1: 10_000}
        plan, done = mended(shop, topic, sink)
        assert plan.restored == [] and done.sets == 0 or done.sets == 1
        (left,) = [text for text in done.left if lost in text]
        for name in (settings.topic, "topic partition", "low watermark is 10000"):
            assert name in left
        assert {fault.path for fault in audited(shop).faults if fault.path} <= {lost, other}
        topic.low = {}
        _, done = mended(shop, topic, sink)
        assert done.left == []
        assert audited(shop).passed


def test_results_that_differ_from_what_is_computed_again_get_a_revision_that_says_so(settings, topic, sink):
    with open_workshop(settings) as shop:
        ticked(shop, topic, sink)
        lake, path = Lake(settings.data_dir / "lake"), results(settings, "minute")[-1]
        table = lake.read(path)
        frames = [count + 1 for count in table["frames"].to_pylist()]
        place = table.schema.get_field_index("frames")
        table = table.set_column(place, table.schema.field(place), pa.array(frames, pa.int64()))
        file = lake.write(path, table)
        sql = "UPDATE files SET size_bytes = ?, sha256 = ? WHERE path = ?"
        told(settings, sql, file.size_bytes, file.sha256, path)
        before = rows(settings)
        plan, _ = mended(shop, topic, sink)
        minutes = [window for window in plan.windows if window.grain is Grain.MINUTE]
        assert len(minutes) == table.num_rows
        after = rows(settings)
        for window in minutes:
            row, old = after["minute", window.start_s], before["minute", window.start_s]
            assert (row["reason"], row["frames"]) == ("repaired", old["frames"] - 1)
            assert row["revision"] == old["revision"] + 1
        assert audited(shop).passed


@pytest.mark.parametrize("point", ["move.in_commit", "move.after_commit", "count.before_commit", "count.after_commit"])
def test_interrupted_half_way_the_next_repair_goes_on(settings, topic, sink, point):
    with open_workshop(settings) as shop:
        ticked(shop, topic, sink)
        for path in (live(settings, "frames")[0], live(settings, "held")[-1], results(settings, "minute")[0]):
            delete(stands(settings, path))

    def die(name: str) -> None:
        if name == point:
            raise Killed

    with open_workshop(settings, failpoint=die) as shop, suppress(Killed):
        plan = plan_repair(shop, audited(shop, sample=0), lambda name: topic)
        repair(shop, plan, lambda name: topic)
        raise AssertionError(f"{point} was not reached")
    with open_workshop(settings) as shop:
        _, done = mended(shop, topic, sink)
        assert done.left == []
        assert audited(shop).passed
        assert overview(shop.ledger).is_conserved


# The commands.


def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_KAFKA_TIMEOUT_S", "1")
    monkeypatch.setattr(sys, "argv", ["uniq-pipeline", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_says_first_what_it_will_do_and_does_it(settings, topic, monkeypatch, capsys):
    monkeypatch.setattr("uniq_pipeline.cli.repair.KafkaSource", lambda settings: topic)
    offline = settings.model_copy(update={"results_topic": None})
    with open_workshop(offline) as shop:
        tick(shop, topic, None, close_windows=True)
    assert run(monkeypatch, settings, "repair", "--dry-run") == 0
    assert "nothing to repair" in capsys.readouterr().out
    lost = live(settings, "frames")[0]
    delete(stands(settings, lost))
    assert run(monkeypatch, settings, "repair", "--dry-run", "--quick") == 0
    assert f"{lost}: its" in capsys.readouterr().out
    assert not stands(settings, lost).exists() and lost in live(settings, "frames")
    assert run(monkeypatch, settings, "repair", "--json", "--yes") == 0
    assert json.loads(capsys.readouterr().out)["done"]["files"] == 1
    assert run(monkeypatch, settings, "verify", "--all") == 0
    capsys.readouterr()
    size = len(topic.logs[0])
    assert run(monkeypatch, settings, "redrain", settings.topic, "0", "0", str(size), "--yes") == 0
    out = capsys.readouterr().out
    assert f"topic partition 0 [0, {size}) is read again" in out and f"{size} records read again: 0 replaced" in out
    assert run(monkeypatch, settings, "redrain", settings.topic, "0", "5", str(size + 1), "--yes") == 2
    assert "not drained yet" in capsys.readouterr().err


def test_a_lost_ledger_is_made_anew_first(settings, topic, monkeypatch, capsys):
    offline = settings.model_copy(update={"results_topic": None})
    with open_workshop(offline) as shop:
        tick(shop, topic, None)
    for end in ("", "-wal", "-shm"):
        settings.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)
    assert run(monkeypatch, settings, "verify", "--quick") == 8
    assert "it was lost" in capsys.readouterr().out
    assert run(monkeypatch, settings, "repair", "--yes") == 0
    said = capsys.readouterr()
    assert "the ledger is lost" in said.err and f"topic {settings.topic}" in said.out
    assert asked(settings, "SELECT sum(delivered) FROM batches") == [(len(topic.delivered),)]
