"""The results topic as its readers see it: the schema of the messages, and that the highest revision is the truth."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import orjson
import pytest
from support.audit import read_topic
from support.frames import send, small_traffic
from support.kafka.traffic import MINUTE_S, frames_of, produce
from support.ticks import OnceAt, run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.publish import MESSAGE_VERSION
from uniq_pipeline.schemas import ENTRY, RESULT_SCHEMA
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import iso, to_epoch

DOCS = Path(__file__).parents[1] / "docs"
SCHEMA = json.loads((DOCS / "counts-message.schema.json").read_text())
PAGE = (DOCS / "results-topic.md").read_text()

START_S = 1_790_000_040.0


@pytest.fixture
def published(broker, make_settings):
    """Settings whose results go to a topic of their own, after ten minutes of traffic in two ticks and a close."""

    def make(**overrides: Any) -> Settings:
        number = make_settings().topic
        settings = make_settings(
            kafka_bootstrap_servers=broker.bootstrap_servers, results_topic=f"counts-{number}", **overrides
        )
        traffic = small_traffic(3, frames_per_s=3)
        for first, last in ((0, 300), (300, 4000)):
            records = traffic.records_between(START_S + first, START_S + last)
            send(broker.bootstrap_servers, settings.topic, records, Random(1))
            run_tick(settings)
        run_tick(settings, close_windows=True)
        return settings

    return make


def messages(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    assert settings.results_topic is not None
    return [(k, orjson.loads(v)) for k, v in read_topic(settings.kafka_bootstrap_servers, settings.results_topic)]


@pytest.mark.parametrize("dimensions", ["", "country,platform"])
def test_every_message_is_as_its_schema_says(published, dimensions):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = messages(published(dimensions=dimensions))
    assert {message["grain"] for _, message in found} == set(SCHEMA["properties"]["grain"]["enum"])
    assert {message["reason"] for _, message in found} >= {"live", "exact"}
    for key, message in found:
        assert [error.message for error in validator.iter_errors(message)] == []
        assert set(message) == set(SCHEMA["properties"]), "what the schema does not name nobody can rely on"
        assert key == f"{message['grain']}/{message['window_start']}"
        assert message["exact"] == (message["unique_users"] is not None)
        assert base64.b64decode(message["hll"], validate=True)
    assert any(message["by_dimension"] for _, message in found) == bool(dimensions)


def test_the_schema_names_every_column_of_a_result_and_this_version():
    left_out = {"history"}
    assert set(SCHEMA["properties"]) == {*RESULT_SCHEMA.names, "exact", "version"} - left_out
    assert set(SCHEMA["properties"]["by_dimension"]["items"]["properties"]) == set(ENTRY.names) - {"hll"}
    assert SCHEMA["properties"]["version"]["const"] == MESSAGE_VERSION
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"])


def test_the_schema_names_every_reason_that_the_docs_do():
    (row,) = (
        line for line in (DOCS / "tables.md").read_text().splitlines() if "| `reason` | VARCHAR | of this" in line
    )
    assert set(SCHEMA["properties"]["reason"]["enum"]) == set(re.findall(r"`([a-z]+)`", row)) - {"reason"}


def test_the_message_that_the_docs_show_is_one():
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    jsonschema.validate(json.loads(example), SCHEMA)


def test_the_reader_that_the_docs_show_has_what_is_stored(published):
    settings = published()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    newest = scope["newest_counts"](settings.kafka_bootstrap_servers, settings.results_topic)
    stored = {
        f"{grain}/{iso(to_epoch(row['window_start']))}".encode(): (row["revision"], row["unique_users"])
        for grain in SCHEMA["properties"]["grain"]["enum"]
        for row in ask_catalog(settings.catalog_path, f"FROM {grain}_counts").to_pylist()
    }
    assert {key: (m["revision"], m["unique_users"]) for key, m in newest.items()} == stored


def test_an_older_revision_that_arrives_last_is_followed_by_the_newest(broker, make_settings):
    settings = make_settings(
        kafka_bootstrap_servers=broker.bootstrap_servers, results_topic=f"counts-{make_settings().topic}"
    )
    records = small_traffic(5, frames_per_s=2).records_between(START_S, START_S + 240)
    send(broker.bootstrap_servers, settings.topic, records[:200], Random(1))
    run_tick(settings.model_copy(update={"results_topic": None}))  # nothing of it is to be published
    send(broker.bootstrap_servers, settings.topic, records[200:300], Random(2))

    # Another run computes and publishes newer revisions, when this one has read its rows and not sent them yet.
    def another_run() -> None:
        send(broker.bootstrap_servers, settings.topic, records[300:], Random(3))
        assert run_tick(settings).published > 0

    class SlowSink(KafkaSink):
        waited = OnceAt("sent", another_run)

        def send(self, messages):
            ready = list(messages)
            self.waited("sent")
            return super().send(ready)

    run_tick(settings, open_sink=lambda: SlowSink(settings, settings.results_topic))
    assert SlowSink.waited.happened
    found = messages(settings)
    newest: dict[str, int] = {}
    for key, message in found:
        newest[key] = max(newest.get(key, 0), message["revision"])
    assert {key: message["revision"] for key, message in found} == newest, "the last of a key is what compaction keeps"
    revisions = [message["revision"] for key, message in found if key.startswith("day/")]
    assert revisions != sorted(revisions), "an older one did arrive after a newer one"


@pytest.mark.kafka
def test_a_compacted_topic_keeps_the_newest_revision_of_every_window(kafka, make_settings):
    settings = make_settings(
        kafka_bootstrap_servers=kafka.bootstrap_servers, results_topic=f"counts-{make_settings().topic}"
    )
    kafka.create_topic(settings.topic)
    kafka.create_topic(
        settings.results_topic,
        cleanup_policy="compact",
        segment_ms=200,
        min_cleanable_dirty_ratio=0.001,
        max_compaction_lag_ms=200,
    )
    for tick in range(6):
        produce(kafka, settings.topic, frames_of(range(10 * tick, 10 * tick + 20), MINUTE_S + 10 * tick))
        run_tick(settings)
    kafka.wait_for(lambda: len(messages(settings)) < 36, 60)  # six revisions of six windows
    left = {}
    for key, message in messages(settings):
        left[key] = (message["revision"], message["estimate"])
    rows = ask_catalog(settings.catalog_path, "SELECT revision, estimate FROM day_counts").to_pylist()
    assert [left[key] for key in left if key.startswith("day/")] == [(rows[0]["revision"], rows[0]["estimate"])]
