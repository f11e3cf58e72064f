"""Opening the ledger's database, and its read and write transactions."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Table,
    cast,
    create_engine,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from uniq_pipeline.errors import LedgerError, SettingError
from uniq_pipeline.ledger import schema

# SQLite allows 32,766 bound values a statement; executemany avoids that, IN lists do not.
IN_LIST = 900

BUSY_TIMEOUT_S = 30

# On Postgres: a process that was stopped in the middle of a transaction, or whose host is gone, lets others go on.
_SESSION = {
    "application_name": "'uniq-pipeline'",
    "lock_timeout": f"'{BUSY_TIMEOUT_S}s'",
    "idle_in_transaction_session_timeout": "'300s'",
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}

# The advisory lock of Postgres that a write transaction holds: any number that others in the database do not use.
_WRITE_LOCK = 0x756E6971  # "uniq"

# A commit of a batch takes about 0.1 MB of SQLite's journal, and the journal grows to 4 MB before it is emptied.
_LITTLE_SPACE_BYTES = 4 << 20


class Ledger:
    """The ledger behind one URL.

    `failpoint(name)` is called where a crash would matter (tests kill there); `now` is the wall clock.
    read_only  makes nothing, changes nothing and keeps no connection, so that another database in its place is seen
    """

    def __init__(
        self,
        url: str,
        *,
        now: Callable[[], float] = time.time,
        failpoint: Callable[[str], None] = lambda name: None,
        read_only: bool = False,
        timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        self.now = now
        self._timeout_s = timeout_s
        self.failpoint = failpoint
        try:
            self._url = make_url(url)
            self.engine = self._make_reading_engine() if read_only else self._make_engine()
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            # Neither the URL is shown nor what is said of it: it may hold a password, and a password that is not
            # percent-encoded is taken for a host or a port.
            raise SettingError(
                f"setting UNIQ_LEDGER_URL: {type(error).__name__}; an SQLAlchemy URL of an installed driver is "
                f"needed, such as sqlite:////var/lib/uniq/ledger.db or postgresql+psycopg2://user@host/uniq"
            ) from None

    @property
    def shown_url(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def password(self) -> str:
        return self._url.password or ""

    @property
    def is_absent(self) -> bool:
        """Whether the database is a file that does not exist; connecting would make it."""
        is_file = self._url.get_backend_name() == "sqlite" and self._url.database not in (None, "", ":memory:")
        return is_file and not Path(self._url.database or "").exists()

    @property
    def lack_of_space(self) -> str:
        """What to say when the disk of the ledger's file is full, else nothing: SQLite says "disk I/O error", too."""
        if self._url.get_backend_name() != "sqlite" or not self._url.database:
            return ""
        folder = Path(self._url.database).parent
        try:
            disk = os.statvfs(folder)
        except OSError:
            return ""
        # A file system without a fixed number of inodes says it has none at all.
        if disk.f_bavail * disk.f_frsize >= _LITTLE_SPACE_BYTES and (disk.f_favail or not disk.f_files):
            return ""
        return f" (No space left on device: {folder}); free some, and the next run goes on from what was committed"

    def _make_engine(self) -> Engine:
        if self._url.get_backend_name() != "sqlite":
            engine = create_engine(self._url, isolation_level="READ COMMITTED")
            if engine.dialect.name == "postgresql":
                event.listen(engine, "connect", _set_up_session)
            return engine
        engine = create_engine(self._url, connect_args={"timeout": self._timeout_s})

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves; the driver's own rules are lax
            cursor = connection.cursor()
            _switch_to_wal(cursor)
            cursor.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut
            cursor.close()

        return engine

    def _make_reading_engine(self) -> Engine:
        if self._url.get_backend_name() != "sqlite":
            arguments = {}
            if self._url.get_driver_name().startswith("psycopg"):
                patience_ms = round(1000 * self._timeout_s)
                arguments = {
                    "connect_timeout": max(2, round(self._timeout_s)),  # libpq allows no less
                    "options": f"-c statement_timeout={patience_ms} -c default_transaction_read_only=on",
                }
            return create_engine(
                self._url, isolation_level="REPEATABLE READ", poolclass=NullPool, connect_args=arguments
            )
        path = quote(str(Path(self._url.database or "").absolute()))
        url = self._url.set(database=f"file:{path}", query={"mode": "ro", "uri": "true"})
        engine = create_engine(url, connect_args={"timeout": self._timeout_s}, poolclass=NullPool)

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None

        return engine

    def prepare(self, **must_match: str) -> None:
        """Creates the tables where they are missing and checks the facts the data was written under.

        Raises SettingError when a setting differs from the one this ledger was made with.
        """
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            try:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(f"ledger {self.shown_url}: {error.strerror}; see UNIQ_LEDGER_URL") from None
        with self.writing() as connection:
            schema.metadata.create_all(connection)
            facts = {"schema": schema.SCHEMA_VERSION, **must_match}
            known = dict(connection.execute(select(schema.meta.c.key, schema.meta.c.value)).all())
            for key, value in facts.items():
                if key not in known:
                    connection.execute(schema.meta.insert().values(key=key, value=value))
                elif known[key] != value:
                    raise SettingError(
                        f"ledger {self.shown_url} was made with {key}={known[key]}, not {value}: windows already "
                        f"stored would not agree. Set it back, or use another UNIQ_DATA_DIR."
                    )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One snapshot for all reads in the block."""
        with _named_errors(self), self.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            elif connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
            connection.rollback()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One write transaction: committed at the end of the block, rolled back on any error.

        There is one at a time, as SQLite has it: what a transaction has read stays so until its end.
        """
        with _named_errors(self), self.engine.connect() as connection:
            try:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # wait for the lock now, not at the commit
                elif connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
                yield connection
                self.failpoint("ledger.before_commit")
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
        self.failpoint("ledger.after_commit")

    def close(self) -> None:
        self.engine.dispose()


