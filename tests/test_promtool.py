"""What Prometheus itself says of our metrics, rules and configuration. Needs promtool: `make test-promtool`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.metered import metered_pipeline

from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.metrics.exposition import as_text
from uniq_pipeline.metrics.measured import Meter

pytestmark = pytest.mark.promtool

MONITORING = Path(__file__).parents[1] / "monitoring"


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Its output; fails with it where promtool finds something."""
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, cwd=MONITORING)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_the_metrics_of_a_real_pipeline_pass_without_a_word(tmp_path):
    broker = EmbeddedBroker()
    settings = metered_pipeline(broker, tmp_path)
    assert promtool("check", "metrics", given=as_text(Meter(settings).measure)) == ""
    broker.close()


def test_so_do_those_without_a_ledger(make_settings):
    assert promtool("check", "metrics", given=as_text(Meter(make_settings()).measure)) == ""


def test_what_is_wrong_does_not_pass():
    with pytest.raises(AssertionError, match="no help text"):
        promtool("check", "metrics", given=b"# TYPE uniq_up gauge\nuniq_up 1\n")


def test_the_rules_pass():
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")


def test_the_configuration_passes_with_its_rules():
    assert promtool("check", "config", "prometheus.yml").count("SUCCESS") == 3


def test_each_alert_fires_when_it_must_and_only_then():
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
