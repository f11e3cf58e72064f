"""Shared fixtures: settings in a folder of their own, an embedded broker. Helpers are in `support`."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.disks import run_where_mounting_is_allowed
from support.kafka.cluster import Cluster, running_cluster
from support.postgres import Postgres, running_postgres

from uniq_pipeline.config import ENV_PREFIX, Settings
from uniq_pipeline.kafka.embedded import EmbeddedBroker

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", choices=["sqlite", "postgres"], default="sqlite", help="where tests have the ledger")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that mounts a file system runs where it may."""
    return (pyfuncitem.get_closest_marker("mounts") and run_where_mounting_is_allowed(pyfuncitem)) or None


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    """A developer's own UNIQ_* variables must not change a test."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            del os.environ[name]


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """One broker for all tests; each takes topics of its own. It keeps at most 5 MiB a topic partition."""
    broker = EmbeddedBroker()
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server for all tests of a worker; each takes databases of its own. libpq knows its services."""
    with running_postgres() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSERVICEFILE", str(server.service_file))
        yield server


@pytest.fixture(scope="session", autouse=True)
def _ledger_server(request: pytest.FixtureRequest) -> None:
    """Before any process that will need it is forked."""
    if request.config.getoption("--ledger") == "postgres":
        request.getfixturevalue("postgres")


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest, data_dir: Path) -> str:
    """A ledger that does not exist yet: on SQLite, or with --ledger=postgres there."""
    if request.config.getoption("--ledger") == "postgres":
        return request.getfixturevalue("postgres").url(f"ledger{next(_numbers)}")
    return f"sqlite:///{data_dir}/ledger.db"


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """One broker of real Apache Kafka for all tests of a worker; each takes topics of its own."""
    with tempfile.TemporaryDirectory(prefix="uniq-test-kafka-", dir=in_memory()) as folder:
        with running_cluster(Path(folder)) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def three_brokers() -> Iterator[Cluster]:
    """Real Apache Kafka: a cluster of three brokers, all of them running whenever a test begins and ends."""
    with tempfile.TemporaryDirectory(prefix="uniq-test-kafka-", dir=in_memory()) as folder:
        with running_cluster(Path(folder), 3) as cluster:
            yield cluster


def in_memory() -> Path | None:
    """A folder in memory where there is such a file system: a kill loses nothing of the page cache."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder, in memory where there is such a file system: waiting for a disk would prove nothing."""
    with tempfile.TemporaryDirectory(prefix="uniq-test-", dir=in_memory(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def make_settings(data_dir: Path, ledger_url: str) -> Callable[..., Settings]:
    """Settings with a fresh topic and a folder of their own; small sketches and one thread, to be quick.

    Results are published only where the test names a results topic.
    """

    def make(**overrides: Any) -> Settings:
        number = next(_numbers)
        values: dict[str, Any] = {
            "data_dir": data_dir,
            "topic": f"frames-{number}",
            "results_topic": None,
            "lg_k": 8,
            "duckdb_threads": 1,
            "kafka_bootstrap_servers": "localhost:1",
        }
        if not ledger_url.startswith("sqlite"):
            values["ledger_url"] = ledger_url
        return Settings(**{**values, **overrides})

    return make
