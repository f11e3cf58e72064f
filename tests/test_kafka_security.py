"""Connections to brokers that demand TLS, a login or a client certificate: they work, and refusals say why (27, 67).

The brokers are real; what they refuse, and how librdkafka tells of it, no fake would have.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from support.dagster_run import definitions
from support.kafka.cluster import Cluster, Security, running_cluster
from support.kafka.pem import make_authority, sign
from support.ticks import run_tick

from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.errors import BrokerError, SettingError
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.overview import overview

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[1]

USER, PASSWORD, KEY_PASSWORD = "uniq", "Xk4-nobody-reads-this", "Yk5-nor-this"
SECRETS = (PASSWORD, KEY_PASSWORD, "Zk6-a-wrong-one")
WRONG = SECRETS[2]

# What is refused is told long before the time to answer is over.
TIMEOUT_S = 20.0
SOON_S = 5.0


@pytest.fixture(scope="module")
def pem() -> Iterator[Path]:
    """An authority with a server and two clients, and in `other/` an authority that no broker knows."""
    with tempfile.TemporaryDirectory(prefix="uniq-test-pem-") as name:
        folder = make_authority(Path(name))
        sign(folder, "server")
        sign(folder, "client")
        sign(folder, "sealed", password=KEY_PASSWORD)
        sign(make_authority(folder / "other"), "client")
        yield folder


@pytest.fixture(scope="module")
def sasl(pem: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker that demands TLS and a login."""
    security = Security("SASL_SSL", pem, {USER: PASSWORD})
    with running_cluster(tmp_path_factory.mktemp("sasl"), security=security) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def mutual(pem: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker that demands TLS and a certificate of the client."""
    security = Security("SSL", pem, mutual=True)
    with running_cluster(tmp_path_factory.mktemp("mutual"), security=security) as cluster:
        yield cluster


Secured = Callable[..., Settings]


@pytest.fixture
def with_login(make_settings: Callable[..., Settings], sasl: Cluster, pem: Path) -> Secured:
    """Settings that the first broker accepts, but for what is given; None takes a setting away."""
    right = {
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": USER,
        "kafka_sasl_password": PASSWORD,
        "kafka_ssl_ca_location": pem / "ca.pem",
    }
    return _settings_of(make_settings, sasl, right)


@pytest.fixture
def with_certificate(make_settings: Callable[..., Settings], mutual: Cluster, pem: Path) -> Secured:
    """Settings that the second broker accepts, but for what is given."""
    right = {
        "kafka_security_protocol": "SSL",
        "kafka_ssl_ca_location": pem / "ca.pem",
        "kafka_ssl_certificate_location": pem / "client.crt",
        "kafka_ssl_key_location": pem / "client.key",
    }
    return _settings_of(make_settings, mutual, right)


def _settings_of(make_settings: Callable[..., Settings], cluster: Cluster, right: dict[str, Any]) -> Secured:
    def make(**changed: Any) -> Settings:
        where = {"kafka_bootstrap_servers": cluster.bootstrap_servers, "kafka_timeout_s": TIMEOUT_S}
        given = {name: value for name, value in {**right, **changed}.items() if value is not None}
        return make_settings(**{**where, **given})

    return make


def refused(settings: Settings, ask: Callable[[Settings], object] | None = None) -> str:
    """What is said when Kafka is asked something: soon, with the broker's address, without a secret."""
    began = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        (ask or (lambda settings: KafkaSource(settings).describe()))(settings)
    message = str(caught.value)
    assert time.monotonic() - began < SOON_S, message
    assert settings.kafka_bootstrap_servers in message
    assert not any(secret in message for secret in SECRETS)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "no cause that could tell more"
    return message


def tick_of_three(settings: Settings, cluster: Cluster) -> None:
    """Sends three frames with the settings' security, and reads, counts and publishes them with it."""
    cluster.create_topic(settings.topic)
    cluster.create_topic("results-" + settings.topic, cleanup_policy="compact")
    settings = settings.model_copy(update={"results_topic": "results-" + settings.topic})
    sink = KafkaSink(settings, settings.topic)
    assert sink.send_frames([b'{"ts": 1704067200, "uid": "%d"}' % i for i in range(3)]) == 3
    report = run_tick(settings)
    assert report.drain and report.drain.frames == 3 and report.published > 0
    ledger = Ledger(settings.effective_ledger_url)
    assert overview(ledger).lag == 0
    ledger.close()


# What is right works.


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_tick_works_with_tls_and_a_login(with_login, sasl, mechanism):
    tick_of_three(with_login(kafka_sasl_mechanism=mechanism), sasl)


@pytest.mark.parametrize("name", ["client", "sealed"])
def test_a_tick_works_with_a_certificate_of_the_client_and_an_encrypted_key(with_certificate, mutual, pem, name):
    sealed = {"kafka_ssl_key_password": KEY_PASSWORD} if name == "sealed" else {}
    certificate = {"kafka_ssl_certificate_location": pem / f"{name}.crt", "kafka_ssl_key_location": pem / f"{name}.key"}
    tick_of_three(with_certificate(**certificate, **sealed), mutual)


@pytest.fixture
def in_environment(with_login: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Secured:
    """What puts settings into the environment, as a container has them: the password in a mounted file."""

    def put(password: str, **changed: Any) -> Settings:
        settings = with_login(**changed)
        for name in settings.model_fields_set - {"kafka_sasl_password"}:
            value = getattr(settings, name)
            monkeypatch.setenv(f"UNIQ_{name.upper()}", "" if value is None else str(value))
        (tmp_path / "password").write_text(password + "\n")
        monkeypatch.setenv("UNIQ_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "password"))
        return load_settings()

    return put


def test_67_a_password_in_a_mounted_file_is_a_login(in_environment, sasl):
    settings = in_environment(PASSWORD)
    sasl.create_topic(settings.topic)
    assert KafkaSource(settings).describe().topic == settings.topic


def test_67_a_run_that_is_refused_leaves_no_secret_in_what_dagster_keeps(in_environment, monkeypatch, tmp_path, capfd):
    """Run, events, metadata, errors with their causes: all that is stored and printed is looked through."""
    settings = in_environment(WRONG)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as instance:
        job = definitions().resolve_job_def("tick")
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    kept = b"".join(path.read_bytes() for path in [*home.rglob("*"), *settings.data_dir.rglob("*")] if path.is_file())
    assert b"refused the login of user uniq" in kept, "the reason is kept"
    printed = "".join(capfd.readouterr())
    assert WRONG.encode() not in kept and WRONG not in printed


# What is wrong is refused, and the reason told.


@pytest.mark.parametrize("ask", [None, lambda settings: KafkaSink(settings, "any").send([(b"k", b"v")])])
def test_27_a_wrong_password_names_the_user_and_the_setting(with_login, ask):
    message = refused(with_login(kafka_sasl_password=WRONG), ask)
    assert f"refused the login of user {USER}" in message
    assert "UNIQ_KAFKA_SASL_PASSWORD" in message and "UNIQ_KAFKA_SASL_USERNAME" in message


def test_27_a_mechanism_that_the_broker_has_not_names_the_setting(with_login):
    message = refused(with_login(kafka_sasl_mechanism="PLAIN"))
    assert "refused the mechanism PLAIN" in message and "UNIQ_KAFKA_SASL_MECHANISM" in message
    assert "SCRAM-SHA-512" in message, "and what the broker has"


def test_27_a_certificate_of_an_unknown_authority_names_the_file(with_login, pem):
    other = pem / "other" / "ca.pem"
    message = refused(with_login(kafka_ssl_ca_location=other))
    assert f"not signed by an authority of {other}" in message and "UNIQ_KAFKA_SSL_CA_LOCATION" in message


def test_27_without_an_authority_those_of_the_system_are_asked(with_login):
    assert "not signed by an authority of the system" in refused(with_login(kafka_ssl_ca_location=None))


def test_27_a_certificate_for_another_name_of_the_host_is_refused(with_login, sasl):
    """The broker's certificate is for 127.0.0.1 only."""
    address = sasl.bootstrap_servers.replace("127.0.0.1", "localhost")
    message = refused(with_login(kafka_bootstrap_servers=address))
    assert "is for another host name" in message and "UNIQ_KAFKA_BOOTSTRAP_SERVERS" in message


def test_27_a_missing_client_certificate_is_asked_for(with_certificate):
    message = refused(with_certificate(kafka_ssl_certificate_location=None, kafka_ssl_key_location=None))
    assert "without a client certificate" in message and "UNIQ_KAFKA_SSL_CERTIFICATE_LOCATION" in message


def test_27_a_client_certificate_of_an_unknown_authority_is_named(with_certificate, pem):
    other = pem / "other"
    message = refused(
        with_certificate(
            kafka_ssl_certificate_location=other / "client.crt", kafka_ssl_key_location=other / "client.key"
        )
    )
    assert str(other / "client.crt") in message and "UNIQ_KAFKA_SSL_CERTIFICATE_LOCATION" in message


def test_27_plaintext_to_a_port_of_tls_names_the_protocol(make_settings, mutual):
    settings = make_settings(kafka_bootstrap_servers=mutual.bootstrap_servers, kafka_timeout_s=TIMEOUT_S)
    message = refused(settings)
    assert "hangs up" in message and "UNIQ_KAFKA_SECURITY_PROTOCOL, which is PLAINTEXT" in message


def test_27_tls_to_a_port_of_plaintext_names_the_protocol(with_certificate, mutual):
    message = refused(with_certificate(kafka_bootstrap_servers=mutual.inside_servers))
    assert "does not speak TLS" in message and "UNIQ_KAFKA_SECURITY_PROTOCOL is SSL" in message


def test_27_no_login_where_one_is_demanded_names_the_protocol(with_login):
    nobody = dict.fromkeys(("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"))
    message = refused(with_login(kafka_security_protocol="SSL", **nobody))
    assert "expects TLS or a login" in message and "UNIQ_KAFKA_SECURITY_PROTOCOL, which is SSL" in message


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"kafka_ssl_key_password": WRONG}, "UNIQ_KAFKA_SSL_KEY_PASSWORD"),
        ({"kafka_ssl_key_location": "server.key", "kafka_ssl_key_password": None}, "UNIQ_KAFKA_SSL_KEY_LOCATION"),
        ({"kafka_ssl_ca_location": "empty.pem"}, "UNIQ_KAFKA_SSL_CA_LOCATION"),
        ({"kafka_ssl_certificate_location": "empty.pem"}, "UNIQ_KAFKA_SSL_CERTIFICATE_LOCATION"),
    ],
    ids=["wrong key password", "key of another certificate", "no authority in it", "no certificate in it"],
)
def test_27_a_file_that_tls_cannot_use_names_its_setting(with_certificate, pem, changed, named):
    (pem / "empty.pem").write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    sealed = {
        "kafka_ssl_certificate_location": "sealed.crt",
        "kafka_ssl_key_location": "sealed.key",
        "kafka_ssl_key_password": KEY_PASSWORD,
    }
    given = {
        name: pem / value if value is not None and name.endswith("_location") else value
        for name, value in {**sealed, **changed}.items()
    }
    with pytest.raises(SettingError, match=named) as caught:
        KafkaSource(with_certificate(**given)).describe()
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_broker_that_is_down_is_still_said_to_be_down(with_certificate):
    settings = with_certificate(kafka_bootstrap_servers="127.0.0.1:1", kafka_timeout_s=1.5)
    with pytest.raises(BrokerError, match=r"127.0.0.1:1 did not answer within 1.5 s"):
        KafkaSource(settings).describe()


def test_a_broker_that_refuses_beside_one_that_answers_is_not_in_the_way(with_login, sasl, mutual):
    """As while certificates are renewed broker by broker."""
    settings = with_login(kafka_bootstrap_servers=f"{mutual.bootstrap_servers},{sasl.bootstrap_servers}")
    sasl.create_topic(settings.topic)
    assert KafkaSource(settings).describe().extents
