"""DuckDB, as this project uses it: sessions that run the statements of `sql/`. Sole importer of duckdb."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from uniq_pipeline.errors import FileDamaged, InputError, LakeError, UniqError
from uniq_pipeline.queries import macros, query


class Warehouse:
    """One DuckDB session with the sketch macros: in memory, in UTC, bounded in memory and threads.

    What does not fit in memory is spilled to a folder that goes with the session.
    """

    def __init__(self, *, threads: int = 2, memory_mb: int = 1024, spill_dir: Path | None = None) -> None:
        try:
            self._spill = tempfile.TemporaryDirectory(prefix="uniq-duckdb-", dir=spill_dir)
        except OSError as error:
            raise LakeError(
                f"spill folder {spill_dir} cannot be written: {error.strerror}; see UNIQ_DATA_DIR"
            ) from None
        self._named = _Named(str(spill_dir or self._spill.name))
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": f"{memory_mb}MiB",
                "temp_directory": self._spill.name,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET preserve_insertion_order = false")  # order is said where it matters
        self._connection.execute("SET enable_progress_bar = false")  # it would be drawn into what we print
        self._connection.execute(macros("hll"))

    def register(self, name: str, table: pa.Table) -> None:
        """Makes an Arrow table a relation of that name, in the place of an earlier one."""
        self._connection.register(name, table)

    def register_files(self, name: str, paths: Sequence[Path], schema: pa.Schema) -> None:
        """Makes Parquet files a relation of that name; without files, an empty one of that schema."""
        if not paths:
            self.register(name, schema.empty_table())
            return
        with self._named:
            relation = self._connection.read_parquet([str(path) for path in paths], hive_partitioning=False)
            self._connection.register(name, relation)

    def run(self, statement: str, **values: Any) -> pa.Table:
        """Runs `sql/<statement>.sql` with values bound by name; the result as Arrow.

        Planning is most of the time of a small statement, and `sql()` plans twice; `execute()` plans once, and
        warns that it copies the rows. For results too large to copy there is `run_large`.
        """
        with self._named, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
            return self._connection.execute(query(statement), values).to_arrow_table()

    def run_large(self, statement: str, **values: Any) -> pa.Table:
        """Like `run`, for millions of rows."""
        with self._named:
            return self._connection.sql(query(statement), params=values).to_arrow_table()

    @contextmanager
    def stream(self, statement: str, *, rows_at_once: int) -> Iterator[pa.RecordBatchReader]:
        """The result of a statement in batches, for what may be larger than memory."""
        with self._named:
            yield self._connection.sql(query(statement)).to_arrow_reader(rows_at_once)

    def close(self) -> None:
        self._connection.close()
        self._spill.cleanup()

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Named:
    """Turns DuckDB's errors about files into ours; its messages name the file."""

    def __init__(self, spill_dir: str) -> None:
        self._spill_dir = spill_dir

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # What follows the first line are hints at DuckDB's own settings, which are ours to make.
        said = str(error).partition("\n")[0]
        is_about_memory = isinstance(error, duckdb.OutOfMemoryException)
        if (is_about_memory and "max_temp_directory_size" in str(error)) or (
            isinstance(error, duckdb.IOException) and os.strerror(errno.ENOSPC) in said
        ):
            raise LakeError(
                f"spill folder {self._spill_dir}: No space left on device for what does not fit in memory ({said}); "
                f"free some, or see UNIQ_DUCKDB_MEMORY_MB"
            ) from None
        if is_about_memory:
            raise UniqError(f"DuckDB ran out of memory: {said}; see UNIQ_DUCKDB_MEMORY_MB") from None
        if isinstance(error, duckdb.IOException | duckdb.InvalidInputException | duckdb.SerializationException):
            raise FileDamaged(f"a file the ledger names cannot be read: {error}") from None


# Shells from this version on can open the catalog; its macros need it for `lambda x: ...`. Tried with 1.5.6 and 2.0.
CATALOG_READABLE_FROM = "v1.3.0"


def write_catalog(target: Path, scratch: Path, tables: Mapping[str, pa.Table], script: str) -> None:
    """Builds a DuckDB file from tables and a script and swaps it in: a reader sees the old one or the new.

    It is built in the folder `scratch`, on the same file system; what a killed process leaves there goes with gc.
    """
    temporary = scratch / f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        connection = duckdb.connect(str(temporary), config={"storage_compatibility_version": CATALOG_READABLE_FROM})
        try:
            for name, table in tables.items():
                connection.from_arrow(table).create(name)
            connection.execute(script)
            connection.execute("CHECKPOINT")  # closing does it, too, but says nothing when the disk is full
        finally:
            connection.close()
        os.replace(temporary, target)
    except (duckdb.Error, OSError) as error:
        raise UniqError(f"catalog {target} cannot be built: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)


def ask_catalog(path: Path, sql: str) -> pa.Table:
    """Answers a person's SQL from the catalog, read-only and in UTC. Raises InputError when it cannot."""
    if not path.is_file():
        raise InputError(f"catalog {path} does not exist yet: run `uniq-pipeline drain` first")
    try:
        connection = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise InputError(f"catalog {path} cannot be opened: {error}") from None
    try:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"query failed: {error}") from None
    finally:
        connection.close()
