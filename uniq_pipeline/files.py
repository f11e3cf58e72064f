"""Frames from JSONL files and stdin: plain, gzip or zstd, recognised by their first bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from uniq_pipeline.errors import InputError
from uniq_pipeline.records import NO_TIME, Records

STDIN = "-"
_BLOCK = 4 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def read_lines(
    name: str,
    kafka_partition: int,
    *,
    read_bytes: Callable[[int], None] = lambda count: None,
    is_whole: Callable[[bytes], bool] = lambda line: True,
) -> Iterator[Records]:
    """The lines of a file (`-` is stdin) as records; offsets are line numbers from 0, blank lines are skipped.

    `read_bytes` is told the bytes taken from the file, compressed ones where it is compressed. `is_whole` is asked
    whether a last line without a line end is there to its end; where it is not, it is left out. Raises InputError,
    naming the file, when it cannot be read or its compression is damaged.
    """
    shown = "stdin" if name == STDIN else name
    if name == STDIN and sys.stdin is None:
        raise InputError("stdin: cannot be read: it is closed")
    try:
        with _opened(name, read_bytes) as stream:
            yield from _records(stream, kafka_partition, is_whole)
    except (OSError, pa.ArrowException, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown}: cannot be read: {reason}") from None


def read_head(name: str, size_bytes: int) -> bytes:
    """The first bytes of a file, decompressed where it is compressed; fewer where it has no more.

    Raises InputError, naming the file, when it cannot be read. A pipe cannot: what is read here would be gone.
    """
    path = Path(name)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{name}: a pipe or device cannot be told from another one: give it as stdin, with --as")
    head = b""
    try:
        with _opened(name, lambda count: None) as stream:
            while len(head) < size_bytes and (more := stream.read(size_bytes - len(head))):
                head += more
    except (OSError, pa.ArrowException, EOFError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return head


def size_of(name: str) -> int | None:
    """Bytes of a file, None where that is unknown (stdin, a pipe)."""
    path = Path(name)
    return path.stat().st_size if name != STDIN and path.is_file() else None


def _records(stream: BinaryIO, kafka_partition: int, is_whole: Callable[[bytes], bool]) -> Iterator[Records]:
    line_number = 0
    rest: list[bytes] = []  # a line of many blocks is joined once, not at every block
    while True:
        block = stream.read(_BLOCK)
        if block and b"\n" not in block:
            rest.append(block)
            continue
        lines = b"".join([*rest, block]).split(b"\n")
        rest = [lines.pop()] if block or not is_whole(lines[-1]) else []
        kept = [(line_number + i, line) for i, line in enumerate(lines) if line and not line.isspace()]
        line_number += len(lines)
        if kept:
            offsets, payloads = zip(*kept, strict=True)
            yield Records(kafka_partition, offsets, [NO_TIME] * len(offsets), payloads, line_number)
        if not block:
            return


@contextmanager
def _opened(name: str, read_bytes: Callable[[int], None]) -> Iterator[BinaryIO]:
    file = sys.stdin.buffer if name == STDIN else open(name, "rb")
    try:
        counted = _Counting(file, read_bytes)
        head = counted.peek(4)
        compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        if compression is None:
            yield counted
        else:
            with pa.CompressedInputStream(pa.PythonFile(counted, mode="r"), compression) as stream:
                yield stream
    finally:
        if name != STDIN:
            file.close()


class _Counting:
    """A binary stream with a peek, that tells how much was taken from it."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told
        self._head = b""
        self.closed = False

    def peek(self, size: int) -> bytes:
        while len(self._head) < size and (more := self._file.read(size - len(self._head))):
            self._head += more
        return self._head

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data, self._head = self._head, b""
        else:
            data = self._file.read(size)
        self._told(len(data))
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
