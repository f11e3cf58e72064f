"""Finds the SQL: `sql/` beside this package in a checkout, `_sql/` inside it in an installed wheel."""

from __future__ import annotations

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


def place_of(file: str) -> Path:
    """Where a file of the repository is, in a checkout or in an installed wheel: `sql/...` or `uniq_pipeline/...`."""
    top, _, rest = file.partition("/")
    return (sql_root() if top == "sql" else _PACKAGE.parent / top) / rest