def _set_up_session(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("; ".join(f"SET {name} = {value}" for name, value in _SESSION.items()))
    cursor.close()
    connection.commit()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Sets the journal mode. Where two open a new ledger at once SQLite refuses one of them without waiting."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.01)


@contextmanager
def _named_errors(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip()
        password = ledger.password
        if password:
            cause = cause.replace(password, "***")
        raise LedgerError(f"ledger {ledger.shown_url}: {cause}{ledger.lack_of_space}") from error


def sum_of(column: ColumnElement) -> ColumnElement[int]:
    """The sum of integers, 0 of none: an int everywhere, where Postgres makes a decimal of it."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


def next_sequence(connection: Connection, name: str) -> int:
    """A number larger than any given out before, taken within the transaction."""
    table = schema.sequences
    changed = connection.execute(update(table).where(table.c.name == name).values(value=table.c.value + 1))
    if changed.rowcount == 0:
        connection.execute(table.insert().values(name=name, value=1))
    return connection.execute(select(table.c.value).where(table.c.name == name)).scalar_one()


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    *,
    add: Collection[str] = (),
    keep: Collection[str] = (),
) -> None:
    """Inserts rows; where the primary key exists, replaces the other columns, adds to `add`, leaves `keep`."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    changed = {
        name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
        for name in rows[0]
        if name not in keys and name not in keep
    }
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), list(rows))


def add_missing(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts the rows whose primary key does not exist yet."""
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        keys = [column.name for column in table.primary_key]
        connection.execute(dialect.insert(table).on_conflict_do_nothing(index_elements=keys), list(rows))


def get_meta(connection: Connection, key: str) -> str | None:
    return connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar_one_or_none()


def set_meta(connection: Connection, key: str, value: str) -> None:
    upsert(connection, schema.meta, [{"key": key, "value": value}])


def count_rows(connection: Connection, table: Table, *where: Any) -> int:
    return connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()


def in_chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), IN_LIST):
        yield values[start : start + IN_LIST]
