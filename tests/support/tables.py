"""The ledger's tables as they stand, on SQLite or Postgres; nothing of the product reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, NullPool, create_engine, inspect, text

from uniq_pipeline.config import Settings


@contextmanager
def connected(settings: Settings) -> Iterator[Connection]:
    engine = create_engine(settings.effective_ledger_url, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def asked(settings: Settings, sql: str, *values: object) -> list[tuple]:
    """Rows; each ? in the statement stands for a value."""
    with connected(settings) as connection:
        return [tuple(row) for row in _executed(connection, sql, values)]


def told(settings: Settings, sql: str, *values: object) -> None:
    """Changes the ledger behind the product's back: one row at least."""
    with connected(settings) as connection:
        assert _executed(connection, sql, values).rowcount >= 1
        connection.commit()


def all_tables(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    with connected(settings) as connection:
        return {
            name: [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}").mappings()]
            for name in inspect(connection).get_table_names()
        }


def _executed(connection: Connection, sql: str, values: tuple[object, ...]) -> CursorResult:
    named = {f"v{i}": value for i, value in enumerate(values)}
    first, *parts = sql.split("?")
    return connection.execute(text(first + "".join(f":v{i}{part}" for i, part in enumerate(parts))), named)
