"""What commands print: JSON for programs, tables for people, progress on stderr."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from uniq_pipeline.config import load_settings
from uniq_pipeline.windows import iso, to_epoch


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.buffer.write(orjson.dumps(value, default=_plain) + b"\n")
    sys.stdout.buffer.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    rows = [list(row) for row in rows]
    for place, name in enumerate(columns):
        numeric = rows and all(isinstance(row[place], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    # A pipe has no width; a row belongs on one line there.
    console = Console(width=None if sys.stdout.isatty() else 400)
    console.print(table)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        value = _plain(value)
    if isinstance(value, float):
        return f"{value:,.2f}" if value != int(value) else f"{int(value):,}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S") + ("Z" if value.tzinfo else "")
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):  # what DuckDB's sum() of integers comes out as
        return int(value) if value == int(value) else float(value)
    return str(value)


class Instant(click.ParamType):
    """A command line's date or time, ISO 8601: `2026-03-01`, `2026-03-01T08:00`, `2026-03-01T08:00Z`.

    Without an offset it is a local time of `UNIQ_TIMEZONE`. Becomes whole seconds since 1970.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            instant = datetime.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date or time such as 2026-03-01 or 2026-03-01T08:00Z", param, ctx)
        return to_epoch(instant if instant.tzinfo else instant.replace(tzinfo=load_settings().zone))


def shown_instant(instant_s: int | None) -> str:
    return "" if instant_s is None else iso(instant_s)


def complain(text: str) -> None:
    print(text, file=sys.stderr)


class Progress:
    """A line on stderr, renewed at most five times a second: done, rate, and the time left where known.

    Says nothing when stderr is not a terminal, but for a line every `EVERY_S` seconds of work that takes long.
    """

    EVERY_S = 30.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin("", 0)
        self._last = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._used = False

    def _begin(self, unit: str, done: int) -> None:
        self._unit = unit
        self._started = time.monotonic()
        self._first = self._newest = done

    def __call__(self, done: int, total: int = 0, unit: str = "frames") -> None:
        now = time.monotonic()
        if unit != self._unit or done < self._newest:  # another stage, or the same one from its beginning
            self._begin(unit, done)
        self._newest = done
        if now - self._last < (0.2 if self._is_terminal else self.EVERY_S):
            return
        self._last = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if total > done and rate > 0 else ""
        share = f" of {total:,}" if total else ""
        line = f"{self._what}: {done:,}{share} {unit}, {rate:,.0f}/s{left}"
        if self._is_terminal:
            self._used = True
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            complain(line)

    def close(self) -> None:
        if self._used:
            print("\r\x1b[K", end="", file=sys.stderr)
