"""Measures how soon a minute's count is there, with full-size frames arriving at the real stack. Linux only.

    python bench/freshness.py [--minutes 30] [--rate 1000] [--kafka] [--data-dir FOLDER]

Starts an embedded broker, or real Apache Kafka (needs Java 17 and Maven), a producer of frames of about 2 KB whose
ordinary delay is up to 5 s, and Dagster as the demo does, with its schedules on. For each minute it notes when its row
in `minute_counts` first holds every frame of that minute that the broker had acknowledged 5 s after the minute's end,
which the producer knows:

    ledger   the result file that the ledger names holds them
    catalog  `uniq.duckdb`, opened anew, shows them
    topic    a message that says so has reached a consumer of the results topic

The first two are looked at every 50 ms, and read when they have changed. Prints seconds from the minute's end: median,
95th percentile, worst; where they go; CPU seconds of a run, which are those the kernel adds to the code server when its
child has ended; CPU of the other processes a minute. The embedded broker forgets frames without saying so when it has
too many, so at the end the frames delivered must be those produced, and every minute must hold what was produced for
it.

Exits with 1 where a median is over 9 s, a worst over 20 s, a minute was never seen, or a frame is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb  # noqa: TID251 - reads the catalog as a person would, beside the product
import orjson
from confluent_kafka import Consumer  # noqa: TID251 - reads the results as anybody would
from live import TOPIC, Live, live_stack
from processes import children_cpu_s, cpu_s, role, tree

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the brokers of the tests

from support.kafka.cluster import running_cluster

from uniq_pipeline.demo.traffic import TrafficProfile

ARRIVAL_S = 5.0
MEDIAN_S, WORST_S = 9.0, 20.0
POLL_S = 0.05
GIVE_UP_S = 120.0
BETWEEN_S = 45.0  # after a minute's start, when its tick is over
START_S = 30.0  # the stack is up, the first run has loaded what later ones find in the page cache


@dataclass
class Seen:
    """When minutes were first whole, in seconds after their end."""

    ledger: dict[int, float] = field(default_factory=dict)
    catalog: dict[int, float] = field(default_factory=dict)
    topic: dict[int, float] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--kafka", action="store_true", help="real Apache Kafka, one broker on this machine")
    parser.add_argument("--data-dir", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    data_dir = options.data_dir or Path(tempfile.mkdtemp(prefix="uniq-freshness-"))
    profile = TrafficProfile(
        frames_per_s=options.rate,
        users=options.users,
        late_share=0,
        flip_share=0,
        bad_share=0,
        ordinary_delay_s=ARRIVAL_S,
    )
    try:
        with _kafka(data_dir) if options.kafka else nullcontext() as bootstrap_servers:
            with live_stack(data_dir, profile, {}, bootstrap_servers) as live:
                return _run(live, options.minutes)
    finally:
        if options.data_dir is None:
            shutil.rmtree(data_dir)


@contextmanager
def _kafka(data_dir: Path) -> Iterator[str]:
    with running_cluster(data_dir / "broker") as cluster:
        cluster.create_topic(TOPIC, 4)
        cluster.create_topic("uniq.counts", cleanup_policy="compact")
        yield cluster.bootstrap_servers


def _run(live: Live, minutes: int) -> int:
    # The first whole minute of traffic, once a tick has been.
    first_s = int(time.time() + START_S) // 60 * 60 + 60
    wanted = [first_s + 60 * number for number in range(minutes)]
    seen = Seen()
    watch = _Watch(live)
    reader = _Reader(live.bootstrap_servers)
    reader.start()
    # Between two ticks, so that each run that is counted is wholly counted.
    time.sleep(max(0.0, first_s + BETWEEN_S - time.time()))
    live.api.wait_until_idle(60)
    roles = {pid: role(pid) for pid in tree(os.getpid()) if role(pid) not in ("other", "run")}
    (code_server,) = (pid for pid, name in roles.items() if name == "code server")
    started, own, runs_cpu = time.time(), {pid: cpu_s(pid) for pid in roles}, children_cpu_s(code_server)
    while time.time() < wanted[-1] + 60 + GIVE_UP_S and len(seen.catalog) < minutes:
        watch.look(wanted, seen)
        time.sleep(POLL_S)
    for minute_s, at_s, frames in list(reader.messages):
        arrived_s = minute_s + 60 + ARRIVAL_S
        if at_s >= arrived_s and frames >= live.producer.truth.arrived_by(minute_s, arrived_s):
            seen.topic.setdefault(minute_s, at_s - (minute_s + 60))
    # The last run is to have ended, so that its CPU seconds are in.
    live.api.wait_until_idle(60)
    lasted = (time.time() - started) / 60
    runs_cpu = children_cpu_s(code_server) - runs_cpu
    own = {pid: cpu_s(pid) - before for pid, before in own.items()}
    live.producer.stop()
    runs = _runs(live, started)

    over = _spread("ledger", [seen.ledger.get(minute, float("nan")) for minute in wanted])
    over |= _spread("catalog", [seen.catalog.get(minute, float("nan")) for minute in wanted])
    over |= _spread("topic", [seen.topic.get(minute, float("nan")) for minute in wanted])
    _say_where(live, runs)
    print(f"CPU seconds a run: {runs_cpu / max(1, len(runs)):.2f} ({len(runs)} runs)")
    for pid, name in roles.items():
        print(f"CPU seconds a minute, {name}: {own[pid] / lasted:.2f}")
    return int(over | _lost(live))


class _Reader(threading.Thread):
    """Reads the results topic as it grows: (start of a minute, when its message was here, its frames)."""

    def __init__(self, bootstrap_servers: str) -> None:
        super().__init__(daemon=True)
        self.messages: list[tuple[int, float, int]] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "freshness",
                "auto.offset.reset": "earliest",
                "topic.metadata.refresh.interval.ms": 1000,  # the first result makes the topic
                "log_level": 0,
            }
        )
        self._consumer.subscribe(["uniq.counts"])

    def run(self) -> None:
        while True:
            message = self._consumer.poll(1)
            if message is None or message.error():
                continue
            now, value = time.time(), orjson.loads(message.value())
            if value["grain"] == "minute":
                start = datetime.fromisoformat(value["window_start"])
                self.messages.append((int(start.timestamp()), now, value["frames"]))


class _Watch:
    """Reads ledger and catalog when they have changed."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._catalog = live.data_dir / "uniq.duckdb"
        self._swapped = (0, 0)
        self._paths: list[tuple] = []

    def look(self, minutes: list[int], seen: Seen) -> None:
        """Notes the minutes that are whole by now; when a row is there is when it has been read."""
        self._look_at(minutes, seen.ledger, self._rows_of_ledger(minutes))
        self._look_at(minutes, seen.catalog, self._rows_of_catalog(minutes))

    def _look_at(self, minutes: list[int], noted: dict[int, float], rows: dict[int, int]) -> None:
        now = time.time()
        for minute_s in minutes:
            arrived_s = minute_s + 60 + ARRIVAL_S
            if minute_s not in noted and minute_s in rows and now >= arrived_s:
                if rows[minute_s] >= self._live.producer.truth.arrived_by(minute_s, arrived_s):
                    noted[minute_s] = now - (minute_s + 60)

    def _rows_of_catalog(self, minutes: list[int]) -> dict[int, int]:
        try:
            status = self._catalog.stat()
        except FileNotFoundError:
            return {}
        swapped = (status.st_ino, status.st_mtime_ns)
        if swapped == self._swapped or not minutes:
            return {}
        self._swapped = swapped
        with duckdb.connect(str(self._catalog), read_only=True, config={"threads": 1}) as shell:
            return dict(
                shell.execute(
                    "SELECT epoch(window_start)::BIGINT, frames FROM minute_counts "
                    "WHERE window_start >= to_timestamp($first) AND window_start <= to_timestamp($last)",
                    {"first": minutes[0], "last": minutes[-1]},
                ).fetchall()
            )

    def _rows_of_ledger(self, minutes: list[int]) -> dict[int, int]:
        if not minutes:
            return {}
        paths = self._live.ledger(
            "SELECT path FROM buckets WHERE grain = 'minute' AND bucket_start_s > ? AND bucket_start_s <= ?",
            minutes[0] - 3600,
            minutes[-1],
        )
        if paths == self._paths:
            return {}
        self._paths = paths
        return dict(
            duckdb.sql(
                "SELECT epoch(window_start)::BIGINT, frames FROM read_parquet($paths)",
                params={"paths": [str(self._live.data_dir / "lake" / path) for (path,) in paths]},
            ).fetchall()
        )


