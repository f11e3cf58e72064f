"""The lake: Parquet files, each written once under a unique name, whole and on disk before anyone names it.

Which files count is said by the ledger, never by a folder listing. The only module that reads or writes
Parquet from Python.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uniq_pipeline.errors import FileDamaged, LakeError, UniqError

# zstd level 1 on delta-encoded times and offsets: 11 bytes a small frame. A dictionary on uid only costs:
# most uids of a file differ.
_FRAMES_OPTIONS = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["topic", "event_class", "dimensions.key_value.key", "dimensions.key_value.value"],
    "column_encoding": {
        "kafka_partition": "DELTA_BINARY_PACKED",
        "kafka_offset": "DELTA_BINARY_PACKED",
        "kafka_time": "DELTA_BINARY_PACKED",
        "event_time": "DELTA_BINARY_PACKED",
        "late_by_s": "DELTA_BINARY_PACKED",
    },
}
_ANY = (-(1 << 62), 1 << 62)  # any whole number there is

_TABLE_OPTIONS = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}


@dataclass(frozen=True)
class LakeFile:
    """A file that stands on disk. `path` is relative to the lake's root, with forward slashes."""

    path: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says of it. `notes` is what its writer put there, by name."""

    rows: int
    notes: dict[str, str]
    min_event_s: int | None = None
    max_event_s: int | None = None


class Lake:
    """The folder of data files. `failpoint(name)` is called where a crash would matter (tests kill there)."""

    def __init__(self, root: Path, failpoint: Callable[[str], None] = lambda name: None) -> None:
        self.root = root.absolute()
        self._failpoint = failpoint

    def prepare(self) -> None:
        """Makes the root and proves that it can be written. Raises LakeError before any work is done."""
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise LakeError(f"lake folder {self.root} cannot be written: {error.strerror}; see UNIQ_DATA_DIR") from None

    def absolute(self, path: str) -> Path:
        """The place of a file of the lake; raises LakeError for a name that leads out of it."""
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root.resolve()):
            raise LakeError(f"file name {path!r} leads out of the lake {self.root}")
        return full

    def write(self, path: str, table: pa.Table) -> LakeFile:
        """Writes a new file so that it is there whole, or not at all under that name.

        The bytes go to a temporary name, are flushed to disk, and are renamed; then the folder is flushed, so
        that the name survives a power cut too. Raises LakeError when the disk is full or refuses.
        """
        with self._whole_or_not_at_all(path) as sink:
            pq.write_table(table, sink, **_options(table.schema))
        return LakeFile(path, table.num_rows, sink.size_bytes, sink.sha256)

    def write_stream(self, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> LakeFile:
        """Like `write`, for more rows than fit in memory; each batch becomes a row group."""
        rows = 0
        with self._whole_or_not_at_all(path) as sink, pq.ParquetWriter(sink, schema, **_options(schema)) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        return LakeFile(path, rows, sink.size_bytes, sink.sha256)

    @contextmanager
    def _whole_or_not_at_all(self, path: str) -> Iterator[_HashingFile]:
        target = self.absolute(path)
        # Its own name for each writer: two processes may write the same file (the empty ones of the catalog).
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.writing")
        try:
            new_folders = _make_folders(target.parent)
            with _HashingFile(temporary) as sink:
                yield sink
                self._failpoint("lake.before_fsync")
                sink.sync()
            os.replace(temporary, target)
            for folder in (target.parent, *new_folders):
                _sync_folder(folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise LakeError(f"file {target} cannot be written: {error.strerror or error}") from None
        except UniqError:  # from what was to be written
            temporary.unlink(missing_ok=True)
            raise
        self._failpoint("lake.file_stands")

    def require(self, files: Iterable[LakeFile]) -> None:
        """Raises LakeError when one of the files that are about to be committed is gone.

        gc knows the age of a file without a name by the clock. Where that was set ahead, a new file looks old.
        """
        for file in files:
            if not self.absolute(file.path).exists():
                raise LakeError(
                    f"file {self.absolute(file.path)} is gone before its commit; nothing was committed, the next run "
                    f"does it again. gc removes it only where the clock was set ahead."
                )

    def read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A file, or some of its columns, `a.list.element.b` within one of them.

        Raises FileDamaged, naming it, when it is missing or not what it was.
        """
        with self._damage_named(path) as full, pq.ParquetFile(full) as file:
            return file.read(columns=columns)

    def footer(self, path: str) -> Footer:
        """What a file says of itself, without its rows: a millisecond. Raises FileDamaged like `read`."""
        with self._damage_named(path) as full:
            footer = pq.read_metadata(full)
        notes = {name.decode(): value.decode() for name, value in (footer.metadata or {}).items()}
        place = next((i for i in range(footer.num_columns) if footer.schema.column(i).path == "event_time"), None)
        groups = [] if place is None else [footer.row_group(i).column(place) for i in range(footer.num_row_groups)]
        bounds = [group.statistics for group in groups if group.statistics and group.statistics.has_min_max]
        if not bounds:
            return Footer(footer.num_rows, notes)
        # raw: microseconds since 1970
        first, last = min(bound.min_raw for bound in bounds), max(bound.max_raw for bound in bounds)
        return Footer(footer.num_rows, notes, first // 1_000_000, last // 1_000_000)

    def listing(self, folder: str) -> list[str]:
        """Every file below a folder, whoever names it, in order of its name."""
        below = self.absolute(folder)
        return sorted(path.relative_to(self.root).as_posix() for path in below.rglob("*") if path.is_file())

    def standing(self, path: str, rows: int) -> LakeFile:
        """A file as it is now; reads all of it. Raises FileDamaged when it cannot be read."""
        with self._damage_named(path) as full:
            return LakeFile(path, rows, full.stat().st_size, self.sha256(path))

    def may_hold(self, path: str, column: str, values: Collection[str]) -> bool:
        """Whether a file may hold one of these values, by the bounds in its footer: a millisecond, not a scan."""
        with self._damage_named(path) as full:
            footer = pq.read_metadata(full)
        place = next(i for i in range(footer.num_columns) if footer.schema.column(i).path == column)
        for group in range(footer.num_row_groups):
            found = footer.row_group(group).column(place).statistics
            if found is None or not found.has_min_max or any(found.min <= value <= found.max for value in values):
                return True
        return False

    def bounds(self, path: str, columns: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The least and the greatest of columns of whole numbers, by the footer; any number where it says none."""
        with self._damage_named(path) as full:
            footer = pq.read_metadata(full)
        places = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
        found = {}
        for name in columns:
            groups = [footer.row_group(i).column(places[name]).statistics for i in range(footer.num_row_groups)]
            known = [one for one in groups if one is not None and one.has_min_max]
            is_known = known and len(known) == len(groups)
            found[name] = (min(one.min for one in known), max(one.max for one in known)) if is_known else _ANY
        return found

    def may_overlap(self, path: str, bounds: Mapping[str, tuple[int, int]]) -> bool:
        """Whether a row group of a file may hold a row within all these bounds, inclusive, by its footer alone."""
        with self._damage_named(path) as full:
            footer = pq.read_metadata(full)
        places = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
        for group in range(footer.num_row_groups):
            found = {name: footer.row_group(group).column(places[name]).statistics for name in bounds}
            if all(
                one is None or not one.has_min_max or (one.min <= bounds[name][1] and one.max >= bounds[name][0])
                for name, one in found.items()
            ):
                return True
        return False

    @contextmanager
    def _damage_named(self, path: str) -> Iterator[Path]:
        full = self.absolute(path)
        try:
            yield full
        except FileNotFoundError:
            raise FileDamaged(f"file {full} is named by the ledger but is not there", path) from None
        except (OSError, pa.ArrowException) as error:
            raise FileDamaged(f"file {full} cannot be read: {error}", path) from None

    def is_whole(self, path: str, size_bytes: int) -> bool:
        """Whether a file is there, with its size."""
        try:
            return self.absolute(path).stat().st_size == size_bytes
        except OSError:
            return False

    def sha256(self, path: str) -> str:
        """The checksum of a file as it is now."""
        digest = hashlib.sha256()
        with open(self.absolute(path), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


class _HashingFile:
    """A binary file that hashes what passes through, so that the checksum is of what we meant to write."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def __enter__(self) -> _HashingFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _options(schema: pa.Schema) -> dict[str, Any]:
    return _FRAMES_OPTIONS if schema.get_field_index("late_by_s") >= 0 else _TABLE_OPTIONS


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder; the parents of what was new, whose entries must be flushed too."""
    new_parents = []
    probe = folder
    while not probe.exists():
        new_parents.append(probe.parent)
        probe = probe.parent
    folder.mkdir(parents=True, exist_ok=True)
    return new_parents


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
