"""The demo: broker, traffic and Dagster as one thing that starts and stops together."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.feed import feed
from uniq_pipeline.demo.processes import Processes, tail
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.errors import InputError, UniqError
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink

START_S = 120.0
_PACKAGE = Path(__file__).parent


def run_demo(settings: Settings, *, port: int, frames_per_s: float, users: int, stop_after_s: float | None) -> None:
    """Runs until interrupted, or for `stop_after_s` seconds. Raises UniqError when a part of it ends early."""
    _require_free(port)
    data_dir = settings.data_dir.absolute()
    home = data_dir / "dagster"
    stop = threading.Event()
    with _signals(stop), _kafka(settings) as (bootstrap_servers, topic, is_embedded):
        environment = _environment(data_dir, home, bootstrap_servers, topic)
        if is_embedded:
            demo_settings = settings.model_copy(update={"kafka_bootstrap_servers": bootstrap_servers, "topic": topic})
            traffic = Traffic(_profile(frames_per_s, users))
            threading.Thread(target=_feed, args=(traffic, demo_settings, stop), name="traffic", daemon=True).start()
        print("starting Dagster ...", flush=True)
        _prepare_home(home, environment)
        processes = Processes(data_dir / "logs", environment)
        try:
            _start_dagster(processes, home, port)
            _wait_until_up(processes, port, stop)
            if not stop.is_set():
                _greet(port, data_dir, bootstrap_servers, topic, is_embedded, frames_per_s)
            _watch(processes, stop, stop_after_s)
        finally:
            print("\nstopping ...", flush=True)
            stop.set()
            processes.stop()


def _profile(frames_per_s: float, users: int) -> TrafficProfile:
    # Late within and beyond the two minutes, flipped and broken: each class shows up within a few minutes.
    return TrafficProfile(
        frames_per_s=frames_per_s,
        users=users,
        late_share=0.01,
        late_by_max_s=180,
        flip_share=0.002,
        bad_share=0.001,
    )


@contextmanager
def _kafka(settings: Settings) -> Iterator[tuple[str, str, bool]]:
    """Bootstrap servers and topic: the configured Kafka, or an embedded broker with a fresh topic."""
    if "kafka_bootstrap_servers" in settings.model_fields_set:
        yield settings.kafka_bootstrap_servers, settings.topic, False
        return
    broker = EmbeddedBroker()
    # The broker forgets everything when it ends, so offsets of an earlier topic would mean nothing to it.
    try:
        yield broker.bootstrap_servers, f"uniq.demo.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}", True
    finally:
        broker.close()


def _feed(traffic: Traffic, settings: Settings, stop: threading.Event) -> None:
    sink = KafkaSink(settings, settings.topic)
    # A minute is well within what the embedded broker keeps; a whole night at once would push itself out.
    steps = feed(traffic, sink, start_s=time.time(), clock=time.time, sleep=stop.wait, most_behind_s=60)
    for _sent in steps:
        if stop.is_set():
            return


def _environment(data_dir: Path, home: Path, bootstrap_servers: str, topic: str) -> dict[str, str]:
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "UNIQ_DATA_DIR": str(data_dir),
        "UNIQ_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "UNIQ_TOPIC": topic,
    }
    # Each tick is a new process: it must find its modules compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _prepare_home(home: Path, environment: dict[str, str]) -> None:
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


def _start_dagster(processes: Processes, home: Path, port: int) -> None:
    """One code server for both webserver and daemon.

    Left to themselves each starts its own, and the daemon a new one every minute: twice the memory, and more CPU
    than the ticks take.
    """
    dagster = [sys.executable, "-m"]
    code_port = _free_port()
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(processes: Processes, port: int, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_S
    while not stop.wait(0.25):
        _raise_if_ended(processes)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise UniqError(f"the Dagster UI did not come up on port {port} within {START_S:g} s") from None


def _watch(processes: Processes, stop: threading.Event, stop_after_s: float | None) -> None:
    deadline = None if stop_after_s is None else time.monotonic() + stop_after_s
    while not stop.wait(0.5):
        _raise_if_ended(processes)
        if deadline is not None and time.monotonic() > deadline:
            return


def _raise_if_ended(processes: Processes) -> None:
    child = processes.ended()
    if child is not None:
        raise UniqError(
            f"the {child.name} ended by itself (exit code {child.process.returncode}); "
            f"the end of {child.log}:\n{tail(child.log)}"
        )


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(
                f"port {port} is in use: another demo, or another program; choose one with --port, "
                f"`make run DEMO='--port 3001'`"
            ) from None


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the demo in order."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _greet(
    port: int, data_dir: Path, bootstrap_servers: str, topic: str, is_embedded: bool, frames_per_s: float
) -> None:
    traffic = f"{frames_per_s:g} demo frames/s" if is_embedded else "your own"
    command = "uniq-pipeline" if shutil.which("uniq-pipeline") else ".venv/bin/uniq-pipeline"
    if data_dir != Path("data").absolute():
        command = f"UNIQ_DATA_DIR={data_dir} {command}"
    print(
        f"""
  Dagster UI    http://127.0.0.1:{port}/asset-groups   (assets, runs, schedules; new counts every minute)
  Kafka         {bootstrap_servers}, topic {topic}, traffic: {traffic}
  Status        {command} status
  Counts        {command} query \\
                  "SELECT window_start, unique_users, status FROM minute_counts ORDER BY 1 DESC LIMIT 5"
  Data, logs    {data_dir}

  The first minute shows within two. Ctrl-C stops everything; ledger, lake and counts stay.
""",
        flush=True,
    )
