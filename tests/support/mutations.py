"""Deliberate faults: a safeguard taken out of the product's own source, to prove that the tests need it.

Each replaces exact text of one function and runs the result in the function's place. Text that is not there
any more is an error, so a mutation cannot rot into one that changes nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from textwrap import dedent
from types import ModuleType
from typing import Any

import uniq_pipeline.drain as drain
import uniq_pipeline.ledger.dirty as dirty
import uniq_pipeline.ledger.logs as logs
import uniq_pipeline.ledger.results as results
import uniq_pipeline.ledger.sets as sets
import uniq_pipeline.ledger.tallies as tallies
import uniq_pipeline.loading as loading
import uniq_pipeline.maintain as maintain
import uniq_pipeline.publish as publish

Edit = tuple[ModuleType, str, str, str]  # module, function or Class.method, its text, the text in its place

_NO_OFFSET_COMPARED: Edit = (
    logs,
    "_move_offset",
    "            table.c.next_offset == offsets.start_offset,\n",
    "",
)
_NO_RANGE_REFUSED: Edit = (
    logs,
    "_move_offset",
    "schema.batch_ranges.insert().values(",
    'schema.batch_ranges.insert().prefix_with("OR REPLACE").values(',
)

_NO_FILE_REQUIRED: Edit = (loading, "Loader.store", "    self._lake.require(data.file for data in files)\n", "")

MUTATIONS: dict[str, list[Edit]] = {
    "offsets are not compared": [_NO_OFFSET_COMPARED],
    "ranges may start twice": [_NO_RANGE_REFUSED],
    "offsets are not compared and ranges may start twice": [_NO_OFFSET_COMPARED, _NO_RANGE_REFUSED],
    "offsets move in a transaction of their own": [
        (
            logs,
            "commit_log",
            '        ledger.failpoint("drain.in_commit")\n',
            '        connection.commit()\n        connection.exec_driver_sql("BEGIN IMMEDIATE")\n'
            '        ledger.failpoint("drain.in_commit")\n',
        )
    ],
    "files are committed before they stand": [
        _NO_FILE_REQUIRED,
        (loading, "Loader.store", "_write_files(self._lake, ", "_write_files(late_lake := LateLake(self._lake), "),
        (
            loading,
            "Loader.store",
            '    self._failpoint("drain.after_commit")\n',
            '    self._failpoint("drain.after_commit")\n    late_lake.write_now()\n',
        ),
    ],
    "marks are cleared whatever their seq": [
        (dirty, "clear", '            table.c.seq == bindparam("the_seq"),\n', "")
    ],
    "only counted hours note what is held": [
        (
            tallies,
            "add_tallies",
            "dirty.c.bucket_start_s.in_(hours)",
            "dirty.c.bucket_start_s.in_(hours), dirty.c.seq < 0",
        )
    ],
    "bucket versions are not compared": [
        (results, "_replace_bucket", ", table.c.version == work.version", ""),
    ],
    "set marks are cleared whatever their seq": [
        (dirty, "clear", '            table.c.seq == bindparam("the_seq"),\n', "")
    ],
    "marks of merged windows are cleared whatever their seq": [
        (dirty, "clear", '            table.c.seq == bindparam("the_seq"),\n', "")
    ],
    "sets are put together from stale ones": [
        (sets, "stale_sets", " and not _lies_in(work.window, stale)", ""),
    ],
    "offsets are read after the topic": [
        (
            drain,
            "drain",
            "    positions = read_positions(ledger, log)\n    state = source.describe()\n",
            "    state = source.describe()\n    positions = read_positions(ledger, log)\n",
        )
    ],
    "young orphans are not spared and files are not looked for": [
        _NO_FILE_REQUIRED,
        (maintain, "collect_garbage", "status.st_mtime < young", "status.st_mtime < moment"),
    ],
    "the outbox is cleared before sending": [
        (publish, "publish", '        failpoint("publish.sent")\n', ""),
        (
            publish,
            "publish",
            "        total += sink.send",
            "        clear_sent(ledger, [Sent(entry, row['revision']) for entry, row in found])\n"
            '        failpoint("publish.sent")\n        total += sink.send',
        ),
    ],
}


class LateLake:
    """A lake whose files come to stand only later."""

    def __init__(self, lake: Any) -> None:
        self._lake = lake
        self._files: list[Any] = []

    def write(self, path: str, table: Any) -> Any:
        file = self._lake.write(path, table)
        target = self._lake.absolute(path)
        self._files.append((target, target.read_bytes()))
        target.unlink()
        return file

    def write_now(self) -> None:
        for target, data in self._files:
            target.write_bytes(data)


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Builds a fault in for the length of the block."""
    sources: dict[tuple[ModuleType, str], str] = {}
    for module, function, text, replacement in MUTATIONS[name]:
        source = sources.get((module, function)) or dedent(inspect.getsource(attrgetter(function)(module)))
        if text not in source:
            raise LookupError(f"mutation {name!r}: {module.__name__}.{function} no longer holds {text!r}")
        sources[module, function] = source.replace(text, replacement)
    undo: list[tuple[Any, str, Any]] = []
    for (module, function), source in sources.items():
        original = attrgetter(function)(module)
        owner_name, _, own_name = function.rpartition(".")
        made: dict[str, Any] = {}
        exec(compile(source, f"<mutated {function}>", "exec"), {**vars(module), "LateLake": LateLake}, made)
        # A function also where it was imported by name; a method is looked up in its class.
        users = [getattr(module, owner_name)] if owner_name else list(sys.modules.values())
        for user in users:
            if getattr(user, "__dict__", {}).get(own_name) is original:
                undo.append((user, own_name, original))
                setattr(user, own_name, made[own_name])
    try:
        yield
    finally:
        for user, function, original in undo:
            setattr(user, function, original)
