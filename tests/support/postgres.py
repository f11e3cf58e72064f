"""A Postgres server of our own on loopback, in a temporary folder: never a system service, never as root.

python -m support.postgres          in tests/: prints where its programs are, or that they are missing
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0


class PostgresUnavailable(Exception):
    """There is no Postgres server to start here."""


@dataclass(frozen=True)
class Postgres:
    """A server that runs. `service_file` holds the password, as libpq reads it: services `admin` and one a database."""

    port: int
    folder: Path
    password: str

    @property
    def service_file(self) -> Path:
        return self.folder / "pg_service.conf"

    def url(self, database: str) -> str:
        """An SQLAlchemy URL of an empty database, made for it; no password in it."""
        self.sql(f'CREATE DATABASE "{database}"')
        with self.service_file.open("a") as file:
            file.write(_service(database, self.port, database, self.password))
        return f"postgresql+psycopg2:///?service={database}"

    def sql(self, statement: str, database: str = "postgres") -> list[str]:
        """What psql prints, a line each."""
        done = subprocess.run(
            [_bin() / "psql", f"service=admin dbname={database}", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement],
            env={**os.environ, "PGSERVICEFILE": str(self.service_file)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Raises PostgresUnavailable where there is none to start."""
    programs = _bin()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="uniq-test-pg-", dir=memory if os.access(memory, os.W_OK) else None
    ) as name:
        folder = Path(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = Postgres(port, folder, secrets.token_urlsafe(24))
        user = _somebody_else() if os.geteuid() == 0 else None
        (folder / "password").write_text(server.password)
        server.service_file.write_text(_service("admin", port, "postgres", server.password))
        if user is not None:
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "uniq", "--pwfile", folder / "password", "-N"]
        done = subprocess.run([*initdb, "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C"],
                              capture_output=True, text=True, cwd=folder, check=False, **as_user)  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"initdb: {done.stdout}{done.stderr}")
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", ""),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                **as_user,
            )
        try:
            _wait_until_serving(server, process)
            yield server
        finally:
            process.terminate()  # no new connections; those that are left end with SIGINT
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.send_signal(2)
                process.wait(20)


def _wait_until_serving(server: Postgres, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            assert server.sql("SELECT 1") == ["1"]
            return
        except AssertionError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres does not serve:\n{(server.folder / 'log').read_text()}") from None
            time.sleep(0.1)


def _service(name: str, port: int, database: str, password: str) -> str:
    return f"[{name}]\nhost=127.0.0.1\nport={port}\ndbname={database}\nuser=uniq\npassword={password}\n"


def _somebody_else() -> pwd.struct_passwd:
    """Postgres refuses to run as root."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _bin() -> Path:
    """The folder of initdb, postgres and psql; the newest of several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which("initdb")
    if path is None:
        raise PostgresUnavailable("no Postgres server (Debian: the package postgresql)")
    return Path(path).parent


if __name__ == "__main__":
    try:
        print(_bin())
    except PostgresUnavailable as why:
        print(why)
        sys.exit(1)
