"""FAULTS 11-26, 28, 65 and 66 on real Apache Kafka, one broker: what a user sees, and that nothing is lost.

Rows 12 and 14 need three brokers (test_failover.py), 27 and 67 brokers that ask for passwords and certificates
(test_kafka_security.py).
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from support.audit import read_topic
from support.kafka.traffic import MINUTE_S, frames_of, new_producer, produce, send, transaction
from support.ticks import run_tick

from uniq_pipeline.cli.main import root
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, InputError, OffsetsLost, TopicMissing, TopicRecreated
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.health import all_offsets
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.warehouse import ask_catalog

pytestmark = pytest.mark.kafka


@pytest.fixture
def on_kafka(kafka, make_settings):
    """Settings of a topic that does not exist yet."""

    def make(**overrides: Any) -> Settings:
        return make_settings(kafka_bootstrap_servers=kafka.bootstrap_servers, kafka_timeout_s=5, **overrides)

    return make


@pytest.fixture
def topic(kafka, on_kafka) -> Settings:
    """Settings of a topic that has just been made, with one topic partition."""
    settings = on_kafka()
    kafka.create_topic(settings.topic)
    return settings


def asked(settings: Settings, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in ask_catalog(settings.catalog_path, sql).to_pylist()]


def counted(settings: Settings) -> tuple[int, int]:
    """(frames, users) of the one minute that the tests use."""
    rows = asked(settings, "SELECT frames, unique_users FROM minute_counts")
    assert len(rows) <= 1
    return rows[0] if rows else (0, 0)


def skipped(settings: Settings) -> list[tuple]:
    ledger = Ledger(settings.effective_ledger_url)
    with ledger.reading() as connection:
        rows = connection.exec_driver_sql("SELECT kafka_partition, start_offset, end_offset FROM skipped").fetchall()
    ledger.close()
    return [tuple(row) for row in rows]


def gaps(settings: Settings) -> list[str]:
    ledger = Ledger(settings.effective_ledger_url)
    found = all_offsets(ledger).gaps
    ledger.close()
    return list(map(str, found))


def command(settings: Settings, monkeypatch, *arguments: str) -> str:
    """What a command prints, run with these settings."""
    for name in ("data_dir", "topic", "kafka_bootstrap_servers", "kafka_timeout_s", "lg_k"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    done = CliRunner().invoke(root, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_11_a_broker_that_is_down_is_named_and_nothing_has_moved(kafka, topic):
    produce(kafka, topic.topic, frames_of(range(10)))
    run_tick(topic)
    produce(kafka, topic.topic, frames_of(range(10, 30)))
    kafka.stop(1)
    started = time.monotonic()
    try:
        report = run_tick(topic)
        assert time.monotonic() - started < 20  # the timeout is 5 s, and the machine may be busy
    finally:
        kafka.start(1)
    assert isinstance(report.drain_error, BrokerError) and report.drain is None
    assert kafka.bootstrap_servers in str(report.drain_error)
    assert "UNIQ_KAFKA_BOOTSTRAP_SERVERS" in str(report.drain_error)
    assert counted(topic) == (10, 10)
    assert run_tick(topic).drain_error is None
    assert counted(topic) == (30, 30)


def test_13_what_retention_removed_before_it_was_read_is_named_and_given_up_only_on_a_persons_word(
    kafka, topic, monkeypatch
):
    produce(kafka, topic.topic, frames_of(range(100)))
    run_tick(topic)
    produce(kafka, topic.topic, frames_of(range(100, 150)))
    expire_all(kafka, topic.topic, 150)
    produce(kafka, topic.topic, frames_of(range(150, 160)))
    for _ in range(2):  # it stays an error until somebody decides
        error = run_tick(topic).drain_error
        assert isinstance(error, OffsetsLost)
        assert f"topic {topic.topic}, topic partition 0: offsets [100, 150)" in str(error)
        assert f"skip-lost {topic.topic}" in str(error)
    assert counted(topic) == (100, 100) and skipped(topic) == []
    said = command(topic, monkeypatch, "skip-lost", topic.topic, "--yes")
    assert "topic partition 0: offsets [100, 150) skipped, 50 records" in said
    assert run_tick(topic).drain_error is None
    assert counted(topic) == (110, 110)
    assert skipped(topic) == [(0, 100, 150)] and gaps(topic) == []


def test_13_what_expires_while_it_is_being_read_is_missed_too(kafka, topic):
    produce(kafka, topic.topic, frames_of(range(50)))
    run_tick(topic)
    produce(kafka, topic.topic, frames_of(range(50, 100)))

    def expire(name: str) -> None:
        if name == "drain.before_fetch":
            expire_all(kafka, topic.topic, 100)

    error = run_tick(topic, failpoint=expire).drain_error
    assert isinstance(error, OffsetsLost) and "[50, 100)" in str(error)
    assert counted(topic) == (50, 50)


def test_15_a_topic_that_was_deleted_and_made_again_is_told_apart_by_its_id(kafka, topic, monkeypatch):
    produce(kafka, topic.topic, frames_of(range(40)))
    run_tick(topic)
    kafka.delete_topic(topic.topic)
    kafka.create_topic(topic.topic)
    produce(kafka, topic.topic, frames_of(range(30, 130)))  # as many offsets as before, and more
    error = run_tick(topic).drain_error
    assert isinstance(error, TopicRecreated) and "was recreated" in str(error)
    assert counted(topic) == (40, 40)
    command(topic, monkeypatch, "forget-topic", topic.topic, "--yes")
    assert run_tick(topic).drain_error is None
    assert counted(topic) == (140, 130)
    assert gaps(topic) == []


def test_15_a_topic_that_was_not_recreated_is_not_forgotten(kafka, topic, monkeypatch):
    produce(kafka, topic.topic, frames_of(range(10)))
    run_tick(topic)
    with pytest.raises(InputError, match="was not recreated"):
        command(topic, monkeypatch, "forget-topic", topic.topic, "--yes")
    assert run_tick(topic).drain.delivered == 0


def test_16_a_deleted_topic_is_named_and_its_history_can_still_be_queried(kafka, topic):
    produce(kafka, topic.topic, frames_of(range(25)))
    run_tick(topic)
    kafka.delete_topic(topic.topic)
    error = run_tick(topic).drain_error
    assert isinstance(error, TopicMissing) and f"topic {topic.topic} does not exist" in str(error)
    assert counted(topic) == (25, 25)


def test_17_added_topic_partitions_are_read_from_their_beginning_and_shown(kafka, topic, monkeypatch):
    produce(kafka, topic.topic, frames_of(range(10)))
    run_tick(topic)
    kafka.add_partitions(topic.topic, 3)
    for kafka_partition, users in ((0, range(10, 20)), (1, range(20, 40)), (2, range(40, 70))):
        produce(kafka, topic.topic, frames_of(users), kafka_partition=kafka_partition)
    assert run_tick(topic).drain.next_offsets == {0: 20, 1: 20, 2: 30}
    assert counted(topic) == (70, 70)
    rows = [line.split() for line in command(topic, monkeypatch, "status").splitlines()]
    assert [row[:3] for row in rows if len(row) > 3 and row[0] in "012"] == [
        ["0", "20", "0"],
        ["1", "20", "0"],
        ["2", "30", "0"],
    ]


def test_17_what_expires_from_an_added_topic_partition_before_it_is_read_is_missed(kafka, topic):
    run_tick(topic)
    kafka.add_partitions(topic.topic, 2)
    run_tick(topic)
    produce(kafka, topic.topic, frames_of(range(10)), kafka_partition=1)
    expire_all(kafka, topic.topic, 10, kafka_partition=1)
    error = run_tick(topic).drain_error
    assert isinstance(error, OffsetsLost) and "topic partition 1: offsets [0, 10)" in str(error)


def test_18_gaps_of_compaction_are_accepted_and_counted(kafka, on_kafka):
    settings = on_kafka()
    kafka.create_topic(
        settings.topic,
        cleanup_policy="compact",
        segment_ms=200,
        min_cleanable_dirty_ratio=0.001,
        min_compaction_lag_ms=0,
        max_compaction_lag_ms=200,
    )
    producer = new_producer(kafka)
    for _ in range(4):  # the same keys, each time in a new segment
        send(producer, settings.topic, frames_of(range(50)), keys=True)
        time.sleep(0.3)
    send(producer, settings.topic, frames_of(range(50, 60)), keys=True)  # closes the last of them
    kafka.wait_for(lambda: len(list(read_topic(kafka.bootstrap_servers, settings.topic))) < 210, 60)
    left = len(list(read_topic(kafka.bootstrap_servers, settings.topic)))
    report = run_tick(settings)
    assert report.drain_error is None and report.drain.lag == 0
    assert report.drain.next_offsets == {0: 210}
    assert report.drain.delivered <= left < 210  # it may have gone on compacting
    assert counted(settings) == (report.drain.delivered, 60)
    assert gaps(settings) == []
    assert run_tick(settings).drain.delivered == 0


def test_19_and_21_aborted_transactions_are_invisible_and_a_marker_at_the_end_is_no_record_to_wait_for(kafka, topic):
    with transaction(kafka, f"{topic.topic}-aborted") as producer:
        send(producer, topic.topic, frames_of(range(1000, 1100)))
        producer.abort_transaction()
    with transaction(kafka, f"{topic.topic}-committed") as producer:
        send(producer, topic.topic, frames_of(range(20)))
        producer.commit_transaction()
    report = run_tick(topic)
    assert report.drain_error is None
    assert (report.drain.delivered, report.drain.lag) == (20, 0)
    assert report.drain.next_offsets == {0: 122}  # two markers
    assert counted(topic) == (20, 20)
    with transaction(kafka, f"{topic.topic}-aborted") as producer:
        send(producer, topic.topic, frames_of(range(2000, 2100)))
        producer.abort_transaction()
    report = run_tick(topic)
    assert (report.drain.delivered, report.drain.next_offsets) == (0, {0: 223})
    assert run_tick(topic).drain.batches == 0  # those offsets are done with
    assert counted(topic) == (20, 20) and gaps(topic) == []


def test_20_what_an_open_transaction_holds_back_is_shown_and_counted_once_it_ends(kafka, topic, monkeypatch):
    produce(kafka, topic.topic, frames_of(range(5)))
    with transaction(kafka, f"{topic.topic}-open") as producer:
        send(producer, topic.topic, frames_of(range(5, 55)))
    produce(kafka, topic.topic, frames_of(range(55, 75)))
    report = run_tick(topic)
    assert (report.drain.delivered, report.drain.lag, report.drain.unstable) == (5, 0, 70)
    status = command(topic, monkeypatch, "status")
    assert "0 records, and 70 in transactions that are open" in status
    producer.commit_transaction()
    report = run_tick(topic)
    assert (report.drain.delivered, report.drain.unstable) == (70, 0)
    assert counted(topic) == (75, 75)
    assert "open" not in command(topic, monkeypatch, "status").split("lag:")[1].splitlines()[0]


def test_22_every_codec_gives_the_same_counts(kafka, on_kafka):
    found = {}
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        settings = on_kafka(data_dir=on_kafka().data_dir / codec)
        kafka.create_topic(settings.topic, 2)
        values = frames_of([user % 300 for user in range(1000)])
        sent = produce(kafka, settings.topic, values, compression_type=codec, linger_ms=50)
        report = run_tick(settings)
        assert report.drain.delivered == len(sent) == 1000
        found[codec] = counted(settings)
    assert found == dict.fromkeys(found, (1000, 300))


def test_23_a_failed_checksum_stops_the_drain_at_its_offset_and_says_so(kafka, topic, monkeypatch):
    producer = new_producer(kafka)
    for first in range(0, 50, 10):  # record batches of their own
        send(producer, topic.topic, frames_of(range(first, first + 10)))
    (log,) = (kafka.log_dir(1) / f"{topic.topic}-0").glob("*.log")
    with open(log, "r+b") as file:
        file.seek(log.read_bytes().index(b'"u25"'))
        file.write(b'"x')
    for _ in range(2):
        report = run_tick(topic)
        assert isinstance(report.drain_error, BrokerError)
        assert f"topic {topic.topic}, topic partition 0, offset 20: " in str(report.drain_error)
        assert "CRC" in str(report.drain_error) and "skip-lost" in str(report.drain_error)
        assert counted(topic) == (20, 20)  # what is before it counts
    command(topic, monkeypatch, "skip-lost", topic.topic, "--partition=0", "--to=30", "--yes")
    assert run_tick(topic).drain_error is None
    assert counted(topic) == (40, 40)
    assert skipped(topic) == [(0, 20, 30)] and gaps(topic) == []


def test_24_a_message_of_five_megabytes_gets_through(kafka, on_kafka):
    settings = on_kafka()
    kafka.create_topic(settings.topic, max_message_bytes=16 << 20)
    big = b'{"filler": "%s", "uid": "big", "ts": %d}' % (b"x" * (5 << 20), MINUTE_S)
    values = [*frames_of(range(10)), big, *frames_of(range(10, 20))]
    produce(kafka, settings.topic, values, message_max_bytes=16 << 20)
    assert run_tick(settings).drain.frames == 21
    assert counted(settings) == (21, 21)


def test_25_a_tombstone_is_quarantined(kafka, topic):
    produce(kafka, topic.topic, [*frames_of(range(3)), None, *frames_of(range(3, 6))])
    report = run_tick(topic)
    assert (report.drain.frames, report.drain.quarantined) == (6, 1)
    assert asked(topic, "SELECT kafka_offset, reason, payload FROM quarantine") == [(3, "tombstone", None)]


def test_26_a_frame_that_its_producer_sent_twice_is_two_frames_of_one_user(kafka, topic):
    produce(kafka, topic.topic, frames_of(range(10)))
    produce(kafka, topic.topic, frames_of(range(10)))
    run_tick(topic)
    assert counted(topic) == (20, 10)


def test_28_results_wait_in_the_outbox_for_a_topic_that_does_not_take_them(kafka, on_kafka):
    settings = on_kafka(results_topic=f"counts-of-{on_kafka().topic}")
    kafka.create_topic(settings.topic)
    produce(kafka, settings.topic, frames_of(range(10)))
    report = run_tick(settings)
    assert report.drain_error is None and report.published == 0
    assert f"topic {settings.results_topic} does not exist" in report.publish_error
    assert counted(settings) == (10, 10)
    waiting = outbox(settings)
    assert waiting == 6  # a minute, and its hour, day, week, month and year
    produce(kafka, settings.topic, frames_of(range(10, 20), MINUTE_S + 60))
    assert run_tick(settings).publish_error and outbox(settings) == waiting + 1
    kafka.create_topic(settings.results_topic, cleanup_policy="compact")
    report = run_tick(settings)
    assert (report.publish_error, report.published, outbox(settings)) == (None, 7, 0)
    assert len(list(read_topic(kafka.bootstrap_servers, settings.results_topic))) == 7


def test_65_and_66_a_topic_of_all_allowed_characters_and_users_that_look_like_sql(kafka, on_kafka):
    settings = on_kafka(topic="A.b_c-9" + "x" * 200)
    kafka.create_topic(settings.topic)
    uids = ["'; DROP TABLE frames; --", '" OR 1=1', "../../etc/passwd", "$1", "{0}", "%s"]
    values = [b'{"ts": %d, "uid": "%s"}' % (MINUTE_S, uid.replace('"', '\\"').encode()) for uid in uids]
    produce(kafka, settings.topic, values)
    run_tick(settings)
    assert counted(settings) == (6, 6)
    assert sorted(uid for (uid,) in asked(settings, "SELECT uid FROM frames")) == sorted(uids)
    lake = (settings.data_dir / "lake").resolve()
    assert all(lake in path.resolve().parents for path in settings.data_dir.rglob("*.parquet"))


def outbox(settings: Settings) -> int:
    ledger = Ledger(settings.effective_ledger_url)
    try:
        return overview(ledger).outbox
    finally:
        ledger.close()


def expire_all(kafka, topic: str, until: int, kafka_partition: int = 0) -> None:
    """Lets the topic's retention remove every record there is, and waits until the broker has done so."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    for value in ("1", "604800000"):
        entry = ConfigEntry("retention.ms", value, incremental_operation=AlterConfigOpType.SET)
        resource.incremental_configs = [entry]
        kafka.admin.incremental_alter_configs([resource])[resource].result(30)
        if value == "1":
            kafka.wait_for(lambda: low_watermark(kafka, topic, kafka_partition) == until)


def low_watermark(kafka, topic: str, kafka_partition: int) -> int:
    from confluent_kafka.admin import OffsetSpec

    asked_for = TopicPartition(topic, kafka_partition)
    return kafka.admin.list_offsets({asked_for: OffsetSpec.earliest()})[asked_for].result(30).offset
