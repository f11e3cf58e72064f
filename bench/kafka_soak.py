"""Real Apache Kafka, three brokers, and everything is killed at random: do the counts equal the truth? Linux only.

    python bench/kafka_soak.py [--minutes 30] [--rate 300] [--seed 1] [--data-dir FOLDER]

Needs Java 17 and Maven, which fetches Kafka once. Traffic of small frames, some late, flipped or broken, goes to a
topic of three replicas by an idempotent producer that remembers every place the brokers acknowledged. Meanwhile

    runs      `uniq-pipeline drain` (drain, count, publish) and `close`, up to two at a time; 40% get SIGKILL
    brokers   one at a time gets SIGKILL or SIGTERM, and is started again a few seconds later

At the end one clean run does what is left, and the audit of the tests counts everything again: each record in exactly
one place, offsets without gap or overlap, every window of all six grains, exact users and HLL registers, and that a
reader of the results topic who keeps the highest revision of each key has exactly what is stored.

Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the cluster and the audit of the tests

from support.audit import audit
from support.frames import SHARES, Delivered, Sent, with_decoy
from support.kafka.cluster import Cluster, running_cluster
from support.kafka.traffic import new_producer
from support.ticks import run_tick

from uniq_pipeline.config import ENV_PREFIX, Settings
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile

RESTART_AFTER_S = (2.0, 12.0)
BETWEEN_BROKERS_S = (10.0, 40.0)
BETWEEN_RUNS_S = (0.0, 5.0)
KILL_AFTER_S = (0.2, 6.0)
KILLED_SHARE = 0.4


@dataclass
class Happened:
    """What was done to whom."""

    runs: Counter[str] = field(default_factory=Counter)
    brokers: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class Producing(threading.Thread):
    """Sends traffic by the clock; knows the place of everything that was acknowledged."""

    def __init__(self, cluster: Cluster, topic: str, profile: TrafficProfile) -> None:
        super().__init__(daemon=True)
        # Long enough to outlive every broker's absence: of what times out nobody knows whether it is there.
        self._producer = new_producer(cluster, enable_idempotence=True, message_timeout_ms=600_000)
        self._topic, self._traffic, self._rng = topic, Traffic(profile), Random(profile.seed)
        self._ended = threading.Event()
        self.delivered: Delivered = {}
        self.errors: list[str] = []

    def run(self) -> None:
        sent_until = time.time()
        while not self._ended.wait(max(0.0, sent_until + 0.5 - time.time())):
            now = time.time()
            for record in self._traffic.records_between(sent_until, now):
                self._send(Sent(int(record.arrival_s * 1000), record, with_decoy(record, self._rng)))
            self._producer.poll(0)
            sent_until = now
        if self._producer.flush(300):
            self.errors.append("not everything was acknowledged in the end")

    def _send(self, sent: Sent) -> None:
        def on_delivery(error: Any, message: Any) -> None:
            if error is not None:
                self.errors.append(str(error))
            else:
                self.delivered[message.partition(), message.offset()] = sent

        kafka_partition = self._rng.choices(range(len(SHARES)), SHARES)[0]
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    sent.payload,
                    partition=kafka_partition,
                    timestamp=sent.kafka_time_ms,
                    on_delivery=on_delivery,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def end(self) -> None:
        self._ended.set()
        self.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=300, help="frames a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    folder = options.data_dir or Path(tempfile.mkdtemp(prefix="uniq-kafka-soak-"))
    try:
        with running_cluster(folder / "brokers", 3) as cluster:
            return _soak(cluster, folder, options)
    finally:
        if options.data_dir is None:
            shutil.rmtree(folder)


def _soak(cluster: Cluster, folder: Path, options: argparse.Namespace) -> int:
    settings = Settings(
        data_dir=folder / "data",
        topic="uniq.frames",
        results_topic="uniq.counts",
        kafka_bootstrap_servers=cluster.bootstrap_servers,
        kafka_timeout_s=8,
        batch_frames=2_000,
        lg_k=10,
    )
    safe = {"replicas": 3, "min_insync_replicas": 2}
    cluster.create_topic(settings.topic, len(SHARES), **safe)
    cluster.create_topic(str(settings.results_topic), 1, cleanup_policy="compact", segment_ms=60_000, **safe)
    profile = TrafficProfile(
        frames_per_s=options.rate,
        users=20_000,
        late_share=0.02,
        flip_share=0.005,
        bad_share=0.005,
        small=True,
        seed=options.seed,
    )
    happened, over = Happened(), threading.Event()
    producing = Producing(cluster, settings.topic, profile)
    chaos = [
        threading.Thread(target=_noting(happened, over, do), daemon=True)
        for do in (
            lambda: _break_brokers(cluster, settings, happened, over, Random(options.seed + 1)),
            lambda: _keep_running(settings, folder, happened, over, Random(options.seed + 2)),
            lambda: _keep_running(settings, folder, happened, over, Random(options.seed + 3)),
        )
    ]
    started = time.time()
    producing.start()
    for thread in chaos:
        thread.start()
    try:
        while not over.wait(60) and time.time() < started + 60 * options.minutes:
            _say(started, producing, happened)
    except KeyboardInterrupt:
        print("ending early", flush=True)
    over.set()
    for thread in chaos:
        thread.join()
    producing.end()
    lasted = time.time() - started
    print("one clean run, then the audit", flush=True)
    _wait_until_whole(cluster, settings)
    report = _clean_run(settings)
    problems = [*happened.failed, *producing.errors]
    problems += [str(error) for error in (report.drain_error, report.publish_error) if error]
    problems += audit(settings, producing.delivered)
    print(f"{lasted / 60:.1f} min, {len(producing.delivered):,} records acknowledged")
    print(f"runs: {_said(happened.runs)}; brokers: {_said(happened.brokers)}")
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    print("everything equals the truth" if not problems else f"{len(problems)} problems")
    return int(bool(problems))


def _clean_run(settings: Settings) -> Any:
    """What is left; tried again, as a scheduler would, when the brokers have only just found each other."""
    for _ in range(5):
        report = run_tick(settings, close_windows=True)
        problem = report.drain_error or report.publish_error
        if problem is None:
            break
        print(f"once more: {problem}", flush=True)
    return report


def _noting(happened: Happened, over: threading.Event, do: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            do()
        except Exception as error:
            happened.failed.append(f"the soak itself: {error!r}")
            over.set()

    return run


def _break_brokers(
    cluster: Cluster, settings: Settings, happened: Happened, over: threading.Event, rng: Random
) -> None:
    while not over.wait(rng.uniform(*BETWEEN_BROKERS_S)):
        # With two brokers gone nobody promises anything.
        _wait_until_whole(cluster, settings)
        node = rng.choice(list(cluster.nodes))
        if rng.random() < 0.7:
            cluster.kill(node)
            happened.brokers["killed"] += 1
        else:
            cluster.stop(node)
            happened.brokers["stopped"] += 1
        time.sleep(rng.uniform(*RESTART_AFTER_S))
        cluster.start(node)


def _wait_until_whole(cluster: Cluster, settings: Settings) -> None:
    cluster.wait_for(lambda: all(len(cluster.in_sync(settings.topic, p)) == 3 for p in range(len(SHARES))), 120)


def _keep_running(settings: Settings, folder: Path, happened: Happened, over: threading.Event, rng: Random) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for name, value in settings.model_dump(mode="json", exclude_unset=True).items():
        environment[f"{ENV_PREFIX}{name.upper()}"] = str(value)
    log = folder / "failed-runs.txt"
    while not over.is_set():
        command = "close" if rng.random() < 0.2 else "drain"
        program = [str(Path(sys.executable).with_name("uniq-pipeline")), command, "--json"]
        run = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        doomed = rng.random() < KILLED_SHARE
        try:
            _, said = run.communicate(timeout=rng.uniform(*KILL_AFTER_S) if doomed else 300)
        except subprocess.TimeoutExpired:
            run.kill()
            _, said = run.communicate()
        # 3: Kafka did not answer; 7: another run was first. Both are what a scheduler tries again.
        if run.returncode in (0, 3, 7, -signal.SIGKILL):
            happened.runs[f"{command} {_ended(run.returncode)}"] += 1
        else:
            happened.failed.append(f"{command} ended with {run.returncode}: {said.strip()[-500:]}")
        if run.returncode == 3:
            with open(log, "a", encoding="utf-8") as file:
                file.write(said)
        over.wait(rng.uniform(*BETWEEN_RUNS_S))


def _ended(code: int) -> str:
    return {0: "done", 3: "without a broker", 7: "lost the race"}.get(code, "killed")


def _say(started: float, producing: Producing, happened: Happened) -> None:
    minutes = (time.time() - started) / 60
    print(
        f"{minutes:5.1f} min: {len(producing.delivered):,} records; runs: {_said(happened.runs)}; "
        f"brokers: {_said(happened.brokers)}",
        flush=True,
    )


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
