"""The documentation names every command, setting and column that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from uniq_pipeline.cli.main import root
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.warehouse import ask_catalog

DOCS = Path(__file__).parents[1] / "docs"


def commands(group, path=()):
    """(name as typed, command) of every command and group below one."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("name", dict(commands(root)))
def test_every_command_is_documented(name):
    assert f"uniq-pipeline {name}" in (DOCS / "commands.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name):
    assert f"`UNIQ_{name.upper()}`" in (DOCS / "settings.md").read_text()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """A catalog that has no data yet."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("docs"))
    with open_workshop(settings) as shop:
        tick(shop, None, lambda: None)
    return settings.catalog_path


@pytest.fixture(scope="module")
def columns(catalog):
    """(view or table, column) of everything in a catalog."""
    found = ask_catalog(catalog, "SELECT table_name, column_name FROM information_schema.columns")
    return [(row["table_name"], row["column_name"]) for row in found.to_pylist()]


def test_every_macro_for_people_is_documented(catalog):
    """Macros of the catalog, but for those named as its own parts: uniq_..."""
    text = (DOCS / "tables.md").read_text()
    found = ask_catalog(
        catalog,
        "SELECT DISTINCT function_name AS name, parameters FROM duckdb_functions() "
        "WHERE function_type LIKE '%macro' AND NOT internal",
    ).to_pylist()
    public = {row["name"]: row["parameters"] for row in found if not row["name"].startswith("uniq_")}
    assert len(public) >= 40
    assert sorted(name for name in public if f"`{name}(" not in text and f"`{name}`" not in text) == []
    ranges = {name: parameters for name, parameters in public.items() if not name.startswith("hll_")}
    assert len(ranges) >= 7
    missing = {name: [p for p in parameters if f"`{p}`" not in text] for name, parameters in ranges.items()}
    assert {name: parameters for name, parameters in missing.items() if parameters} == {}


def test_every_column_a_macro_answers_with_is_documented(catalog):
    text = (DOCS / "tables.md").read_text()
    calls = [
        "unique_users('2026-01-01', '2026-01-02')",
        "unique_users_by_value('day', 'country', '2026-01-01', '2026-01-02')",
        "overlap(['2026-01-01', '2026-01-02'], ['2026-01-02', '2026-01-03'])",
        "retention('day', '2026-01-01', '2026-01-02')",
        "new_and_returning('day', '2026-01-01', '2026-01-02')",
        "distinct_users('2026-01-01', '2026-01-02')",
    ]
    for call in calls:
        section = text[text.index(f"## `{call.split('(')[0]}(") :].split("\n## ")[0]
        columns = ask_catalog(catalog, f"DESCRIBE FROM {call}").to_pylist()
        undocumented = [
            c["column_name"]
            for c in columns
            if f"| `{c['column_name']}` | {c['column_type'].split(' WITH')[0]}" not in section
        ]
        assert undocumented == [], call


def test_every_column_of_every_view_is_documented(columns):
    text = (DOCS / "tables.md").read_text()
    assert len({view for view, _ in columns}) >= 11
    assert sorted({view for view, _ in columns if f"`{view}`" not in text}) == []
    assert sorted({column for _, column in columns if f"`{column}`" not in text}) == []


@pytest.mark.slow
def test_a_shell_answers_what_the_page_on_sql_says():
    """Everything on it is typed again: the commands that make its data, and each statement into a DuckDB shell."""
    done = subprocess.run([sys.executable, DOCS / "take_transcript.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
