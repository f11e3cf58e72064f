"""`uniq-pipeline query`: answers for programs and for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

COMMAND = Path(sys.executable).with_name("uniq-pipeline")


@pytest.fixture
def ask(tmp_path):
    with duckdb.connect(str(tmp_path / "uniq.duckdb")) as catalog:
        catalog.execute("CREATE TABLE t AS SELECT 7::BIGINT AS n, 'Zoë' AS name, 'ab'::BLOB AS hll FROM range(3)")

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "UNIQ_DATA_DIR": str(tmp_path)}
        return subprocess.run(
            [COMMAND, "query", *arguments], env=environment, input=stdin, capture_output=True, text=True
        )

    return run


def test_json_has_one_object_a_row_and_numbers_as_numbers(ask):
    done = ask(
        "--json",
        "SELECT sum(n) AS total, avg(n) AS mean, 1.5::DECIMAL(4,1) AS d, name, NULL AS none FROM t GROUP BY name",
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"total": 21, "mean": 7.0, "d": 1.5, "name": "Zoë", "none": None}
    ]


def test_a_table_is_for_people(ask):
    done = ask("SELECT sum(n) * 1000 AS total, any_value(hll) AS hll FROM t")
    assert "21,000" in done.stdout and "<2 bytes>" in done.stdout


def test_the_sql_may_come_from_stdin(ask):
    assert json.loads(ask("--json", "-", stdin="SELECT count(*) AS n FROM t").stdout) == {"n": 3}


@pytest.mark.parametrize(
    ("sql", "said"), [("SELEC 1", "query failed"), ("", "empty"), ("CREATE TABLE u (i INT)", "read-only")]
)
def test_what_cannot_be_answered_is_said_without_a_traceback(ask, sql, said):
    done = ask(sql)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_without_a_catalog_it_says_how_to_get_one(tmp_path):
    environment = {**os.environ, "UNIQ_DATA_DIR": str(tmp_path / "nothing")}
    done = subprocess.run([COMMAND, "query", "SELECT 1"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "uniq-pipeline drain" in done.stderr
