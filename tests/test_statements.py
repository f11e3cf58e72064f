"""What makes the product quick to start changes no answer: macros on demand, the kept base of the catalog, commands."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import pytest
from support.desks import traffic, wreck
from support.ticks import run_tick

from uniq_pipeline import catalog
from uniq_pipeline.maintain import spill_folder
from uniq_pipeline.queries import macros, macros_of
from uniq_pipeline.warehouse import Warehouse, ask_catalog


def test_a_statement_is_given_no_macro_that_only_people_use():
    assert "hll_state" in macros_of("rollup/merge_children")
    assert not {"hll_read", "hll_union", "hll_estimate"} & set(macros_of("rollup/merge_children"))
    assert macros_of("sets/distinct_uids") == {}


def test_the_state_of_no_users_is_what_no_rows_make():
    with Warehouse(threads=1) as warehouse, duckdb.connect() as person:
        person.execute(macros("hll"))
        for lg_k in range(4, 22):
            of_no_rows = f"SELECT hll_state(0, 0::UTINYINT, {lg_k}) WHERE false"
            ((expected,),) = person.execute(of_no_rows).fetchall()
            assert warehouse.run("count/empty_state", lg_k=lg_k)["hll"].to_pylist() == [expected]


@pytest.fixture
def planned(monkeypatch):
    """As in a new process; the bases that are planned anew are in the list."""
    made = []

    def noted(*arguments):
        made.append(arguments)
        return build(*arguments)

    build = catalog.catalog_base
    monkeypatch.setattr(catalog, "_bases", {})
    monkeypatch.setattr(catalog, "catalog_base", noted)
    return made


def test_the_next_process_fills_the_base_that_was_kept_and_another_version_makes_its_own(
    make_settings, planned, monkeypatch
):
    settings = make_settings()
    topic = traffic(settings, seconds=60)
    run_tick(settings, topic)
    answer = ask_catalog(settings.catalog_path, "FROM minute_counts ORDER BY ALL").to_pylist()
    assert len(planned) == 1 and len(answer) == 5
    catalog._bases.clear()
    run_tick(settings, topic)
    assert len(planned) == 1
    assert ask_catalog(settings.catalog_path, "FROM minute_counts ORDER BY ALL").to_pylist() == answer
    catalog._bases.clear()
    monkeypatch.setattr(catalog, "ENGINE", "duckdb 99")
    run_tick(settings, topic)
    assert len(planned) == 2


def test_a_kept_base_that_is_damaged_is_made_anew(make_settings, planned):
    settings = make_settings()
    run_tick(settings, traffic(settings, seconds=60))
    (kept,) = spill_folder(settings).glob("*.base")
    whole = kept.read_bytes()
    for damage in (wreck, lambda path: path.write_bytes(whole[:-9]), lambda path: path.write_bytes(b"")):
        damage(kept)
        catalog._bases.clear()
        run_tick(settings)
        assert ask_catalog(settings.catalog_path, "SELECT sum(frames) > 0 AS ok FROM minute_counts").to_pylist() == [
            {"ok": True}
        ]
    assert len(planned) == 4


def test_a_command_loads_what_it_needs_only():
    script = """
import sys
from uniq_pipeline.cli import main
try:
    main()
finally:
    print(sorted({"duckdb", "sqlalchemy", "confluent_kafka", "pyarrow"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[1:] == ["[]"]
