"""Reading a topic by offsets. Which offsets, the ledger says; the consumer group is never asked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, OffsetsLost, TopicMissing
from uniq_pipeline.kafka.client import broker_errors, connect_admin, connection_options, list_topics
from uniq_pipeline.kafka.embedded import EMBEDDED_CLUSTER
from uniq_pipeline.kafka.refusals import Refusals
from uniq_pipeline.offsets import Extent, OffsetRange, TopicState, topic_of
from uniq_pipeline.records import NO_TIME, Records

# Chunks of this many messages stay in the cache between the calls that take them apart (measured best for
# frames of 2 kB; small ones gain 5% from 1,000).
CHUNK = 500


class KafkaSource:
    """A topic to read. Opens no connection until it is asked something.

    The settings may name one of the topic's logs (see offsets): Kafka is asked for the topic.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.topic = settings.topic
        self._name = topic_of(settings.topic)
        self._admin: tuple[AdminClient, Refusals] | None = None

    def describe(self) -> TopicState:
        """The topic's id and what its partitions hold. Raises TopicMissing or BrokerError."""
        topic = self._name
        with broker_errors(self._settings, doing := f"topic {topic}"):
            if self._admin is None:
                self._admin = connect_admin(self._settings)
            admin, refusals = self._admin
            # all topics, because asking for one by name may create it; it is also the quick "broker is down"
            known = list_topics(self._settings, admin, refusals, doing)
            if topic not in known.topics:
                raise TopicMissing(
                    f"topic {topic} does not exist at {self._settings.kafka_bootstrap_servers}; see UNIQ_TOPIC"
                )
            partitions = [TopicPartition(topic, p) for p in known.topics[topic].partitions]
            topic_id = self._topic_id(admin, known.cluster_id)
            low = self._offsets(admin, partitions, OffsetSpec.earliest())
            # with read_committed, "latest" is the last stable offset: open transactions lie beyond it
            stable = self._offsets(admin, partitions, OffsetSpec.latest())
            high = self._offsets(admin, partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)
        # asked for later, so never below: a transaction that ends in between moves the stable offset only
        extents = {p: Extent(low[p], stable[p], max(high[p], stable[p])) for p in sorted(low)}
        return TopicState(self.topic, topic_id, extents)

    def _topic_id(self, admin: AdminClient, cluster_id: str | None) -> str:
        if (cluster_id or "").startswith(EMBEDDED_CLUSTER):
            # The embedded broker answers no DescribeTopics; each start of it is another cluster.
            return f"{cluster_id}/{self._name}"
        timeout = self._settings.kafka_timeout_s
        found = admin.describe_topics(TopicCollection([self._name]), request_timeout=timeout)
        topic_id = found[self._name].result(timeout + 1).topic_id
        return "" if topic_id is None else str(topic_id)

    def _offsets(
        self,
        admin: AdminClient,
        partitions: list[TopicPartition],
        spec: OffsetSpec,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[int, int]:
        timeout = self._settings.kafka_timeout_s
        asked = admin.list_offsets(
            {partition: spec for partition in partitions},
            isolation_level=isolation,
            request_timeout=timeout,
        )
        offsets = {partition.partition: future.result(timeout + 1).offset for partition, future in asked.items()}
        untold = sorted(p for p, offset in offsets.items() if offset < 0)
        if untold:  # "invalid", without any error: it would be taken for the end of a truncated log
            raise BrokerError(
                f"topic {self._name}: Kafka at {self._settings.kafka_bootstrap_servers} told no offsets of topic "
                f"partitions {untold}, as when their leaders are changing; the next run asks again"
            )
        return offsets

    def read(self, ranges: Sequence[OffsetRange]) -> Iterator[Records]:
        """Reads the ranges, partitions interleaved as they come.

        Ends when the consumer's position has reached the end of every range. The position, not "the record
        before the end": control records and compaction gaps have no record to wait for. Each range is left
        exactly at its end or, where the log has a gap there, just past it.

        Raises BrokerError where a record cannot be read (a failed CRC, no leader for too long), and OffsetsLost where
        the broker no longer has it; what was before it has been yielded.
        """
        remaining = {r.kafka_partition: r.end_offset for r in ranges if r.size > 0}
        if not remaining:
            return
        starts = [TopicPartition(self._name, r.kafka_partition, r.start_offset) for r in ranges if r.size > 0]
        refusals = Refusals(self._settings)
        consumer = Consumer(
            {
                **connection_options(self._settings),
                **refusals.options(),
                "group.id": self._settings.consumer_group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",  # "earliest" would skip expired records without a word
                "enable.partition.eof": True,
                "check.crcs": True,
                "fetch.wait.max.ms": 10,
                "fetch.queue.backoff.ms": 5,  # the default of a second stalls a full queue
            }
        )
        try:
            with broker_errors(self._settings, f"topic {self._name}"):
                # all at once: each later switch costs 500 ms
                consumer.assign(starts)
                yield from self._poll(consumer, remaining, refusals)
        finally:
            consumer.close()

    def _poll(self, consumer: Consumer, remaining: dict[int, int], refusals: Refusals) -> Iterator[Records]:
        patience = self._settings.kafka_timeout_s
        last_news = time.monotonic()
        while remaining:
            messages = consumer.consume(CHUNK, 0.05)  # waits for a full chunk, or this long
            if not messages:
                if time.monotonic() - last_news > patience:
                    refusals.raise_if_any(f"topic {self._name}")
                    raise BrokerError(
                        f"topic {self._name}: no records for {patience:g} s, with topic partitions "
                        f"{sorted(remaining)} not read to the end; what was read is counted, the rest is read next time"
                    )
                continue
            for run in _by_partition(messages):
                end = remaining.get(run[0].partition())
                if end is None:
                    continue  # fetched ahead; it belongs to the next drain
                last_news = time.monotonic()
                records, failed = self._records(run)
                if records.offsets and records.offsets[-1] >= end:
                    records = _cut(records, end)
                if records.next_offset >= end:
                    del remaining[records.kafka_partition]
                    # otherwise what goes on being produced there is fetched for nothing, at the others' cost
                    consumer.pause([TopicPartition(self._name, records.kafka_partition)])
                if records.next_offset >= 0:
                    yield records
                if failed is not None and records.kafka_partition in remaining:
                    raise failed

    def _records(self, run: list[Message]) -> tuple[Records, Exception | None]:
        """The records of a run of one topic partition, up to the first that could not be read; and why it could not."""
        kafka_partition, next_offset, failed = run[0].partition(), -1, None
        good = []
        for message in run:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                next_offset = message.offset()
            else:
                failed = self._failure(message, error)
                break
        offsets = [message.offset() for message in good]
        times = [message.timestamp() for message in good]
        if offsets:
            next_offset = max(next_offset, offsets[-1] + 1)
        return Records(
            kafka_partition,
            offsets,
            [NO_TIME if kind == TIMESTAMP_NOT_AVAILABLE else time_ms for kind, time_ms in times],
            [message.value() for message in good],
            next_offset,
        ), failed

    def _failure(self, message: Message, error: KafkaError) -> Exception:
        where = f"topic {self._name}, topic partition {message.partition()}, offset {message.offset()}"
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            return OffsetsLost(f"{where}: the broker no longer has this offset: {error.str()}")
        if error.code() == KafkaError._BAD_MSG:
            return BrokerError(
                f"{where}: the records from there on are damaged on the broker: {error.str()}. What was before them is "
                f"counted. Where no replica has them whole, go on without them, and record that: `uniq-pipeline "
                f"skip-lost {self._name} --partition {message.partition()} --to OFFSET`."
            )
        return KafkaException(KafkaError(error.code(), f"{where}: {error.str()}"))

    def commit_for_lag_tools(self, next_offsets: dict[int, int]) -> None:
        """Tells the consumer group how far the ledger is, so that lag tools show the truth. Never read back.

        Failing to is not worth failing a drain for: the next one says it again.
        """
        options: dict[str, Any] = {
            **connection_options(self._settings),
            "group.id": self._settings.consumer_group,
            "enable.auto.commit": False,
        }
        consumer = Consumer(options)
        try:
            consumer.commit(
                offsets=[TopicPartition(self._name, p, offset) for p, offset in next_offsets.items()],
                asynchronous=False,
            )
        except KafkaException:
            pass
        finally:
            consumer.close()


def _by_partition(messages: list[Message]) -> Iterator[list[Message]]:
    """Messages arrive in runs of one topic partition."""
    start = 0
    partitions = [message.partition() for message in messages]
    for i in range(1, len(messages) + 1):
        if i == len(messages) or partitions[i] != partitions[start]:
            yield messages[start:i]
            start = i


def _cut(records: Records, end: int) -> Records:
    """Only the records before `end`, and the position there."""
    keep = next(i for i, offset in enumerate(records.offsets) if offset >= end)
    return Records(
        records.kafka_partition,
        records.offsets[:keep],
        records.kafka_times_ms[:keep],
        records.payloads[:keep],
        end,
    )
