"""Brokers that turn a connection down: by whom, why, and the setting that mends it.

librdkafka takes every refused connection for one that may succeed the next time, and what was asked of it runs into its
timeout. Why, it says beside that: to the error callback, and where a broker just hangs up, in its log only.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from confluent_kafka import KafkaError

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError
from uniq_pipeline.setting_sources import variable_of

# `sasl_ssl://host:9093/bootstrap: what happened (after 12ms in state CONNECT)`
SAID = re.compile(r"(?:[a-z_]+://)?(?P<broker>[^/\s]+)/[^:\s]+: (?P<what>.*?)(?: \(after .*)?$", re.DOTALL)

# A broker that restarts may hang up once, or twice; one that expects something else does each time.
OFTEN = 3


class Refusals:
    """What a client's brokers have against it. One for each client, whose `options()` it is given."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refused = ""
        self._hung_up: dict[str, int] = {}

    def options(self, *, with_logs: bool = False) -> dict[str, Any]:
        """librdkafka options. Nothing is heard unless the client is polled."""
        options: dict[str, Any] = {"error_cb": self._on_error}
        if with_logs:
            logger = logging.Logger("librdkafka")
            logger.addHandler(_Listener(self))
            options |= {"logger": logger, "log_level": 6}  # informational: that a broker hung up
        return options

    def raise_if_any(self, doing: str) -> None:
        """Raises BrokerError when a broker has refused us since the last `forget()`."""
        if not self._refused:
            often = [broker for broker, times in self._hung_up.items() if times >= OFTEN]
            if often:
                self._refused = _hung_up(self._settings, often[0])
        if self._refused:
            raise BrokerError(f"{doing}: {self._refused}")

    def forget(self) -> None:
        """To be called when a broker has answered: what others said before was no refusal of us."""
        self._refused = ""
        self._hung_up.clear()

    def _on_error(self, error: KafkaError) -> None:
        said = SAID.match(error.str())
        if said is None or self._refused:
            return
        advice = _advice(self._settings, error.code(), said["what"])
        if advice:
            what = self._settings.without_secrets(said["what"])
            self._refused = f"Kafka at {said['broker']}: {advice} ({what})"
        elif "Disconnected" in said["what"]:
            self.heard_hanging_up(said["broker"])
        elif said["what"].startswith("Connect to "):
            self._hung_up.pop(said["broker"], None)  # it was on its way down, or up

    def heard_hanging_up(self, broker: str) -> None:
        self._hung_up[broker] = self._hung_up.get(broker, 0) + 1


class _Listener(logging.Handler):
    """Keeps librdkafka's log from being written, and picks what its error callback leaves out."""

    def __init__(self, refusals: Refusals) -> None:
        super().__init__()
        self._refusals = refusals

    def emit(self, record: logging.LogRecord) -> None:
        said = SAID.search(record.getMessage().rpartition("]: ")[2])
        if said is not None and said["what"].startswith("Disconnected"):
            self._refusals.heard_hanging_up(said["broker"])


def _advice(settings: Settings, code: int, what: str) -> str:
    """What was refused and which setting mends it; nothing where it was no refusal."""
    lower = what.lower()
    if code == KafkaError._AUTHENTICATION:
        mechanism = settings.kafka_sasl_mechanism
        if "mechanism handshake failed" in lower:
            return f"refused the mechanism {mechanism}; see {variable_of('kafka_sasl_mechanism')}"
        return (
            f"refused the login of user {settings.kafka_sasl_username} by {mechanism}; see "
            f"{variable_of('kafka_sasl_username')} and {variable_of('kafka_sasl_password')}"
        )
    if "certificate verify failed" in lower:
        authority = settings.kafka_ssl_ca_location or "the system"
        return (
            f"its certificate is not signed by an authority of {authority}, or is for another host name; see "
            f"{variable_of('kafka_ssl_ca_location')} and {variable_of('kafka_bootstrap_servers')}"
        )
    if "alert" in lower and ("certificate" in lower or "unknown ca" in lower):
        certificate = variable_of("kafka_ssl_certificate_location")
        if settings.kafka_ssl_certificate_location is None:
            return f"refused a connection without a client certificate; see {certificate}"
        return f"refused the client certificate {settings.kafka_ssl_certificate_location}; see {certificate}"
    if "plaintext broker listener" in lower or "wrong version number" in lower:
        return (
            f"does not speak TLS there, and {variable_of('kafka_security_protocol')} is "
            f"{settings.kafka_security_protocol}"
        )
    if code == KafkaError._SSL:
        return f"refused TLS; see {variable_of('kafka_security_protocol')}"
    return ""


def _hung_up(settings: Settings, broker: str) -> str:
    return (
        f"Kafka at {broker}: hangs up on each connection without an answer, as it does when it expects TLS or a login; "
        f"see {variable_of('kafka_security_protocol')}, which is {settings.kafka_security_protocol}"
    )
