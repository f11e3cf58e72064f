"""Settings: where they come from, which one wins, and what is said about a wrong one."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

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


@pytest.fixture
def with_secrets(monkeypatch):
    monkeypatch.setenv("UNIQ_KAFKA_SASL_PASSWORD", SECRET)
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


@pytest.mark.parametrize("line", ["kafka_sasl_password = ['{}']", "ledger_url = {{ url = '{}' }}"])
def test_67_an_error_about_a_secret_does_not_show_it(line):
    Path("uniq-pipeline.toml").write_text(line.format(SECRET))
    message = error_of()
    assert SECRET not in message and "**********" in message


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
