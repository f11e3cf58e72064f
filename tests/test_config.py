"""Settings: where they come from, which one wins, and what is said about a wrong one."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from uniq_pipeline.cli.main import root
from uniq_pipeline.config import Settings, TsUnit, VeryLate, describe_settings, load_settings
from uniq_pipeline.errors import SettingError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """No UNIQ_ variable, and no settings file in the current directory."""
    for name in os.environ:
        if name.startswith("UNIQ_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def error_of(**overrides):
    with pytest.raises(SettingError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_without_anything_the_defaults_hold():
    settings = load_settings()
    assert settings.topic == "uniq.frames" and settings.lg_k == 12 and settings.timezone == "UTC"
    assert settings.very_late is VeryLate.HOLD and settings.ts_unit is TsUnit.SECONDS
    assert settings.history_start == date(2025, 1, 1) and settings.data_dir == Path("data")


def test_a_variable_wins_over_the_file_and_an_option_over_both(monkeypatch):
    Path("uniq-pipeline.toml").write_text('topic = "from.file"\nlg_k = 10\ntimezone = "Asia/Kolkata"\n')
    monkeypatch.setenv("UNIQ_TOPIC", "from.variable")
    monkeypatch.setenv("UNIQ_LG_K", "11")
    settings = load_settings(topic="from.option")
    assert (settings.topic, settings.lg_k, settings.timezone) == ("from.option", 11, "Asia/Kolkata")


def test_an_option_that_was_not_given_overrides_nothing(monkeypatch):
    monkeypatch.setenv("UNIQ_LG_K", "11")
    assert load_settings(lg_k=None).lg_k == 11


def test_the_named_file_is_read_instead_of_the_default_one(monkeypatch, tmp_path):
    Path("uniq-pipeline.toml").write_text("lg_k = 10\n")
    (tmp_path / "other.toml").write_text("lg_k = 13\n")
    monkeypatch.setenv("UNIQ_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().lg_k == 13


def test_a_named_file_that_is_missing_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("UNIQ_CONFIG", "nowhere.toml")
    assert "nowhere.toml" in error_of() and "No such file" in error_of()


@pytest.mark.parametrize("text", [b"topic = ", b"topic = 'a'\ntopic = 'b'", b"\xff"])
def test_a_file_that_is_not_toml_is_an_error_that_names_it(text):
    Path("uniq-pipeline.toml").write_bytes(text)
    assert "uniq-pipeline.toml: not valid TOML" in error_of()


def test_an_unknown_variable_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("UNIQ_TOPCI", "x")
    assert "UNIQ_TOPCI" in error_of() and "uniq-pipeline config" in error_of()


@pytest.mark.parametrize("text", ["topci = 'x'", "[topci]\nname = 'x'"])
def test_an_unknown_key_of_the_file_is_an_error_that_names_it_and_the_file(text):
    Path("uniq-pipeline.toml").write_text(text)
    assert "topci" in error_of() and "uniq-pipeline.toml" in error_of()


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("lg_k", "22", "less than or equal to 21"),
        ("lg_k", "3", "greater than or equal to 4"),
        ("lg_k", "twelve", "integer"),
        ("lg_k", "12.5", "integer"),
        ("ts_unit", "minutes", "'s', 'ms', 'us' or 'ns'"),
        ("very_late", "drop", "'hold' or 'correct'"),
        ("timezone", "Mars/Olympus", "IANA time zone"),
        ("timezone", "../../etc/passwd", "IANA time zone"),
        ("timezone", "", "IANA time zone"),
        ("timezone", "+01:00", "IANA time zone"),
        ("history_start", "yesterday", "valid date"),
        ("allowed_lateness_s", "-1", "greater than or equal to 0"),
        ("batch_frames", "1", "greater than or equal to 100"),
        ("kafka_bootstrap_servers", "", "at least 1 character"),
        ("kafka_security_protocol", "TLS", "SASL_SSL"),
        ("kafka_timeout_s", "nan", "less than or equal to 300"),
    ],
)
def test_a_wrong_value_names_the_setting_what_was_found_and_what_is_allowed(monkeypatch, name, value, allowed):
    monkeypatch.setenv(f"UNIQ_{name.upper()}", value)
    message = error_of()
    assert f"UNIQ_{name.upper()}" in message and repr(value) in message and allowed in message


def test_every_wrong_setting_is_named_at_once(monkeypatch):
    monkeypatch.setenv("UNIQ_LG_K", "99")
    Path("uniq-pipeline.toml").write_text('timezone = "Nowhere"\n')
    assert "UNIQ_LG_K" in error_of() and "UNIQ_TIMEZONE" in error_of()


@pytest.mark.parametrize("name", ["uniq.frames", "A-Z_09.x", "...", "a", "x" * 249])
def test_65_a_topic_name_of_kafkas_alphabet_is_allowed(name):
    assert load_settings(topic=name, results_topic=name).topic == name


@pytest.mark.parametrize(
    "name", [".", "..", "x" * 250, "a/b", "../a", "a\\b", "a b", "a\n", "\u00e9", "a\0", "%2e%2e", "'; DROP TABLE"]
)
@pytest.mark.parametrize("setting", ["topic", "results_topic"])
def test_65_any_other_topic_name_is_refused(name, setting):
    message = error_of(**{setting: name})
    assert f"UNIQ_{setting.upper()}" in message and "A-Z a-z 0-9 . _ -" in message


def test_an_empty_results_topic_means_that_none_is_written(monkeypatch):
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    assert load_settings().results_topic is None


def test_an_empty_topic_is_refused(monkeypatch):
    monkeypatch.setenv("UNIQ_TOPIC", "")
    assert "a topic name is required" in error_of()


# Secrets

SECRET = "hunter2-und-noch-mehr"


LOGIN = {
    "UNIQ_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "UNIQ_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "UNIQ_KAFKA_SASL_USERNAME": "uniq",
    "UNIQ_KAFKA_SASL_PASSWORD": SECRET,
}


def set_all(monkeypatch, variables, **changed):
    """Sets variables, but for those that are changed; None leaves one out."""
    for name, value in {**variables, **changed}.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))


@pytest.fixture
def with_secrets(monkeypatch):
    set_all(monkeypatch, LOGIN)
    monkeypatch.setenv("UNIQ_LEDGER_URL", f"postgresql://uniq:{SECRET}@db/uniq")


def test_67_secrets_are_hidden_wherever_settings_are_shown(with_secrets):
    settings = load_settings()
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(describe_settings(settings))]
    assert not any(SECRET in text for text in shown)
    assert SECRET in settings.effective_ledger_url  # where it is needed it is there


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_67_the_config_command_shows_every_setting_and_no_secret(with_secrets, options):
    result = CliRunner().invoke(root, ["config", *options])
    assert result.exit_code == 0 and SECRET not in result.output
    assert all(f"UNIQ_{name.upper()}" in result.output for name in Settings.model_fields)


def test_67_errors_about_other_settings_do_not_show_secrets(with_secrets, monkeypatch):
    monkeypatch.setenv("UNIQ_LG_K", "99")
    assert SECRET not in error_of()


def test_67_errors_about_settings_that_do_not_go_together_do_not_show_secrets(with_secrets, monkeypatch):
    monkeypatch.setenv("UNIQ_KAFKA_SECURITY_PROTOCOL", "SSL")
    message = error_of()
    assert "UNIQ_KAFKA_SASL_PASSWORD: not used with UNIQ_KAFKA_SECURITY_PROTOCOL=SSL" in message
    assert SECRET not in message


def test_67_the_error_of_the_library_below_shows_no_secret():
    with pytest.raises(ValidationError) as caught:
        Settings(kafka_sasl_password=SECRET, lg_k=99, kafka_security_protocol="SSL")
    assert "lg_k" in str(caught.value) and SECRET not in str(caught.value)


def test_67_secrets_are_taken_out_of_what_others_say(with_secrets, monkeypatch):
    monkeypatch.setenv("UNIQ_LEDGER_URL", "postgresql://uniq:with%40sign@db/uniq")
    settings = load_settings()
    said = f"no {SECRET}, no with%40sign, no with@sign, no postgresql://uniq:with%40sign@db/uniq"
    assert settings.without_secrets(said) == "no **********, no **********, no **********, no **********"


@pytest.mark.parametrize("line", ["kafka_sasl_password = ['{}']", "ledger_url = {{ url = '{}' }}"])
def test_67_an_error_about_a_secret_does_not_show_it(line):
    Path("uniq-pipeline.toml").write_text(line.format(SECRET))
    message = error_of()
    assert SECRET not in message and "**********" in message


# Secrets in files

SECRET_NAMES = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


def test_there_are_secrets():
    assert set(SECRET_NAMES) >= {"kafka_sasl_password", "kafka_ssl_key_password", "ledger_url", "failure_webhook_url"}


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_67_every_secret_may_be_in_a_file(monkeypatch, tmp_path, name, end):
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----")
    tls = {"UNIQ_KAFKA_SSL_CERTIFICATE_LOCATION": key, "UNIQ_KAFKA_SSL_KEY_LOCATION": key}
    set_all(monkeypatch, LOGIN | tls, UNIQ_KAFKA_SASL_PASSWORD=None if name == "kafka_sasl_password" else "other")
    secret = f"https://host/{SECRET}"
    (tmp_path / "secret").write_bytes((secret + end).encode())
    monkeypatch.setenv(f"UNIQ_{name.upper()}_FILE", str(tmp_path / "secret"))
    settings = load_settings()
    assert getattr(settings, name).get_secret_value() == secret
    assert SECRET not in repr(describe_settings(settings))


def test_67_the_toml_file_may_name_files_of_secrets_and_a_variable_wins(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("sqlite:///from-file.db")
    Path("uniq-pipeline.toml").write_text(f'ledger_url_file = "{tmp_path}/secret"\n')
    assert load_settings().effective_ledger_url == "sqlite:///from-file.db"
    monkeypatch.setenv("UNIQ_LEDGER_URL", "sqlite:///from-variable.db")
    assert load_settings().effective_ledger_url == "sqlite:///from-variable.db"


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read: Input/output error"),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_text("\n\n"), "is empty"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not a text in UTF-8"),
        (lambda path: path.write_text("x" * 70_000), "is longer than 65,536 bytes"),
    ],
    ids=["missing", "a folder", "unreadable", "empty", "blank", "bytes", "long"],
)
def test_67_a_file_that_holds_no_secret_is_an_error_that_names_it(monkeypatch, tmp_path, make, said):
    make(tmp_path / "secret")
    monkeypatch.setenv("UNIQ_LEDGER_URL_FILE", str(tmp_path / "secret"))
    message = error_of()
    assert "UNIQ_LEDGER_URL_FILE" in message and f"{tmp_path}/secret {said}" in message


def test_67_a_secret_and_a_file_for_it_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("from-file")
    set_all(monkeypatch, LOGIN, UNIQ_KAFKA_SASL_PASSWORD_FILE=tmp_path / "secret")
    message = error_of()
    assert "UNIQ_KAFKA_SASL_PASSWORD_FILE: UNIQ_KAFKA_SASL_PASSWORD is given, too" in message
    assert SECRET not in message and "from-file" not in message


def test_67_the_toml_file_can_not_give_both_either():
    Path("uniq-pipeline.toml").write_text(f'ledger_url = "{SECRET}"\nledger_url_file = "x"\n')
    message = error_of()
    assert "ledger_url_file in uniq-pipeline.toml: ledger_url in uniq-pipeline.toml is given, too" in message
    assert SECRET not in message


@pytest.mark.parametrize("value", ["''", "3"])
def test_67_a_file_without_a_name_is_an_error(value):
    Path("uniq-pipeline.toml").write_text(f"ledger_url_file = {value}\n")
    assert "ledger_url_file in uniq-pipeline.toml: the path of a file" in error_of()


def test_what_is_no_secret_has_no_file(monkeypatch):
    monkeypatch.setenv("UNIQ_TOPIC_FILE", "/etc/hostname")
    assert "unknown setting UNIQ_TOPIC_FILE" in error_of()


# Which settings of the connection go together


@pytest.fixture
def pem(tmp_path):
    """Folder of files that look like what they are to be, as far as settings look."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "client.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "client.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "sealed.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    (tmp_path / "old.key").write_text("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n")
    (tmp_path / "text").write_text("hello")
    return tmp_path


