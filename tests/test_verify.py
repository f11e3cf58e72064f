"""Verify: finds whatever is wrong with ledger, lake or results, names it, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.desks import T0, cut, delete, flip, live, results, stands, traffic
from support.tables import asked, told

from uniq_pipeline.cli.main import main
from uniq_pipeline.config import Settings
from uniq_pipeline.lake import Lake
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.move import admit, withdraw
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.verify import Report, verify
from uniq_pipeline.verify import places as places_module
from uniq_pipeline.warehouse import Warehouse


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


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Everything there can be: all grains closed, frames admitted and withdrawn."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("verify"),
        topic="frames",
        results_topic=None,
        lg_k=8,
        duckdb_threads=1,
        batch_frames=200,
        kafka_bootstrap_servers="localhost:1",
    )
    with open_workshop(settings) as shop:
        tick(shop, traffic(settings), None, close_windows=True)
        admit(shop, T0 - 600, T0 + 3600)
        withdraw(shop, T0, T0 + 200)
        tick(shop, None, None, close_windows=True)
        tick(shop, None, None)
    return settings


@pytest.fixture
def desk(filled: Settings, data_dir: Path) -> Settings:
    shutil.copytree(filled.data_dir, data_dir, dirs_exist_ok=True)
    return filled.model_copy(update={"data_dir": data_dir})


def audited(settings: Settings, **options: Any) -> Report:
    with open_workshop(settings) as shop:
        return verify(shop, **{"sample": None, **options})


def test_where_nothing_is_wrong_every_check_has_looked_and_passes(filled):
    report = audited(filled)
    assert [check.name for check in report.checks if not check.passed] == []
    assert all(check.looked_at > 0 for check in report.checks if check.unit != "hours")
    by_name = {check.name: check for check in report.checks}
    ((delivered,),) = asked(filled, "SELECT sum(delivered) FROM batches")
    assert by_name["each record stands once"].looked_at == delivered
    ((windows,),) = asked(filled, "SELECT sum(windows) FROM buckets")
    assert sum(check.looked_at for check in report.checks if check.unit == "windows") == windows
    assert (report.warnings, report.orphans) == ([], 0)
    sampled = audited(filled, sample=4, seed=1)
    assert sampled.passed
    assert all(check.looked_at <= 4 for check in sampled.checks if check.unit == "windows")


def test_the_group_of_places_is_bounded_and_all_of_them_are_looked_at(filled, monkeypatch):
    monkeypatch.setattr(places_module, "RECORDS_AT_ONCE", 150)
    report = audited(filled, sample=0)
    ((delivered,),) = asked(filled, "SELECT sum(delivered) FROM batches")
    assert {c.name: c.looked_at for c in report.checks}["each record stands once"] == delivered
    assert report.passed


def stored_twice(settings: Settings) -> str:
    """A file that repeats the rows of another."""
    lake, path = Lake(settings.data_dir / "lake"), live(settings, "frames")[0]
    again = lake.write(path.replace(".parquet", "-again.parquet"), lake.read(path))
    told(
        settings,
        "INSERT INTO files SELECT ?, kind, rows, ?, ?, batch_id, rest_of, hour_s, min_event_s, max_event_s, "
        "created_at, NULL FROM files WHERE path = ?",
        *(again.path, again.size_bytes, again.sha256, path),
    )
    return "stand more than once"


def rewritten(settings: Settings, path: str, change: Callable[[pa.Table], pa.Table]) -> str:
    """Stores another content under the same name, and makes the ledger believe that it was always so."""
    lake = Lake(settings.data_dir / "lake")
    written = lake.write(path, change(lake.read(path)))
    told(
        settings,
        "UPDATE files SET rows = ?, size_bytes = ?, sha256 = ? WHERE path = ?",
        *(written.rows, written.size_bytes, written.sha256, path),
    )
    return path


def one_more(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("frames")
    return table.set_column(place, table.schema.field(place), pc.add(table["frames"], 1))


def without_last(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def damaged(kind: str, how: Callable[[Path], None]) -> Callable[[Settings], str]:
    def damage(settings: Settings) -> str:
        path = live(settings, kind)[0]
        how(stands(settings, path))
        return path

    return damage


def lost_row(settings: Settings) -> str:
    path = live(settings, "quarantine")[0]
    rewritten(settings, path, without_last)
    return "are in no file"


def told_text(sql: str, text: str) -> Callable[[Settings], str]:
    def damage(settings: Settings) -> str:
        told(settings, sql)
        return text

    return damage


FAULTS: dict[str, tuple[Callable[[Settings], str], str]] = {
    **{
        f"{kind} {how.__name__}": (damaged(kind, how), "files are there and whole")
        for kind in ("frames", "held", "quarantine", "result", "uid_set")
        for how in (delete, flip)
    },
    "frames cut off": (damaged("frames", cut), "files are there and whole"),
    "another hour": (
        lambda s: (told(s, "UPDATE files SET hour_s = hour_s + 3600 WHERE path = ?", p := live(s, "frames")[0]), p)[1],
        "files are there and whole",
    ),
    "a gap": (
        told_text(
            "DELETE FROM batch_ranges WHERE rowid IN (SELECT rowid FROM batch_ranges WHERE start_offset > 0 LIMIT 1)",
            "are in no batch and were not skipped",
        ),
        "offset ranges without gap or overlap",
    ),
    "an overlap": (
        told_text(
            "UPDATE batch_ranges SET end_offset = end_offset + 1 WHERE start_offset = 0",
            "are in two batches",
        ),
        "offset ranges without gap or overlap",
    ),
    "another end": (
        told_text(
            "UPDATE topic_partitions SET next_offset = next_offset + 7 WHERE kafka_partition = 1",
            "topic frames, topic partition 1",
        ),
        "offset ranges without gap or overlap",
    ),
    "offsets to be read again": (
        told_text("UPDATE topic_partitions SET next_offset = next_offset - 7", "would be read again"),
        "offset ranges without gap or overlap",
    ),
    "a batch that does not add up": (
        told_text("UPDATE batches SET frames = frames + 1 WHERE rowid = 1", "records that came are not those"),
        "conservation",
    ),
    "another number of rows": (
        told_text("UPDATE batches SET frames = frames + 1, delivered = delivered + 1 WHERE kind = 'drain'", "frames/"),
        "conservation",
    ),
    "rows that stand twice": (stored_twice, "each record stands once"),
    "a row that is gone": (lost_row, "each record stands once"),
    "a retired result": (
        lambda s: (told(s, "UPDATE files SET retired_at = 1 WHERE path = ?", p := results(s, "hour")[0]), p)[1],
        "windows name files that count",
    ),
    "a result without a name": (
        lambda s: (told(s, "UPDATE files SET retired_at = NULL WHERE kind = 'result'"), "no window names it")[1],
        "windows name files that count",
    ),
    "an hour without counts": (
        told_text("DELETE FROM buckets WHERE grain = 'minute'", "no minute of it is counted"),
        "hours with frames are counted",
    ),
    "another minute": (
        lambda s: rewritten(s, results(s, "minute")[0], one_more),
        "minute results are what their frames give",
    ),
    "another hour's result": (
        lambda s: rewritten(s, results(s, "hour")[0], one_more),
        "hour results are what their minutes give",
    ),
    "another year": (
        lambda s: rewritten(s, results(s, "year")[0], one_more),
        "year results are what their months give",
    ),
    "provisional windows": (
        told_text("UPDATE buckets SET provisional = provisional + 1 WHERE grain = 'minute'", "provisional windows"),
        "minute results are what their frames give",
    ),
    "a uid less": (
        lambda s: rewritten(s, live(s, "uid_set")[0], without_last),
        "uid sets are those of their frames",
    ),
    "a uid less that the ledger knows of": (
        lambda s: (
            path := rewritten(s, live(s, "uid_set")[-1], without_last),
            told(s, "UPDATE uid_sets SET users = users - 1 WHERE path = ?", path),
        )[0],
        "uid sets are those of their frames",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_found_by_its_check_and_named(desk, name):
    damage, check_name = FAULTS[name]
    text = damage(desk)
    report = audited(desk)
    failed = {check.name: check for check in report.checks if not check.passed}
    assert check_name in failed, [fault.text for fault in report.faults]
    texts = [fault.text for fault in failed[check_name].faults]
    assert any(text in one for one in texts), texts
    assert all("`uniq-pipeline repair`" in one or "nothing mends this by itself" in one for one in texts)


def test_fault_50_a_quick_audit_misses_files_without_opening_one(desk, monkeypatch):
    gone, short = live(desk, "frames")[:2]
    delete(stands(desk, gone))
    cut(stands(desk, short))
    flip(stands(desk, live(desk, "frames")[2]))
    monkeypatch.setattr(Lake, "sha256", None)
    monkeypatch.setattr(Lake, "footer", None)
    report = audited(desk, quick=True)
    assert {fault.path for fault in report.faults} == {gone, short}


def test_windows_that_are_to_be_computed_anyway_are_skipped_and_counted(desk):
    rewritten(desk, results(desk, "minute")[0], one_more)
    for minute in range(60):
        told(
            desk,
            "INSERT INTO dirty SELECT 'count', 'minute', bucket_start_s + ?, bucket_start_s, 99999, 'live', 1 "
            "FROM buckets WHERE grain = 'minute' AND path = ?",
            60 * minute,
            results(desk, "minute")[0],
        )
    report = audited(desk)
    assert {fault.window.grain for fault in report.faults if fault.window} == {"hour"}, "merged from what is stored"
    (minutes,) = [check for check in report.checks if check.name.startswith("minute")]
    assert minutes.skipped > 0
    assert "wait to be computed for more than an hour" in report.warnings[0]


@pytest.mark.slow
def test_beside_a_pipeline_at_work_nothing_is_called_a_fault(make_settings, monkeypatch):
    """In every part of the audit something else is drained, moved, computed, closed, or removed by gc."""
    monkeypatch.setattr("uniq_pipeline.tick.Warehouse", Warehouse)
    monkeypatch.setattr(places_module, "RECORDS_AT_ONCE", 100)
    settings = make_settings(batch_frames=100, gc_grace_h=0)
    topic = traffic(settings, seconds=900)
    logs = topic.logs
    topic.logs = {p: log[:100] for p, log in logs.items()}
    seen: Counter[str] = Counter()
    with open_workshop(settings) as mine, open_workshop(settings) as shop:
        tick(shop, topic, None, close_windows=True)

        def meanwhile(stage: str, done: int, total: int) -> None:
            seen[stage] += 1
            if seen[stage] not in (1, 3):
                return
            for p, log in logs.items():
                topic.logs[p] = log[: len(topic.logs[p]) + 40]
            [admit, withdraw][seen[stage] // 3](shop, T0 - 600, T0 + 3600)
            tick(shop, topic, None, close_windows=True)
            collect_garbage(settings, shop.ledger, shop.lake)

        report = verify(mine, sample=None, progress=meanwhile)
    assert len(seen) > 10
    assert [fault.text for fault in report.faults] == []


def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setattr(sys, "argv", ["uniq-pipeline", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_prints_a_table_or_json_and_its_exit_code_tells(desk, monkeypatch, capsys):
    assert run(monkeypatch, desk, "verify", "--sample", "5") == 0
    assert "passed  each record stands once" in capsys.readouterr().out
    gone = live(desk, "frames")[0]
    delete(stands(desk, gone))
    assert run(monkeypatch, desk, "verify", "--json") == 8
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert not report["passed"] and gone in [fault["file"] for fault in report["faults"]]
    assert "uniq-pipeline repair" in said.err
    assert run(monkeypatch, desk, "verify", "--quick") == 8
    out = capsys.readouterr().out
    assert "FAILED  files are there" in out and f"fault: file {gone} is named by the ledger but is not there" in out


def test_an_empty_ledger_beside_a_full_lake_is_a_fault(desk):
    for end in ("", "-wal", "-shm"):
        desk.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)
    (fault,) = audited(desk, quick=True).faults
    assert "it was lost" in fault.text
