"""The demo: broker, traffic and Dagster as one thing that starts and stops together."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.feed import feed
from uniq_pipeline.demo.processes import Processes
from uniq_pipeline.demo.services import environment_of, raise_if_ended, running_dagster
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.errors import InputError
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink


def run_demo(settings: Settings, *, port: int, frames_per_s: float, users: int, stop_after_s: float | None) -> None:
    """Runs until interrupted, or for `stop_after_s` seconds. Raises UniqError when a part of it ends early."""
    _require_free(port)
    stop = threading.Event()
    with _signals(stop), _kafka(settings) as (bootstrap_servers, topic, is_embedded):
        environment = environment_of(settings.data_dir, bootstrap_servers, topic)
        if is_embedded:
            demo_settings = settings.model_copy(update={"kafka_bootstrap_servers": bootstrap_servers, "topic": topic})
            traffic = Traffic(_profile(frames_per_s, users))
            threading.Thread(target=_feed, args=(traffic, demo_settings, stop), name="traffic", daemon=True).start()
        print("starting Dagster ...", flush=True)
        with running_dagster(environment, port, stop) as processes:
            try:
                if not stop.is_set():
                    data_dir = settings.data_dir.absolute()
                    _greet(port, data_dir, bootstrap_servers, topic, is_embedded, frames_per_s)
                _watch(processes, stop, stop_after_s)
            finally:
                print("\nstopping ...", flush=True)
                stop.set()


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


def _watch(processes: Processes, stop: threading.Event, stop_after_s: float | None) -> None:
    deadline = None if stop_after_s is None else time.monotonic() + stop_after_s
    while not stop.wait(0.5):
        raise_if_ended(processes)
        if deadline is not None and time.monotonic() > deadline:
            return


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