def with_tls(pem, **changed):
    """Settings of a connection by TLS with a client certificate, but for what is given; None takes a setting away."""
    right = {
        "security_protocol": "SSL",
        "ssl_ca_location": "ca.pem",
        "ssl_certificate_location": "client.pem",
        "ssl_key_location": "client.key",
    }
    given = {name: value for name, value in {**right, **changed}.items() if value is not None}
    return {f"kafka_{name}": pem / v if name.endswith("_location") else v for name, v in given.items()}


@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_that_is_whole_is_accepted(monkeypatch, protocol, mechanism):
    set_all(monkeypatch, LOGIN, UNIQ_KAFKA_SECURITY_PROTOCOL=protocol, UNIQ_KAFKA_SASL_MECHANISM=mechanism)
    assert load_settings().kafka_uses_sasl


@pytest.mark.parametrize(
    "changed",
    [{}, {"ssl_certificate_location": None, "ssl_key_location": None}, {"ssl_ca_location": None}]
    + [{"ssl_key_location": key, "ssl_key_password": SECRET} for key in ("sealed.key", "old.key")],
    ids=["mutual", "server only", "authorities of the system", "encrypted key", "encrypted key, old form"],
)
def test_a_certificate_that_is_whole_is_accepted(pem, changed):
    assert load_settings(**with_tls(pem, **changed)).kafka_uses_tls


