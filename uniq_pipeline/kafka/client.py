"""Connection options from the settings, and errors in our words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError, SettingError, TopicMissing
from uniq_pipeline.kafka.refusals import Refusals
from uniq_pipeline.setting_sources import variable_of

# librdkafka's option, by the setting it comes from
SECURITY_OPTIONS = {
    "kafka_sasl_mechanism": "sasl.mechanism",
    "kafka_sasl_username": "sasl.username",
    "kafka_sasl_password": "sasl.password",
    "kafka_ssl_ca_location": "ssl.ca.location",
    "kafka_ssl_certificate_location": "ssl.certificate.location",
    "kafka_ssl_key_location": "ssl.key.location",
    "kafka_ssl_key_password": "ssl.key.password",
}

# librdkafka tries a broker that refuses us again and again until its time is over, and says why only when it is
# polled. So it is given this long first, and more each time that nobody has answered or refused.
FIRST_TRY_S = 0.5


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
    if settings.kafka_uses_tls:
        # librdkafka's own defaults, said here because nothing may turn them off
        options |= {"enable.ssl.certificate.verification": True, "ssl.endpoint.identification.algorithm": "https"}
    for name, option in SECURITY_OPTIONS.items():
        value = getattr(settings, name)
        if value is not None:
            options[option] = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
    return options


def connect_admin(settings: Settings) -> tuple[AdminClient, Refusals]:
    """A client for questions, which connects when it is asked one, and what brokers have against it."""
    refusals = Refusals(settings)
    return AdminClient({**connection_options(settings), **refusals.options(with_logs=True)}), refusals


def list_topics(settings: Settings, admin: AdminClient, refusals: Refusals, doing: str) -> ClusterMetadata:
    """All topics and brokers. Raises BrokerError at once when brokers refuse us, KafkaException when none answers."""
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        left = settings.kafka_timeout_s - passed
        patience = max(FIRST_TRY_S, passed)
        known, error = _asked(admin, patience if left > 2 * patience else max(left, 0.1))
        admin.poll(0 if known else 0.05)
        if known:
            refusals.forget()
            return known
        refusals.raise_if_any(doing)
        if error and time.monotonic() - began >= settings.kafka_timeout_s:
            raise error


def _asked(admin: AdminClient, timeout_s: float) -> tuple[ClusterMetadata | None, KafkaException | None]:
    """An answer or an error: a refusal that is raised instead of the error must not have it for a cause."""
    try:
        return admin.list_topics(timeout=timeout_s), None
    except KafkaException as error:
        return None, error


@contextmanager
def broker_errors(settings: Settings, doing: str) -> Iterator[None]:
    """Turns librdkafka's exceptions into ours; names the brokers and what was being done, never a secret."""
    try:
        yield
    except KafkaException as error:
        raise _in_our_words(error, settings, doing) from None
    except SystemError:
        # What the client makes of Ctrl-C that comes while it is in a callback of ours; they raise nothing themselves.
        raise KeyboardInterrupt from None


def _in_our_words(error: KafkaException, settings: Settings, doing: str) -> Exception:
    cause = error.args[0]
    code = cause.code() if isinstance(cause, KafkaError) else None
    text = settings.without_secrets(cause.str() if isinstance(cause, KafkaError) else str(error))
    brokers = settings.kafka_bootstrap_servers
    if code == KafkaError._INVALID_ARG:
        for name, option in SECURITY_OPTIONS.items():
            if f"{option} failed" in text:
                hint = f" or {variable_of('kafka_ssl_key_password')}" if name == "kafka_ssl_key_location" else ""
                return SettingError(f"setting {variable_of(name)}{hint}: {getattr(settings, name)}: {text}")
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return TopicMissing(f"{doing}: Kafka at {brokers} has no such topic: {text}")
    if code in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE):
        return BrokerError(
            f"{doing}: Kafka at {brokers} did not answer within {settings.kafka_timeout_s:g} s: {text}; "
            f"see {variable_of('kafka_bootstrap_servers')}"
        )
    return BrokerError(f"{doing}: Kafka at {brokers} refused: {text}")
