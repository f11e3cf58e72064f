"""`uniq-pipeline drain`, as a program that reads its report sees it."""

from __future__ import annotations

from random import Random

import orjson
import pytest
from click.testing import CliRunner
from support.frames import send, small_traffic

from uniq_pipeline.cli.main import root


@pytest.fixture
def environment(broker, make_settings, monkeypatch):
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    for name in ("data_dir", "topic", "kafka_bootstrap_servers", "lg_k"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    return settings


def test_the_report_as_json_has_what_came_by_class_and_reason(broker, environment):
    records = small_traffic(1).records_between(1_790_000_000, 1_790_000_200)
    sent = send(broker.bootstrap_servers, environment.topic, records, Random(1))
    done = CliRunner().invoke(root, ["drain", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    drained = orjson.loads(done.stdout)["drain"]
    assert drained["delivered"] == len(sent) == sum(drained["reasons"].values())
    assert drained["quarantined"] > 0 and drained["late"] > 0 and drained["lateness"]
    assert sum(drained["next_offsets"].values()) == len(sent)
    assert (drained["lag"], drained["unstable"]) == (0, 0)
