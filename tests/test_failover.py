"""FAULTS 12 and 14 on real Apache Kafka, three brokers: leaders die while frames are produced and drained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec
from support.audit import read_topic
from support.kafka.traffic import MINUTE_S, frames_of, new_producer, produce
from support.ticks import run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, OffsetsLost
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.warehouse import ask_catalog

pytestmark = pytest.mark.kafka

PARTITIONS = 3
SAFE = {"replicas": 3, "min_insync_replicas": 2}


@pytest.fixture
def on_three(three_brokers, make_settings):
    def make(**overrides: Any) -> Settings:
        servers = three_brokers.bootstrap_servers
        return make_settings(kafka_bootstrap_servers=servers, kafka_timeout_s=5, **overrides)

    return make


def asked(settings: Settings, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in ask_catalog(settings.catalog_path, sql).to_pylist()]


class Steady(threading.Thread):
    """Produces small bursts of frames until told to stop; idempotent, so its own retries double nothing."""

    def __init__(self, producer: Producer, topic: str, minutes: int = 3) -> None:
        super().__init__(daemon=True)
        self._producer, self._topic, self._minutes = producer, topic, minutes
        self._ended = threading.Event()
        self.acknowledged: dict[tuple[int, int], tuple[int, str]] = {}  # place -> (minute, uid)
        self.errors: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._ended.wait(0.02):
            for _ in range(50):
                minute_s = MINUTE_S + 60 * (number % self._minutes)
                self._send(minute_s, f"u{number * 7919 % 5000}")
                number += 1
            self._producer.poll(0)
        self._producer.flush(60)

    def _send(self, minute_s: int, uid: str) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self.errors.append(str(error))
            else:
                self.acknowledged[message.partition(), message.offset()] = (minute_s, uid)

        value = b'{"filler": "%s", "ts": %d, "uid": "%s"}' % (b"x" * 500, minute_s, uid.encode())
        self._producer.produce(self._topic, value, on_delivery=delivered)

    def end(self) -> None:
        self._ended.set()
        self.join(90)
        assert not self.is_alive() and self.errors == []


@contextmanager
def beside(do: Callable[[], object]) -> Iterator[None]:
    """Does something in a thread while the block runs; what it raises is raised at the end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(120)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def test_12_a_leader_that_dies_during_a_sustained_drain_loses_nothing_and_doubles_nothing(three_brokers, on_three):
    settings = on_three(batch_frames=500, results_topic="counts-12", very_late="correct", max_future_skew_s=600)
    three_brokers.create_topic(settings.topic, PARTITIONS, **SAFE)
    three_brokers.create_topic(settings.results_topic, 1, cleanup_policy="compact", **SAFE)
    steady = Steady(new_producer(three_brokers, enable_idempotence=True), settings.topic)
    done = threading.Event()

    def chaos() -> None:
        try:
            time.sleep(2)
            leader = three_brokers.leader_of(settings.topic)
            three_brokers.kill(leader)
            three_brokers.wait_for(lambda: three_brokers.leader_of(settings.topic) not in (leader, -1))
            time.sleep(1)
            three_brokers.start(leader)
            three_brokers.wait_for(lambda: len(three_brokers.in_sync(settings.topic)) == 3, 60)
        finally:
            done.set()

    steady.start()
    while_killing, errors = 0, []
    with beside(chaos):
        while not done.is_set():
            report = run_tick(settings)
            while_killing += report.drain.delivered if report.drain else 0
            errors += [error for error in (report.drain_error, report.publish_error) if error]
    steady.end()
    report = run_tick(settings)
    assert report.drain_error is None and report.publish_error is None
    assert while_killing > 1000
    assert all(isinstance(error, (BrokerError, str)) for error in errors), errors  # retried, never "lost"

    stored = asked(settings, "SELECT kafka_partition, kafka_offset, epoch(event_time)::BIGINT, uid FROM frames")
    assert len(stored) == len(steady.acknowledged)
    assert {(p, offset): (event_s, uid) for p, offset, event_s, uid in stored} == steady.acknowledged
    users: dict[int, set[str]] = {}
    for minute_s, uid in steady.acknowledged.values():
        users.setdefault(minute_s, set()).add(uid)
    counts = asked(settings, "SELECT epoch(window_start)::BIGINT, unique_users, revision FROM minute_counts ORDER BY 1")
    assert [(minute_s, count) for minute_s, count, _ in counts] == [(m, len(users[m])) for m in sorted(users)]
    newest: dict[str, dict] = {}
    for key, value in read_topic(three_brokers.bootstrap_servers, settings.results_topic):
        message = orjson.loads(value)
        if key not in newest or message["revision"] >= newest[key]["revision"]:
            newest[key] = message
    published = [(m["unique_users"], m["revision"]) for key, m in sorted(newest.items()) if key.startswith("minute/")]
    assert published == [(count, revision) for _, count, revision in counts]


def test_12_a_leader_that_tells_no_offset_is_asked_again_and_not_taken_for_a_truncated_log(on_three):
    settings = on_three()

    class Told:
        offset = -1001  # what librdkafka makes of it, without an error

        def result(self, timeout: float) -> Told:
            return self

    source = KafkaSource(settings)
    admin = SimpleNamespace(list_offsets=lambda asked, **options: {partition: Told() for partition in asked})
    with pytest.raises(BrokerError, match=r"told no offsets of topic partitions \[0, 2\]"):
        source._offsets(admin, [TopicPartition(settings.topic, p) for p in (2, 0)], OffsetSpec.latest())


def test_14_a_log_that_an_unclean_election_truncated_is_an_error_that_says_so(three_brokers, on_three):
    settings = on_three()
    first, second = 1, 2
    three_brokers.create_topic(
        settings.topic, on=[first, second], min_insync_replicas=1, unclean_leader_election_enable="true"
    )
    produce(three_brokers, settings.topic, frames_of(range(100)))
    three_brokers.kill(second)
    three_brokers.wait_for(lambda: three_brokers.in_sync(settings.topic) == {first})
    produce(three_brokers, settings.topic, frames_of(range(100, 150)))
    assert run_tick(settings).drain.next_offsets == {0: 150}
    three_brokers.kill(first)
    three_brokers.start(second)
    three_brokers.wait_for(lambda: three_brokers.leader_of(settings.topic) == second)
    try:
        report = run_tick(settings)
        assert isinstance(report.drain_error, OffsetsLost)
        assert "next offset 150 is beyond the end of the log, 100" in str(report.drain_error)
        assert "truncated" in str(report.drain_error)
        assert asked(settings, "SELECT frames FROM minute_counts") == [(150,)]
    finally:
        three_brokers.start(first)
