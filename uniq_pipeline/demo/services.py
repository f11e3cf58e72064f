"""Dagster over a data folder: one code server, webserver and daemon. For the demo, and for whoever measures it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from uniq_pipeline.demo.processes import Processes, tail
from uniq_pipeline.errors import UniqError

START_S = 120.0
_PACKAGE = Path(__file__).parent


@contextmanager
def running_dagster(
    environment: Mapping[str, str], port: int, stop: threading.Event | None = None
) -> Iterator[Processes]:
    """Dagster in an environment of `environment_of`, its UI on a port of loopback; ends with the block.

    Is there once the UI answers, or once `stop` is set. Raises UniqError when a process ends early.
    """
    data_dir, home = Path(environment["UNIQ_DATA_DIR"]), Path(environment["DAGSTER_HOME"])
    _prepare_home(home, environment)
    processes = Processes(data_dir / "logs", environment)
    try:
        _start(processes, home, port)
        _wait_until_up(processes, port, stop or threading.Event())
        yield processes
    finally:
        processes.stop()


def environment_of(data_dir: Path, bootstrap_servers: str, topic: str) -> dict[str, str]:
    """The environment of this process with a data folder and a topic, for Dagster's processes."""
    data_dir = data_dir.absolute()
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(data_dir / "dagster"),
        "UNIQ_DATA_DIR": str(data_dir),
        "UNIQ_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "UNIQ_TOPIC": topic,
    }
    # Each tick is a new process: it must find its modules compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _prepare_home(home: Path, environment: Mapping[str, str]) -> None:
    """Makes Dagster's home and database, once and alone: two processes at an empty one corrupt it for good.

    Runs that died with the last start are ended there, too.
    """
    home.mkdir(parents=True, exist_ok=True)
    packaged = _PACKAGE / "dagster.yaml"
    shutil.copyfile(packaged if packaged.is_file() else _PACKAGE.parents[1] / "dagster.yaml", home / "dagster.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "assets.recover"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UniqError(f"Dagster's home {home} cannot be used:\n{done.stderr.strip()[-2000:]}")


def _start(processes: Processes, home: Path, port: int) -> None:
    """One code server for both webserver and daemon.

    Left to themselves each starts its own, and the daemon a new one every minute: twice the memory, and more CPU
    than the ticks take.
    """
    dagster = [sys.executable, "-m"]
    code_port = free_port()
    workspace = home / "workspace.yaml"
    workspace.write_text(
        f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: uniq-pipeline}}\n",
        encoding="utf-8",
    )
    processes.start(
        "code-server",
        [*dagster, "dagster", "api", "grpc", "-m", "assets.definitions", "-h", "127.0.0.1", "-p", str(code_port)],
    )
    processes.start(
        "webserver",
        [*dagster, "dagster_webserver", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)],
    )
    processes.start("daemon", [*dagster, "dagster._daemon", "run", "-w", str(workspace)])


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(processes: Processes, port: int, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_S
    while not stop.wait(0.25):
        raise_if_ended(processes)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise UniqError(f"the Dagster UI did not come up on port {port} within {START_S:g} s") from None


def raise_if_ended(processes: Processes) -> None:
    """Raises UniqError with the end of its log when a process has ended by itself."""
    child = processes.ended()
    if child is not None:
        raise UniqError(
            f"the {child.name} ended by itself (exit code {child.process.returncode}); "
            f"the end of {child.log}:\n{tail(child.log)}"
        )
