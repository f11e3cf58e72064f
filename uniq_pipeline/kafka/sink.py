"""Writing to Kafka: results from the outbox, accepted frames, and demo frames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, TopicMissing
from uniq_pipeline.kafka.client import broker_errors, connection_options
from uniq_pipeline.kafka.refusals import Refusals

# A broker that refuses us is noticed after so long, and not when the time of all messages is over.
LOOK_EVERY_S = 0.5

# Messages of one call into the client: calls for each would take half as long again. Its queue takes 100,000.
CHUNK = 5_000
QUEUED_AT_MOST = 50_000

# Above what topics take unless told otherwise, so that it is the topic that decides.
LARGEST_BYTES = 16 << 20


class KafkaSink:
    """A producer that says which messages the brokers have acknowledged.

    Idempotent, so its own retries neither double nor reorder; zstd, because frames and states repeat a lot. A key goes
    to the topic partition where the Java clients put it, for those who join topics by key.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings = settings
        self.topic = topic
        self._failures: list[str] = []
        self._refusals = Refusals(settings)
        with broker_errors(settings, f"topic {topic}"):
            self._producer = Producer(
                {
                    **connection_options(settings),
                    **self._refusals.options(),
                    "enable.idempotence": True,
                    "compression.type": "zstd",
                    "linger.ms": 20,
                    "message.timeout.ms": int(settings.kafka_timeout_s * 1000),
                    "message.max.bytes": LARGEST_BYTES,
                    "partitioner": "murmur2_random",
                    "delivery.report.only.error": True,  # of the others the flush knows
                }
            )

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        """Sends (key, value) pairs and waits until the brokers have all of them; returns how many.

        Raises BrokerError when any was not acknowledged; some of the others may have been.
        """
        self._failures.clear()
        sent, rest = 0, iter(messages)
        with broker_errors(self._settings, f"topic {self.topic}"):
            while chunk := [{"key": key, "value": value} for key, value in islice(rest, CHUNK)]:
                self._produce(chunk)
                sent += len(chunk)
            left = self._flush()
            if self._failures or left:
                self._raise_if_missing()
        if self._failures or left:
            reason = self._failures[0] if self._failures else "no acknowledgement in time"
            raise BrokerError(
                f"topic {self.topic} at {self._settings.kafka_bootstrap_servers}: "
                f"{len(self._failures) + left} of {sent} messages were not acknowledged: {reason}"
            )
        return sent

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Sends frames without keys, so that they spread over the topic partitions."""
        return self.send((None, frame) for frame in frames)

    def _flush(self) -> int:
        """Waits until every message is acknowledged or given up; returns how many are neither when time is over."""
        give_up_at = time.monotonic() + self._settings.kafka_timeout_s + 1
        before = len(self._producer)
        while left := self._producer.flush(LOOK_EVERY_S):
            if left < before:
                self._refusals.forget()  # somebody takes them
            self._refusals.raise_if_any(f"topic {self.topic}")
            if time.monotonic() > give_up_at:
                break
            before = left
        return left

    def _raise_if_missing(self) -> None:
        """A topic that nobody made: librdkafka would wait for it, and only say that time was over."""
        try:
            known = self._producer.list_topics(timeout=1).topics
        except KafkaException:
            return  # nobody is there to ask, which is what is said
        if self.topic not in known:
            brokers = self._settings.kafka_bootstrap_servers
            raise TopicMissing(
                f"topic {self.topic} does not exist at {brokers}; see docs/results-topic.md for making it"
            )

    def _produce(self, chunk: list[dict[str, Any]]) -> None:
        while len(self._producer) > QUEUED_AT_MOST:  # let deliveries drain it
            self._producer.poll(0.1)
        self._producer.produce_batch(self.topic, chunk, on_delivery=self._delivered)
        self._failures += [message["_error"].str() for message in chunk if "_error" in message]
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(KafkaException(error).args[0].str())
