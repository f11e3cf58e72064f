"""Live traffic through the real stack: embedded broker, a producer that knows the truth, Dagster with its schedules."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dagster_ui import Api

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.services import environment_of, free_port, running_dagster
from uniq_pipeline.demo.traffic import Kind, Traffic, TrafficProfile
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink

# Frames of half a second are one batch: together they compress to what the embedded broker keeps of two minutes.
STEP_S = 0.5
TOPIC = "uniq.bench"


@dataclass
class Truth:
    """What was produced and acknowledged, by event time."""

    frames: int = 0
    bad: int = 0
    bytes: int = 0
    users: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Start of a minute -> uid -> frames."""
    steps: list[tuple[float, Counter[int]]] = field(default_factory=list)
    """When the broker had them all, seconds since 1970, and how many of each minute."""
    most_behind_s: float = 0.0

    def arrived_by(self, minute_s: int, at_s: float) -> int:
        """Frames of a minute that the broker had acknowledged by then."""
        return sum(step[minute_s] for acked_s, step in list(self.steps) if acked_s <= at_s)


class Producer(threading.Thread):
    """Sends traffic by the clock until told to stop."""

    def __init__(self, settings: Settings, profile: TrafficProfile) -> None:
        super().__init__(name="producer", daemon=True)
        self.truth = Truth()
        self.error: Exception | None = None
        self._traffic = Traffic(profile)
        self._sink = KafkaSink(settings, TOPIC)
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            sent_until = time.time()
            while not self._ended.wait(max(0.0, sent_until + STEP_S - time.time())):
                now = time.time()
                self._send(sent_until, now)
                sent_until = now
        except Exception as error:
            self.error = error

    def _send(self, start_s: float, end_s: float) -> None:
        records = self._traffic.records_between(start_s, end_s)
        self._sink.send_frames([record.payload for record in records])
        acked_s = time.time()
        truth, minutes = self.truth, Counter[int]()
        for record in records:
            truth.bytes += len(record.payload)
            if record.kind is Kind.BAD:
                truth.bad += 1
                continue
            minute_s = record.event_s - record.event_s % 60
            minutes[minute_s] += 1
            truth.users[minute_s][record.uid] += 1
        truth.frames += len(records)
        truth.most_behind_s = max(truth.most_behind_s, acked_s - end_s)
        truth.steps.append((acked_s, minutes))

    def stop(self) -> None:
        """Raises what sending failed with."""
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Live:
    """A running stack; the traffic has begun."""

    data_dir: Path
    bootstrap_servers: str
    api: Api
    producer: Producer

    def ledger(self, sql: str, *values: object) -> list[tuple]:
        """Asks the ledger beside the product; before its first run there is none, and nothing in it."""
        if not (self.data_dir / "ledger.db").exists():
            return []
        with closing(sqlite3.connect(f"file:{self.data_dir / 'ledger.db'}?mode=ro", uri=True, timeout=10)) as ledger:
            return ledger.execute(sql, values).fetchall()

    def delivered(self) -> int:
        """Records that drains have read, each once."""
        return sum(delivered for (delivered,) in self.ledger("SELECT delivered FROM batches"))


@contextmanager
def live_stack(
    data_dir: Path, profile: TrafficProfile, overrides: Mapping[str, str], bootstrap_servers: str | None = None
) -> Iterator[Live]:
    """`overrides`: further settings, as environment variables. The traffic begins once the stack is up.

    bootstrap_servers  of a Kafka that has the topics already; default: the embedded broker
    """
    broker = EmbeddedBroker() if bootstrap_servers is None else None
    bootstrap_servers = broker.bootstrap_servers if broker else bootstrap_servers
    try:
        settings = Settings(data_dir=data_dir, kafka_bootstrap_servers=bootstrap_servers, topic=TOPIC)
        environment = environment_of(data_dir, bootstrap_servers, TOPIC) | dict(overrides)
        port = free_port()
        producer = Producer(settings, profile)
        api = Api(f"http://127.0.0.1:{port}")
        with running_dagster(environment, port):
            api.repository()
            producer.start()
            try:
                yield Live(data_dir, bootstrap_servers, api, producer)
            finally:
                producer.stop()
    finally:
        if broker is not None:
            broker.close()
