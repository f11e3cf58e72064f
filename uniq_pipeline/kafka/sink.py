"""Writing to Kafka: results from the outbox, and demo frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError
from uniq_pipeline.kafka.client import broker_errors, connection_options


class KafkaSink:
    """A producer that says which messages the brokers have acknowledged.

    Idempotent, so its own retries neither double nor reorder; zstd, because frames and states repeat a lot.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings = settings
        self.topic = topic
        self._failures: list[str] = []
        with broker_errors(settings, f"topic {topic}"):
            self._producer = Producer(
                {
                    **connection_options(settings),
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
            left = self._producer.flush(self._settings.kafka_timeout_s + 1)
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

    def _produce(self, key: bytes | None, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self.topic, value=value, key=key, on_delivery=self._delivered)
                self._producer.poll(0)
                return
            except BufferError:  # the local queue is full: let deliveries drain it
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(KafkaException(error).args[0].str())
