"""Connection options from the settings, and errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, TopicMissing


def connection_options(settings: Settings) -> dict[str, Any]:
    """librdkafka options common to every client of ours."""
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": "uniq-pipeline",
        "security.protocol": settings.kafka_security_protocol,
        "socket.timeout.ms": int(settings.kafka_timeout_s * 1000),
        # librdkafka prints connection attempts to stderr by itself; what matters reaches the user as an error
        "log_level": 2,
    }
    if settings.kafka_sasl_mechanism:
        options["sasl.mechanism"] = settings.kafka_sasl_mechanism
    if settings.kafka_sasl_username is not None:
        options["sasl.username"] = settings.kafka_sasl_username
    if settings.kafka_sasl_password is not None:
        options["sasl.password"] = settings.kafka_sasl_password.get_secret_value()
    if settings.kafka_ssl_ca_location is not None:
        options["ssl.ca.location"] = str(settings.kafka_ssl_ca_location)
    return options


@contextmanager
def broker_errors(settings: Settings, doing: str) -> Iterator[None]:
    """Turns librdkafka's exceptions into ours; names the brokers and what was being done, never a secret."""
    try:
        yield
    except KafkaException as error:
        cause = error.args[0]
        code = cause.code() if isinstance(cause, KafkaError) else None
        text = cause.str() if isinstance(cause, KafkaError) else str(error)
        brokers = settings.kafka_bootstrap_servers
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise TopicMissing(f"{doing}: Kafka at {brokers} has no such topic: {text}") from None
        if code in (
            KafkaError._TRANSPORT,
            KafkaError._ALL_BROKERS_DOWN,
            KafkaError._TIMED_OUT,
            KafkaError._RESOLVE,
        ):
            raise BrokerError(
                f"{doing}: Kafka at {brokers} did not answer within {settings.kafka_timeout_s:g} s: {text}; "
                f"see UNIQ_KAFKA_BOOTSTRAP_SERVERS"
            ) from None
        raise BrokerError(f"{doing}: Kafka at {brokers} refused: {text}") from None
