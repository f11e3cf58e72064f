"""The refined topic: a consumer that drops duplicates has exactly the frames that count, whatever happened on the way.

Messages are decoded with the published schema (support.refined), and held against the files of frames/.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from dagster import AssetKey, DagsterInstance
from support.audit import audit, read_topic
from support.dagster_run import definitions
from support.desks import T0, asked, delete, live, stands, wreck
from support.frames import MemoryTopic, frame, send, small_traffic
from support.nursery import Nursery
from support.refined import DOCS, accepted, consumed, decoded, on_topic, place_of, published_schema
from support.ticks import OnceAt, run_tick

from assets.metadata import tick_metadata
from uniq_pipeline import forward as forwarding
from uniq_pipeline.cli.main import root
from uniq_pipeline.compact import compact
from uniq_pipeline.config import Settings, TsUnit, load_settings
from uniq_pipeline.errors import BrokerError, SettingError
from uniq_pipeline.expire import expire
from uniq_pipeline.forward import forward
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.refined import unsent_paths
from uniq_pipeline.move import admit, replay, withdraw
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild import carry_out, plan_rebuild
from uniq_pipeline.redrain import plan_redrain, redrain
from uniq_pipeline.refined import descriptor, messages
from uniq_pipeline.schemas import FRAMES_SCHEMA
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import Grain

EVER = 1 << 40


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.tick.refresh_catalog", lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _one_warehouse() -> Iterator[None]:
    """To open one and plan the sketch macros takes longer than most of what is done here."""
    made: list[Warehouse] = []

    @contextmanager
    def opened(**options: Any) -> Iterator[Warehouse]:
        if not made:
            made.append(Warehouse(**options).__enter__())
        yield made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniq_pipeline.tick.Warehouse", opened)
        yield
    for warehouse in made:
        warehouse.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


class ListSink:
    """Takes everything, but no more than `at_most` calls."""

    def __init__(self, at_most: int = 1_000_000) -> None:
        self.sent: list[tuple[bytes | None, bytes]] = []
        self.left = at_most

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        new = list(messages)
        if self.left == 0:
            raise BrokerError("topic refined: not writable")
        self.left -= 1
        self.sent += new
        return len(new)

    @property
    def messages(self) -> list[Any]:
        return decoded(self.sent)


class Story:
    """A topic in memory, a folder, and a consumer that has what was sent."""

    def __init__(self, settings: Settings, topic: MemoryTopic) -> None:
        self.settings = settings
        self.topic = topic
        self.sink = ListSink()

    def send(self, start_s: int, end_s: int) -> None:
        traffic = small_traffic(1, frames_per_s=2, users=60)
        self.topic.send(traffic.records_between(T0 + start_s, T0 + end_s), Random(start_s))

    def tick(self, *, sink: ListSink | None = None, **options: Any):
        return run_tick(self.settings, self.topic, open_refined_sink=lambda: sink or self.sink, **options)

    def drain(self) -> None:
        """A tick after which everything waits to be sent."""
        self.tick(sink=ListSink(0))

    def do(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with open_workshop(self.settings) as shop:
            return work(shop, *arguments, **options)

    def forward(self) -> list[Any]:
        """What is sent now."""
        sink = ListSink()
        with open_workshop(self.settings) as shop:
            forward(shop.ledger, shop.lake, sink)
        self.sink.sent += sink.sent
        return sink.messages

    @property
    def waiting(self) -> int:
        ledger = Ledger(self.settings.effective_ledger_url)
        try:
            return overview(ledger).refined.frames
        finally:
            ledger.close()

    def wrong(self) -> list[str]:
        """Where the consumer differs from frames/, in whatever order the messages come."""
        there = accepted(self.settings)
        orders = self.sink.messages, self.sink.messages[::-1]
        return sorted(
            str(place)
            for has in map(consumed, orders)
            for place in {*there, *has}
            if there.get(place) != has.get(place)
        )


@pytest.fixture
def story(make_settings: Callable[..., Settings]) -> Story:
    settings = make_settings(batch_frames=300, refined_topic="refined")
    return Story(settings, MemoryTopic(settings.topic))


# What is sent.


def test_the_published_schema_is_the_one_that_messages_are_made_with():
    published = published_schema()
    for message in published.message_type:
        for field in (*message.field, *(field for nested in message.nested_type for field in nested.field)):
            field.ClearField("json_name")
    assert published == descriptor()


def test_the_topic_has_what_counts_as_it_is_in_frames_with_the_uid_as_key(broker, make_settings):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers, dimensions="country", batch_frames=300)
    settings = settings.model_copy(update={"refined_topic": f"{settings.topic}-refined"})
    traffic = small_traffic(1).records_between(T0, T0 + 300)
    with_country = [
        record._replace(payload=b'{"country":"C%d",' % (i % 3) + record.payload[1:]) if i % 2 else record
        for i, record in enumerate(traffic)
    ]
    send(broker.bootstrap_servers, settings.topic, with_country, Random(1))
    report = run_tick(settings)
    found = on_topic(settings)
    there = accepted(settings)
    assert len(found) == len(there) == report.refined > 1000
    assert consumed(message for _, message in found) == there
    assert {key for key, _ in found} == {uid for _, uid, _ in there.values()}
    assert all(key == message.uid for key, message in found)
    assert {values.get("country") for _, _, values in there.values()} == {"C0", "C1", "C2", "(none)"}
    assert not any(message.revision or message.withdrawn for _, message in found)
    assert report.drain.held > 0 and report.drain.quarantined > 0
    assert report.refined_backlog.files == 0


def test_a_message_has_nothing_of_the_one_before_it():
    values = [[("city", "Bern"), ("country", "CH")], None, [("city", "\u0000ж")]]
    rows = pa.table(
        {
            **{name: pa.array(["a", "b", "c" * 2000]) for name in ("topic", "uid")},
            **{name: pa.array([0, 3, 0]) for name in ("kafka_partition", "kafka_offset")},
            "event_time": pa.array([0, 1_000_000, 9_999_000_000], FRAMES_SCHEMA.field("event_time").type),
            "dimensions": pa.array(values, FRAMES_SCHEMA.field("dimensions").type),
        }
    )
    sent = list(messages(rows.to_batches()[0], 7, True))
    assert [dict(message.dimensions) for message in decoded(sent)] == [dict(value or ()) for value in values]
    assert [(m.uid, m.kafka_offset, m.event_time, m.revision) for m in decoded(sent)] == [
        ("a", 0, 0, 7),
        ("b", 3, 1, 7),
        ("c" * 2000, 0, 9999, 7),
    ]
    assert [len(key) for key, _ in sent] == [1, 1, 1000]


def test_frames_of_a_user_are_in_one_topic_partition_where_java_clients_put_that_key(broker, make_settings):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    topic = f"{settings.topic}-by-java"
    keys = [b"user-%d" % i for i in range(200)]
    KafkaSink(settings, topic).send((key, b"x") for key in keys * 3)
    where = defaultdict(set)
    for partition in range(4):
        for key in read_partition(settings, topic, partition):
            where[key].add(partition)
    assert {key: {java_partition(key, 4)} for key in keys} == dict(where)


def read_partition(settings, topic, partition):
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "by-partition"})
    try:
        place = TopicPartition(topic, partition, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=10)
        consumer.assign([place])
        return [message.key() for message in consumer.consume(end, 10)] if end else []
    finally:
        consumer.close()


def java_partition(key: bytes, partitions: int) -> int:
    """Apache Kafka's own rule: murmur2 of the key, its sign bit off."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(key)
    for i in range(0, len(key) - len(key) % 4, 4):
        k = int.from_bytes(key[i : i + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := key[len(key) - len(key) % 4 :]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def test_by_default_nothing_is_kept_or_sent_and_once_it_is_on_only_what_comes_from_then_on(story):
    on = story.settings
    story.settings = on.model_copy(update={"refined_topic": None})
    story.send(0, 200)
    report = story.tick()
    assert "refined" not in report.seconds and report.refined == 0
    assert asked(on, "SELECT * FROM refined_outbox") == [] and story.sink.sent == []
    before = accepted(on)
    story.settings = on
    story.send(200, 400)
    story.tick()
    new = {place: frame for place, frame in accepted(on).items() if place not in before}
    assert consumed(story.sink.messages) == new and len(new) > 300


def test_a_topic_that_is_read_or_has_the_results_is_refused():
    for name in ("frames", "counts"):
        with pytest.raises(SettingError, match="UNIQ_REFINED_TOPIC.*a topic of its own"):
            load_settings(topic="frames", results_topic="counts", refined_topic=name)
    assert load_settings(refined_topic="").refined_topic is None


# Kills.


def test_whatever_is_killed_nothing_is_sent_that_does_not_count_and_nothing_is_left_out(broker, nursery, make_settings):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers, batch_frames=250)
    settings = settings.model_copy(update={"refined_topic": f"{settings.topic}-refined"})
    values = settings.model_dump(mode="json", exclude_none=True)
    traffic, rng, delivered = small_traffic(3, frames_per_s=4), Random(3), {}
    points = [
        ("drain.in_commit", 1),
        ("drain.after_commit", 1),
        ("refined.before_send", 1),
        ("refined.sent", 2),
        ("refined.noted", 1),
    ]
    for i, (name, nth) in enumerate(points):
        records = traffic.records_between(T0 + 60 * i, T0 + 60 * (i + 1))
        delivered |= send(broker.bootstrap_servers, settings.topic, records, rng)
        do = "drain" if name.startswith("drain") else "tick"
        job = {"settings": values, "do": do, "at": name, "nth": nth, "at_once": 100}
        assert nursery.wait(nursery.start(job)) == -signal.SIGKILL, f"{name} was not reached {nth} times"
        if name in ("refined.sent", "refined.noted"):
            sent = {place_of(message) for _, message in on_topic(settings)}
            assert sent <= set(accepted(settings)), name
    assert nursery.wait(nursery.start({"settings": values, "at_once": 100})) == 0
    found = [message for _, message in on_topic(settings)]
    assert consumed(found) == accepted(settings)
    assert len(found) > len(accepted(settings)), "some were sent again"
    assert asked(settings, "SELECT * FROM refined_outbox") == []
    assert audit(settings, delivered, closed=False, grains=("minute", "hour")) == []


def test_killed_before_it_is_noted_the_same_frames_are_sent_again_and_after_it_they_are_not(story):
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    story.send(0, 300)
    for name, again in (("refined.sent", True), ("refined.noted", False)):
        story.drain()
        with pytest.raises(Killed):
            story.tick(failpoint=OnceAt(name, die))
        before = len(story.sink.sent)
        assert before > 0
        resent = {place_of(m) for m in story.forward()} & {place_of(m) for m in story.sink.messages[:before]}
        assert bool(resent) is again, name
        assert story.wrong() == []
        story.send(300, 400)


# A topic that does not take them.


def test_fault_28_refined_topic_not_writable_the_backlog_grows_and_says_so_and_results_commit(
    broker, make_settings, monkeypatch
):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    settings = settings.model_copy(
        update={"results_topic": f"{settings.topic}-counts", "refined_topic": f"{settings.topic}-refined"}
    )
    away = settings.model_copy(update={"kafka_bootstrap_servers": "localhost:1", "kafka_timeout_s": 0.5})
    waiting = []
    for start_s in (0, 120):
        records = small_traffic(1).records_between(T0 + start_s, T0 + start_s + 120)
        send(broker.bootstrap_servers, settings.topic, records, Random(1))
        report = run_tick(settings, open_refined_sink=lambda: KafkaSink(away, "refined"))
        assert report.published > 0 and report.publish_error is None and report.drain_error is None
        assert "topic refined at localhost:1" in report.refined_error
        assert report.refined == 0
        waiting.append(report.refined_backlog.frames)
    assert waiting[1] == len(accepted(settings)) > waiting[0] > 0
    metadata = tick_metadata(report, None, 0.0)
    assert metadata["refined_backlog"] == waiting[1] and "not acknowledged" in metadata["refined_error"]
    monkeypatch.setenv("UNIQ_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("UNIQ_LG_K", "8")
    said = CliRunner().invoke(root, ["status", "--offline"], catch_exceptions=False).output
    assert (
        f"to forward:      {waiting[1]:,} frames to the refined topic, since" in said
        and "UNIQ_REFINED_TOPIC is not set" in said
    )
    assert run_tick(settings).refined == waiting[1]
    assert consumed(message for _, message in on_topic(settings)) == accepted(settings)


def test_a_run_of_dagster_sends_them_and_says_so_beside_the_asset(broker, make_settings, monkeypatch):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    settings = settings.model_copy(update={"refined_topic": f"{settings.topic}-refined"})
    for name in ("data_dir", "topic", "refined_topic", "lg_k", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    records = small_traffic(1).records_between(T0, T0 + 120)
    send(broker.bootstrap_servers, settings.topic, records, Random(1))
    with DagsterInstance.ephemeral() as instance:
        done = definitions().resolve_job_def("tick").execute_in_process(instance=instance)
        told = instance.get_latest_materialization_event(AssetKey("frames")).asset_materialization.metadata
    assert done.success
    assert consumed(message for _, message in on_topic(settings)) == accepted(settings)
    assert told["refined"].value == len(accepted(settings)) > 0
    assert told["refined_backlog"].value == 0


def test_a_tick_stops_forwarding_in_time_and_the_next_one_goes_on_within_the_file(story, monkeypatch):
    story.send(0, 300)
    story.drain()
    total = story.waiting
    monkeypatch.setattr(forwarding, "FRAMES_AT_ONCE", 100)
    with open_workshop(story.settings) as shop:
        for _ in range(4):
            assert forward(shop.ledger, shop.lake, story.sink, is_over=lambda: True) in range(100, 200)
        assert overview(shop.ledger).refined.frames == total - len(story.sink.sent) > 0
    story.forward()
    assert len(story.sink.sent) == total, "nothing twice"
    assert story.wrong() == []


def test_a_damaged_file_is_named_and_the_others_are_sent_and_mended_it_is_sent_too(story):
    story.send(0, 300)
    story.drain()
    path = sorted(unsent_of(story))[1]
    rows = dict(asked(story.settings, "SELECT path, rows FROM refined_outbox"))[path]
    for harm in (wreck, delete):
        harm(stands(story.settings, path))
        report = story.tick()
        assert path in str(report.file_error)
        assert report.refined_backlog.frames == rows
    # by somebody whose shell has no such setting
    with open_workshop(story.settings.model_copy(update={"refined_topic": None})) as shop:
        offsets = [OffsetRange(p, 0, len(log)) for p, log in story.topic.logs.items()]
        redrain(shop, story.topic, plan_redrain(shop, story.topic, offsets, [path]))
    assert len(story.forward()) == rows
    assert story.wrong() == [] and unsent_of(story) == set()


def unsent_of(story: Story) -> set[str]:
    ledger = Ledger(story.settings.effective_ledger_url)
    try:
        return unsent_paths(ledger)
    finally:
        ledger.close()


def test_what_waits_for_a_topic_that_nobody_wants_any_more_is_forgotten_on_a_persons_word(story, monkeypatch):
    story.send(0, 200)
    story.drain()
    story.tick(sink=ListSink(0))
    waiting = story.waiting
    monkeypatch.setenv("UNIQ_DATA_DIR", str(story.settings.data_dir))
    monkeypatch.setenv("UNIQ_LG_K", "8")
    refused = CliRunner().invoke(root, ["forget-refined"], input="n\n")
    assert refused.exit_code == 1 and story.waiting == waiting > 0
    done = CliRunner().invoke(root, ["forget-refined", "--yes"], catch_exceptions=False)
    assert f"{waiting:,} frames" in done.output
    assert story.waiting == 0 and story.forward() == []
    assert story.do(compact, closed_before_s=EVER).merged_into >= 1


# Beside what else moves files.


def test_compaction_leaves_an_hour_alone_until_it_was_sent(story, monkeypatch):
    story.send(0, 500)
    story.drain()
    before = live(story.settings, "frames")
    assert story.do(compact, closed_before_s=EVER).merged_into == 0
    with open_workshop(story.settings) as shop:
        monkeypatch.setattr(forwarding, "FRAMES_AT_ONCE", 1)
        for _ in range(len(before) // 2):
            forward(shop.ledger, shop.lake, story.sink, is_over=lambda: True)
            compact(shop, closed_before_s=EVER)
            assert unsent_paths(shop.ledger) <= set(live(story.settings, "frames"))
    assert 0 < len(story.sink.sent) < len(accepted(story.settings))
    story.forward()
    assert story.do(compact, closed_before_s=EVER).merged_into >= 1
    assert story.forward() == []
    assert story.wrong() == [] and len(live(story.settings, "frames")) < len(before)


def test_a_compaction_that_lists_files_before_they_wait_loses_at_its_commit(story):
    story.send(0, 300)
    story.tick()
    path = live(story.settings, "frames")[0]

    def wait() -> None:
        with closing(sqlite3.connect(story.settings.data_dir / "ledger.db")) as connection, connection:
            connection.execute("INSERT INTO refined_outbox VALUES (?, 9, 0, 0, 0, 1.0)", [path])

    with open_workshop(story.settings, failpoint=OnceAt("compact.before_commit", wait)) as shop:
        compact(shop, closed_before_s=EVER)
    assert path in live(story.settings, "frames")


def test_frames_that_wait_do_not_expire_and_those_that_were_sent_do(story, monkeypatch):
    monkeypatch.undo()  # days are closed, too
    story.send(0, 600)
    story.tick(sink=ListSink(0), close_windows=True)
    story.settings = story.settings.model_copy(update={"retention": "frames=1"})
    report = story.do(expire)
    assert report.waiting["frames"] >= 1 and report.files["frames"] == 0
    assert accepted(story.settings)
    story.forward()
    assert story.wrong() == []
    kept = consumed(story.sink.messages)
    assert story.do(expire).files["frames"] >= 1
    assert len(accepted(story.settings)) < len(kept), "the day that is not over stays"
    assert story.forward() == [] and consumed(story.sink.messages) == kept


def test_admitted_frames_are_sent_withdrawn_ones_are_said_to_be_and_admitted_again_they_are_back(story):
    story.send(0, 400)
    story.tick()
    assert story.wrong() == []
    seen = set(consumed(story.sink.messages))
    moved = story.do(admit, 0, EVER).frames
    new = story.forward()
    assert len(new) == moved > 0
    assert not {place_of(message) for message in new} & seen
    assert story.wrong() == []
    assert story.do(withdraw, 0, EVER).held == moved
    gone = story.forward()
    assert len(gone) == moved and all(message.withdrawn for message in gone)
    assert story.wrong() == []
    story.do(admit, 0, EVER)
    story.forward()
    assert story.wrong() == []


def test_frames_that_are_withdrawn_before_they_were_sent_are_not_sent_as_accepted(story):
    story.send(0, 250)
    story.tick()
    story.do(admit, 0, EVER)
    admitted = set(accepted(story.settings)) - set(consumed(story.sink.messages))
    some = sorted(accepted(story.settings)[place][0] for place in admitted)
    story.do(withdraw, 0, some[len(some) // 2])
    sent = story.forward()
    still = admitted & set(accepted(story.settings))
    assert {place_of(message) for message in sent if not message.withdrawn} == still
    assert 0 < len(still) < len(admitted)
    assert story.wrong() == []


def test_frames_that_their_log_proves_after_they_were_withdrawn_are_back(story):
    story.topic.logs = {0: []}

    def history(first_s: int, seconds: int) -> None:
        """Its Kafka times, days later, vouch for nothing."""
        times = range(T0 + first_s, T0 + first_s + seconds)
        story.topic.send([frame(event_s, f"u{event_s % 9}", arrival_s=T0 + 864_000) for event_s in times])

    history(0, 64)
    history(7200, 10)
    story.tick()
    assert story.do(admit, 0, EVER).frames == 10
    story.forward()
    assert story.do(withdraw, 0, EVER).held == 10
    story.forward()
    assert story.wrong() == [] and len(consumed(story.sink.messages)) == 64
    history(7210, 60)
    assert story.tick().drain.admitted == 10
    assert story.wrong() == [] and len(consumed(story.sink.messages)) == 134


def test_redrained_frames_are_sent_as_they_are_now(story):
    story.topic.send([frame(T0 + i, f"u{i % 9}") for i in range(200)])
    story.tick()
    assert story.wrong() == []
    named = story.settings.model_copy(update={"dimensions": "country"})
    for log in story.topic.logs.values():
        for i, sent in enumerate(log):
            log[i] = replace(sent, payload=sent.payload.replace(b"{", b'{"country":"CH",'))
    offsets = [OffsetRange(p, 0, len(log)) for p, log in story.topic.logs.items()]
    with open_workshop(named) as shop:
        done = redrain(shop, story.topic, plan_redrain(shop, story.topic, offsets))
    assert done.replaced > 100
    sent = story.forward()
    assert {dict(message.dimensions).get("country") for message in sent} == {"CH"}
    assert story.wrong() == [], "the newer revision wins"


def test_quarantined_records_that_can_be_read_by_now_are_sent(story):
    story.topic.send([frame(T0 + i, f"u{i % 9}") for i in range(100)])
    in_ms = [frame(T0 + 100 + i, f"u{i}") for i in range(20)]
    story.topic.send([r._replace(payload=r.payload.replace(b',"uid"', b'000,"uid"')) for r in in_ms])
    story.tick()
    assert len(story.sink.sent) == 100 and story.wrong() == []
    with open_workshop(story.settings.model_copy(update={"ts_unit": TsUnit.MILLISECONDS})) as shop:
        assert replay(shop).frames == 20
    assert len(story.forward()) == 20
    assert story.wrong() == []


def test_a_ledger_made_anew_sends_nothing_again_and_what_comes_after_is_newer(story):
    story.send(0, 400)
    story.tick()
    story.do(admit, 0, EVER)
    story.forward()
    newest = max(message.revision for message in story.sink.messages)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (story.settings.data_dir / name).unlink(missing_ok=True)
    ledger, lake = Ledger(story.settings.effective_ledger_url), Lake(story.settings.data_dir / "lake")
    carry_out(story.settings, ledger, lake, plan_rebuild(story.settings, ledger, lake))
    ledger.close()
    assert story.forward() == []
    story.do(withdraw, 0, EVER)
    gone = story.forward()
    assert gone and min(message.revision for message in gone) > newest
    assert story.wrong() == []


# The page about it.


def test_what_the_page_says_about_reading_it_in_python_works(broker, make_settings, tmp_path):
    page = (DOCS / "refined.md").read_text()
    (shell,) = [block.split("```")[0] for block in page.split("```sh\n")[1:]]
    (compile_it,) = [line.partition("#")[0].split() for line in shell.splitlines() if "protoc" in line]
    (script,) = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    settings = settings.model_copy(update={"refined_topic": f"{settings.topic}-refined"})
    records = small_traffic(1).records_between(T0, T0 + 200)
    send(broker.bootstrap_servers, settings.topic, records, Random(1))
    run_tick(settings)
    with open_workshop(settings) as shop:
        admit(shop, 0, EVER)
        withdraw(shop, 0, EVER)
    with open_workshop(settings) as shop:
        forward(shop.ledger, shop.lake, KafkaSink(settings, settings.refined_topic))
    there = accepted(settings)
    assert len(list(read_topic(broker.bootstrap_servers, settings.refined_topic))) > len(there)
    assert compile_it[0] == "python"
    subprocess.run(
        [sys.executable, *(str(DOCS) if word == "docs" else word for word in compile_it[1:])], cwd=tmp_path, check=True
    )
    (tmp_path / "read.py").write_text(script.replace("timeout=10", "timeout=4"))
    command = [sys.executable, "read.py", broker.bootstrap_servers, settings.refined_topic]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    users = {uid for _, uid, _ in there.values()}
    assert done.stdout == f"{len(there)} frames of {len(users)} users\n", done.stderr
