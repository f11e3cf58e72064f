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

from uniq_pipeline.config import ENV_PREFIX, Settings
from uniq_pipeline.kafka.embedded import EmbeddedBroker

_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that mounts a file system runs where it may."""
    return (pyfuncitem.get_closest_marker("mounts") and run_where_mounting_is_allowed(pyfuncitem)) or None


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    """A developer's own UNIQ_* variables must not change a test."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX) and not name.startswith("UNIQ_CRASH_"):
            del os.environ[name]


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """One broker for all tests; each takes topics of its own. It keeps at most 5 MiB a topic partition."""
    broker = EmbeddedBroker()
    yield broker
    broker.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder, in memory where there is such a file system.

    A kill loses nothing of the page cache, so waiting for a disk would prove nothing.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="uniq-test-", dir=memory if os.access(memory, os.W_OK) else None, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture
def make_settings(data_dir: Path) -> Callable[..., Settings]:
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
        return Settings(**{**values, **overrides})

    return make