def _spread(what: str, seconds: list[float]) -> bool:
    """Prints it; whether it is over the limits."""
    found = sorted(one for one in seconds if one == one)
    if len(found) < len(seconds):
        print(f"{what}: {len(seconds) - len(found)} minutes were never whole")
    if not found:
        return True
    late = found[min(len(found) - 1, int(0.95 * len(found)))]
    median, worst = statistics.median(found), found[-1]
    print(
        f"seconds from a minute's end to its count in the {what}: median {median:.1f}, 95th percentile {late:.1f}, "
        f"worst {worst:.1f}, best {found[0]:.1f} ({len(found)} minutes)"
    )
    return len(found) < len(seconds) or median > MEDIAN_S or worst > WORST_S


def _runs(live: Live, since_s: float) -> list[dict]:
    found = live.api.ask(
        "query($since: Float!) { runsOrError(filter: {createdAfter: $since}) { ... on Runs { results { "
        "id jobName status creationTime startTime endTime } } } }",
        since=since_s,
    )
    return found["runsOrError"]["results"]


def _say_where(live: Live, runs: list[dict]) -> None:
    """Where the seconds of ticks go, as medians."""
    ticks = [run for run in runs if run["jobName"] == "tick" and run["endTime"]]
    print(f"runs: {', '.join(sorted({run['jobName'] + ' ' + run['status'] for run in runs}))}")
    print("ticks, median seconds after the minute:", end="")
    for name in ("creationTime", "startTime", "endTime"):
        print(f" {name} {statistics.median(run[name] % 60 for run in ticks):.2f}", end="")
    events = live.api.ask(
        'query($limit: Int!) { assetNodeOrError(assetKey: {path: ["frames"]}) { ... on AssetNode { '
        "assetMaterializations(limit: $limit) { metadataEntries { "
        "label ... on FloatMetadataEntry { floatValue } } } } } }",
        limit=len(ticks),
    )["assetNodeOrError"]["assetMaterializations"]
    stages: dict[str, list[float]] = {}
    for event in events:
        for entry in event["metadataEntries"]:
            if entry["label"].startswith("seconds_") and entry.get("floatValue") is not None:
                stages.setdefault(entry["label"].removeprefix("seconds_"), []).append(entry["floatValue"])
    print("\nof a tick, median seconds:", ", ".join(f"{name} {statistics.median(s):.2f}" for name, s in stages.items()))


def _lost(live: Live) -> bool:
    """Whether anything produced is not there, once a last tick has been."""
    truth = live.producer.truth
    deadline = time.time() + GIVE_UP_S
    while live.delivered() < truth.frames and time.time() < deadline:
        time.sleep(1)
    live.api.wait_until_idle(60)
    with duckdb.connect(str(live.data_dir / "uniq.duckdb"), read_only=True) as shell:
        rows = dict(shell.execute("SELECT epoch(window_start)::BIGINT, frames FROM minute_counts").fetchall())
    produced = {minute_s: users.total() for minute_s, users in truth.users.items()}
    wrong = {minute_s for minute_s in produced | rows if produced.get(minute_s) != rows.get(minute_s)}
    print(
        f"produced {truth.frames:,} frames, {truth.bytes / 1e6:,.0f} MB; delivered {live.delivered():,}; "
        f"{len(wrong)} of {len(produced)} minutes differ; the producer was at most {truth.most_behind_s:.2f} s behind"
    )
    return bool(wrong) or live.delivered() != truth.frames


if __name__ == "__main__":
    sys.exit(main())
