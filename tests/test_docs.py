"""The documentation names every command, setting and column that there is."""

from __future__ import annotations

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
    for name, command in group.commands.items():
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
def columns(tmp_path_factory):
    """(view or table, column) of everything in a catalog, also in one that has no data yet."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("docs"))
    with open_workshop(settings) as shop:
        tick(shop, None, lambda: None)
    found = ask_catalog(settings.catalog_path, "SELECT table_name, column_name FROM information_schema.columns")
    return [(row["table_name"], row["column_name"]) for row in found.to_pylist()]


def test_every_column_of_every_view_is_documented(columns):
    text = (DOCS / "tables.md").read_text()
    assert len({view for view, _ in columns}) >= 11
    assert sorted({view for view, _ in columns if f"`{view}`" not in text}) == []
    assert sorted({column for _, column in columns if f"`{column}`" not in text}) == []
