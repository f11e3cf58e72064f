"""DuckDB, as this project uses it: sessions that run the statements of `sql/`. Sole importer of duckdb."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from uniq_pipeline.errors import FileDamaged, InputError, LakeError, UniqError
from uniq_pipeline.queries import macros_of, query


class Warehouse:
    """One DuckDB session: in memory, in UTC, bounded in memory and threads.

    It defines the sketch macros that a statement needs when that is run. What does not fit in memory is spilled to a
    folder that goes with the session.
    """

    def __init__(self, *, threads: int = 2, memory_mb: int = 1024, spill_dir: Path | None = None) -> None:
        try:
            self._spill = tempfile.TemporaryDirectory(prefix="uniq-duckdb-", dir=spill_dir)
        except OSError as error:
            raise LakeError(
                f"spill folder {spill_dir} cannot be written: {error.strerror}; see UNIQ_DATA_DIR"
            ) from None
        self._spill_dir = spill_dir or self._spill.name
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
        self._macros: set[str] = set()
        self._files: dict[str, Sequence[Path]] = {}

    def register(self, name: str, table: pa.Table) -> None:
        """Makes an Arrow table a relation of that name, in the place of an earlier one."""
        self._connection.register(name, table)
        self._files.pop(name, None)

    def register_files(self, name: str, paths: Sequence[Path], schema: pa.Schema) -> None:
        """Makes Parquet files a relation of that name; without files, an empty one of that schema."""
        if not paths:
            self.register(name, schema.empty_table())
            return
        with self._named(paths):
            relation = self._connection.read_parquet([str(path) for path in paths], hive_partitioning=False)
            self._connection.register(name, relation)
        self._files[name] = paths

    def run(self, statement: str, **values: Any) -> pa.Table:
        """Runs `sql/<statement>.sql` with values bound by name; the result as Arrow.

        Planning is most of the time of a small statement, and `sql()` plans twice; `execute()` plans once, and
        warns that it copies the rows. For results too large to copy there is `run_large`.
        """
        with self._named(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
            return self._connection.execute(self._text(statement), values).to_arrow_table()

    def run_large(self, statement: str, **values: Any) -> pa.Table:
        """Like `run`, for millions of rows."""
        with self._named():
            return self._connection.sql(self._text(statement), params=values).to_arrow_table()

    @contextmanager
    def stream(self, statement: str, *, rows_at_once: int) -> Iterator[pa.RecordBatchReader]:
        """The result of a statement in batches, for what may be larger than memory."""
        with self._named():
            yield self._connection.sql(self._text(statement)).to_arrow_reader(rows_at_once)

    def _text(self, statement: str) -> str:
        """A statement, whose macros are there from now on."""
        missing = {name: text for name, text in macros_of(statement).items() if name not in self._macros}
        if missing:
            self._connection.execute("\n".join(missing.values()))
            self._macros.update(missing)
        return query(statement)

    @contextmanager
    def _named(self, paths: Sequence[Path] = ()) -> Iterator[None]:
        """Turns DuckDB's errors about files into ours, which name the file: DuckDB does not always."""
        try:
            yield
        except duckdb.Error as error:
            # What follows the first line are hints at DuckDB's own settings, which are ours to make.
            said = str(error).partition("\n")[0]
            is_about_memory = isinstance(error, duckdb.OutOfMemoryException)
            if (is_about_memory and "max_temp_directory_size" in str(error)) or (
                isinstance(error, duckdb.IOException) and os.strerror(errno.ENOSPC) in said
            ):
                raise LakeError(
                    f"spill folder {self._spill_dir}: No space left on device for what does not fit in memory "
                    f"({said}); free some, or see UNIQ_DUCKDB_MEMORY_MB"
                ) from None
            if is_about_memory:
                raise UniqError(f"DuckDB ran out of memory: {said}; see UNIQ_DUCKDB_MEMORY_MB") from None
            # What it finds wrong within a page comes as an error of no kind at all.
            if type(error) is not duckdb.Error and not isinstance(error, _FILE_ERRORS):
                raise
            read = {path: None for some in (paths, *self._files.values()) for path in some}
            wrong = dict(_what_is_wrong(read))
            why = "; ".join(wrong.values()) or error
            raise FileDamaged(f"a file the ledger names cannot be read: {why}", *map(str, wrong)) from None

    def close(self) -> None:
        self._connection.close()
        self._spill.cleanup()

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_FILE_ERRORS = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)


def _what_is_wrong(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The files that DuckDB cannot read all of, each with what it says of it, and the name."""
    with duckdb.connect(config={"threads": 1}) as connection:
        for path in paths:
            try:
                for _ in connection.read_parquet(str(path), hive_partitioning=False).to_arrow_reader(100_000):
                    pass
            except (duckdb.Error, pa.ArrowException) as error:
                yield path, f"{path}: {error}"


ENGINE = f"duckdb {duckdb.__version__}"

# Shells from this version on can open the catalog; its macros need it for `lambda x: ...`. Tried with 1.5.6 and 2.0.
CATALOG_READABLE_FROM = "v1.3.0"


def catalog_base(target: Path, scratch: Path, tables: Mapping[str, pa.Table], script: str) -> bytes:
    """A DuckDB file of tables and a script, for `write_catalog` to go on from."""
    with _built(target, scratch) as (temporary, connection):
        for name, table in tables.items():
            connection.from_arrow(table).create(name)
        connection.execute(script)
        _close(connection)
        return temporary.read_bytes()


def write_catalog(target: Path, scratch: Path, base: bytes, rows: Mapping[str, pa.Table], script: str) -> None:
    """Adds rows to the tables of a base, runs a script and swaps the file in: a reader sees the old one or the new.

    It is built in the folder `scratch`, on the same file system; what a killed process leaves there goes with gc.
    """
    with _built(target, scratch, base) as (temporary, connection):
        for name, table in rows.items():
            connection.from_arrow(table).insert_into(name)
        connection.execute(script)
        _close(connection)
        os.replace(temporary, target)


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("CHECKPOINT")  # closing does it, too, but says nothing when the disk is full
    connection.close()


@contextmanager
def _built(target: Path, scratch: Path, base: bytes = b"") -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    """A DuckDB file under a name of its own, open, gone at the end unless moved. Its errors become ours."""
    temporary = scratch / f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}"
    connection = None
    try:
        if base:
            temporary.write_bytes(base)
        connection = duckdb.connect(str(temporary), config={"storage_compatibility_version": CATALOG_READABLE_FROM})
        yield temporary, connection
    except (duckdb.Error, OSError) as error:
        raise UniqError(f"catalog {target} cannot be built: {error}") from None
    finally:
        if connection is not None:
            connection.close()
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
