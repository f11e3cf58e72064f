"""Finds the SQL: `sql/` beside this package in a checkout, `_sql/` inside it in an installed wheel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


@cache
def sql_root() -> Path:
    installed = _PACKAGE / "_sql"
    return installed if installed.is_dir() else _PACKAGE.parent / "sql"


@cache
def query(name: str) -> str:
    """The text of one statement, e.g. `query("count/minute_counts")`."""
    return (sql_root() / f"{name}.sql").read_text(encoding="utf-8")


@cache
def macros(family: str = "hll") -> str:
    """All macro definitions of a family, in file-name order, as one script."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((sql_root() / family).glob("*.sql")))


@cache
def macros_of(statement: str) -> Mapping[str, str]:
    """The sketch macros that a statement needs, those that they need first: name -> definition.

    Defining all of them takes DuckDB 0.2 s of CPU, because it plans each with all that it mentions; those of the
    largest statement take a quarter of that.
    """
    known = _definitions()
    needed: set[str] = set()

    def add(text: str) -> None:
        for name in set(_WORD.findall(_NO_CODE.sub("", text))) & known.keys() - needed:
            needed.add(name)
            add(known[name])

    add(query(statement))
    return {name: text for name, text in known.items() if name in needed}


_WORD = re.compile(r"\w+")
_NO_CODE = re.compile(r"--.*|'(?:[^']|'')*'")  # comments and texts
_DEFINITION = re.compile(r"^CREATE OR REPLACE MACRO (\w+)\(.*?;$", re.DOTALL | re.MULTILINE)


@cache
def _definitions() -> dict[str, str]:
    return {found[1]: found[0] for found in _DEFINITION.finditer(macros("hll"))}


def place_of(file: str) -> Path:
    """Where a file of the repository is, in a checkout or in an installed wheel: `sql/...` or `uniq_pipeline/...`."""
    top, _, rest = file.partition("/")
    return (sql_root() if top == "sql" else _PACKAGE.parent / top) / rest
