"""A person's DuckDB shell beside the pipeline: neither holds up the other (FAULTS row 52)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from uniq_pipeline.ingest import file_logs, load_file
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.tick import open_workshop, tick

START_S = 1_772_352_000  # 2026-03-01T08:00:00Z
COUNT = "SELECT users FROM unique_users('2026-03-01', '2026-03-02');"


class Shell:
    """The `duckdb` shell as it is typed into: open for writing, which locks its file."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [Path(sys.executable).with_name("duckdb"), "-noheader", "-csv", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, line: str) -> str:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def order(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> str:
        rest, _ = self._process.communicate("")
        return rest


def load(shop, folder, users):
    path = folder / f"{users}.jsonl"
    path.write_text("".join(json.dumps({"ts": START_S + i, "uid": f"{users}-{i}"}) + "\n" for i in range(users)))
    for log in file_logs(shop.ledger, [str(path)]):
        for _ in load_file(shop, log):
            pass
    report = tick(shop, None, None, close_windows=True)
    assert report.lost_race is None
    collect_garbage(shop.settings, shop.ledger, shop.lake)


@pytest.fixture
def settings(make_settings):
    return make_settings()


def test_fault_52_an_open_shell_and_the_pipeline_do_not_disturb_each_other(settings, data_dir):
    with open_workshop(settings) as shop:
        load(shop, data_dir, 30)
        shell = Shell(settings.catalog_path)
        assert shell.type(COUNT) == "30"
        shell.order("BEGIN;")
        assert shell.type("SELECT sum(frames) FROM minute_counts;") == "30"
        load(shop, data_dir, 50)  # with the shell's transaction open
        # The shell goes on with what it opened, though that was replaced and gc has run.
        assert shell.type("SELECT sum(frames) FROM minute_counts;") == "30"
        assert shell.type(COUNT) == "30"
        shell.order("COMMIT;")
        shell.order(f".open '{settings.catalog_path}'")
        assert shell.type(COUNT) == "80"
        # What a person makes in the shell stays out of the next catalog.
        shell.order("CREATE TABLE mine AS SELECT 1 AS x;")
        load(shop, data_dir, 20)
        assert shell.close() == ""
    with duckdb.connect(str(settings.catalog_path), read_only=True) as now:
        assert now.sql(COUNT.rstrip(";")).fetchall() == [(100,)]
        assert now.sql("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'mine'").fetchall() == [(0,)]


def test_two_shells_read_the_same_catalog_at_once(settings, data_dir):
    with open_workshop(settings) as shop:
        load(shop, data_dir, 10)
    with (
        duckdb.connect(str(settings.catalog_path), read_only=True) as one,
        duckdb.connect(str(settings.catalog_path), read_only=True) as other,
    ):
        assert one.sql(COUNT.rstrip(";")).fetchall() == other.sql(COUNT.rstrip(";")).fetchall() == [(10,)]
