"""Writing to Kafka: results from the outbox, and demo frames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError
from uniq_pipeline.kafka.client import broker_errors, connection_options
from uniq_pipeline.kafka.refusals import Refusals

# A broker that refuses us is noticed after so long, and not when the time of all messages is over.
LOOK_EVERY_S = 0.5


class KafkaSink:
    """A producer that says which messages the brokers have acknowledged.

    Idempotent, so its own retries neither double nor reorder; zstd, because frames and states repeat a lot.
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
                }
            )

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        """Sends (key, value) pairs and waits until the brokers have all of them; returns how many.

        Raises BrokerError when any was not acknowledged; some of the others may have been.
        """
        self._failures.clear()
        sent = 0
        with broker_errors(self._settings, f"topic {self.topic}"):
            for key, value in messages:
                self._produce(key, value)
                sent += 1
            left = self._flush()
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
        while left := self._producer.flush(LOOK_EVERY_S):
            self._refusals.raise_if_any(f"topic {self.topic}")
            if time.monotonic() > give_up_at:
                break
        return left

    def _produce(self, key: bytes | None, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self.topic, value=value, key=key, on_delivery=self._delivered)
                self._producer.poll(0)
                return
            except BufferError:  # the local queue is full: let deliveries drain it
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._refusals.forget()
        else:
            self._failures.append(KafkaException(error).args[0].str())