@pytest.mark.parametrize(
    "missing", ["UNIQ_KAFKA_SASL_MECHANISM", "UNIQ_KAFKA_SASL_USERNAME", "UNIQ_KAFKA_SASL_PASSWORD"]
)
def test_27_a_login_with_a_part_missing_names_it(monkeypatch, missing):
    set_all(monkeypatch, LOGIN, **{missing: None})
    assert error_of() == f"setting {missing}: missing; UNIQ_KAFKA_SECURITY_PROTOCOL=SASL_SSL needs it"


@pytest.mark.parametrize("protocol", ["SSL", "PLAINTEXT", None])
def test_27_a_login_that_would_not_be_used_is_an_error(monkeypatch, protocol):
    set_all(monkeypatch, LOGIN, UNIQ_KAFKA_SECURITY_PROTOCOL=protocol)
    found = protocol or "PLAINTEXT"
    assert error_of().count(f"not used with UNIQ_KAFKA_SECURITY_PROTOCOL={found}; SASL_SSL uses it") == 3


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"security_protocol": "PLAINTEXT"}, "SSL_CA_LOCATION: not used with UNIQ_KAFKA_SECURITY_PROTOCOL=PLAINTEXT"),
        ({"ssl_key_location": None}, "SSL_KEY_LOCATION: missing; UNIQ_KAFKA_SSL_CERTIFICATE_LOCATION is given"),
        ({"ssl_certificate_location": None}, "SSL_CERTIFICATE_LOCATION: missing; UNIQ_KAFKA_SSL_KEY_LOCATION is given"),
        (
            {"ssl_certificate_location": None, "ssl_key_location": None, "ssl_key_password": SECRET},
            "SSL_KEY_LOCATION: missing; UNIQ_KAFKA_SSL_KEY_PASSWORD is given",
        ),
        ({"ssl_key_location": "sealed.key"}, "SSL_KEY_PASSWORD: missing; the key in"),
        ({"ssl_key_location": "old.key"}, "SSL_KEY_PASSWORD: missing; the key in"),
        *(
            (
                {f"ssl_{what}_location": "nowhere.pem"},
                f"SSL_{what.upper()}_LOCATION: {{pem}}/nowhere.pem cannot be read",
            )
            for what in ("ca", "certificate", "key")
        ),
        *(
            ({f"ssl_{what}_location": "text"}, f"SSL_{what.upper()}_LOCATION: {{pem}}/text is no PEM file")
            for what in ("ca", "certificate", "key")
        ),
        ({"ssl_ca_location": "."}, "SSL_CA_LOCATION: {pem} cannot be read: Is a directory"),
    ],
)
def test_27_files_of_tls_that_do_not_go_together_are_named(pem, changed, said):
    message = error_of(**with_tls(pem, **changed))
    assert f"setting UNIQ_KAFKA_{said.format(pem=pem)}" in message and SECRET not in message


def test_every_setting_is_described_with_its_default():
    rows = {row["setting"]: row for row in describe_settings(load_settings())}
    assert len(rows) == len(Settings.model_fields) and all(row["description"] for row in rows.values())
    assert rows["UNIQ_LG_K"]["default"] == rows["UNIQ_LG_K"]["value"] == "12"


def test_the_config_command_gives_json_for_programs(monkeypatch):
    monkeypatch.setenv("UNIQ_LG_K", "14")
    rows = orjson.loads(CliRunner().invoke(root, ["config", "--json"]).stdout)
    assert next(row for row in rows if row["setting"] == "UNIQ_LG_K")["value"] == "14"


def test_reading_settings_changes_no_environment_variable():
    before = dict(os.environ)
    load_settings(topic="x")
    assert dict(os.environ) == before
