"""Settings of the connection to Kafka: where, with which security, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

from uniq_pipeline.setting_sources import variable_of

# What begins a private key that nobody can use without its password: PKCS#8, and the older form.
ENCRYPTED_KEY = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")


class ConnectionSettings(BaseSettings):
    """How Kafka is reached. Whoever presents no valid certificate for the name in the address is never talked to."""

    kafka_bootstrap_servers: str = Field(
        "localhost:9092", min_length=1, description="Kafka brokers, host:port, comma-separated."
    )
    kafka_timeout_s: float = Field(
        10.0, ge=0.5, le=300, description="Seconds without an answer after which the broker counts as down."
    )
    kafka_security_protocol: str = Field(
        "PLAINTEXT",
        pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
    )
    kafka_sasl_mechanism: str | None = Field(
        None,
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
    )
    kafka_sasl_username: str | None = Field(None, min_length=1, description="SASL user name.")
    kafka_sasl_password: SecretStr | None = Field(None, min_length=1, description="SASL password.")
    kafka_ssl_ca_location: Path | None = Field(
        None,
        description="PEM file of the authorities that sign the brokers' certificates; default: those of the system.",
    )
    kafka_ssl_certificate_location: Path | None = Field(
        None, description="PEM file of our own certificate and its chain, for brokers that demand one (mTLS)."
    )
    kafka_ssl_key_location: Path | None = Field(None, description="PEM file of the private key of our certificate.")
    kafka_ssl_key_password: SecretStr | None = Field(
        None, min_length=1, description="Password of the private key, where it is encrypted."
    )

    @property
    def kafka_uses_tls(self) -> bool:
        return self.kafka_security_protocol in ("SSL", "SASL_SSL")

    @property
    def kafka_uses_sasl(self) -> bool:
        return self.kafka_security_protocol.startswith("SASL_")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        problems = [*self._sasl_problems(), *self._tls_problems(), *self._file_problems()]
        if problems:
            raise ValueError("\n".join(f"setting {variable_of(name)}: {problem}" for name, problem in problems))
        return self

    def _sasl_problems(self) -> Iterator[tuple[str, str]]:
        protocol = f"{variable_of('kafka_security_protocol')}={self.kafka_security_protocol}"
        for name in ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"):
            given = getattr(self, name) is not None
            if self.kafka_uses_sasl and not given:
                yield name, f"missing; {protocol} needs it"
            if given and not self.kafka_uses_sasl:
                yield name, f"not used with {protocol}; SASL_SSL uses it, or take it away"

    def _tls_problems(self) -> Iterator[tuple[str, str]]:
        protocol = f"{variable_of('kafka_security_protocol')}={self.kafka_security_protocol}"
        certificate, key = "kafka_ssl_certificate_location", "kafka_ssl_key_location"
        for name in ("kafka_ssl_ca_location", certificate, key, "kafka_ssl_key_password"):
            if getattr(self, name) is not None and not self.kafka_uses_tls:
                yield name, f"not used with {protocol}; SSL and SASL_SSL use it, or take it away"
        for name, other in ((certificate, key), (key, certificate), (key, "kafka_ssl_key_password")):
            if getattr(self, name) is None and getattr(self, other) is not None:
                yield name, f"missing; {variable_of(other)} is given, and means nothing without it"

    def _file_problems(self) -> Iterator[tuple[str, str]]:
        for name in ("kafka_ssl_ca_location", "kafka_ssl_certificate_location", "kafka_ssl_key_location"):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                yield name, f"{path} cannot be read: {error.strerror}"
                continue
            if b"-----BEGIN " not in content:
                yield name, f"{path} is no PEM file"
            elif name == "kafka_ssl_key_location" and any(mark in content for mark in ENCRYPTED_KEY):
                if self.kafka_ssl_key_password is None:
                    yield "kafka_ssl_key_password", f"missing; the key in {path} is encrypted"
