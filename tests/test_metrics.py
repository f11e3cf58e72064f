"""Metrics: what they say is what the ledger has, they are cheap, and they say so when there is nothing to read."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy import event, select
from support.frames import MemoryTopic, frame
from support.metered import metered_pipeline
from support.ticks import run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import OffsetsLost
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import Ledger, schema
from uniq_pipeline.ledger.batches import SUMMED
from uniq_pipeline.ledger.gauges import gauges
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.totals import TICK
from uniq_pipeline.metrics.described import METRICS, Type
from uniq_pipeline.metrics.exposition import as_text
from uniq_pipeline.metrics.measured import Distribution, Measured, Meter
from uniq_pipeline.move import admit, replay, withdraw
from uniq_pipeline.tick import CAUSES, STAGES, open_workshop

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "monitoring"
START_S = 1_704_063_600
EVER = (0, 1 << 40)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Iterator[Settings]:
    broker = EmbeddedBroker()
    yield metered_pipeline(broker, tmp_path_factory.mktemp("metered"))
    broker.close()


@pytest.fixture
def topic() -> MemoryTopic:
    topic = MemoryTopic()
    topic.send([frame(START_S + i, f"u{i % 40}") for i in range(300)])
    return topic


def counters(measured: Measured) -> dict[tuple[str, ...], float]:
    """Everything that may only grow, and the parts of histograms."""
    found = {}
    for name, values in measured.items():
        for labels, value in values.items():
            if isinstance(value, Distribution):
                found |= {(name, *labels, step): observed for step, observed in value.steps}
                found[name, *labels, "sum"] = value.total
            elif METRICS[name].type is Type.COUNTER:
                found[name, *labels] = value
    return found


def sums_of_batches(ledger: Ledger) -> dict[tuple[str, str, str], int]:
    """What the totals must be: every batch added up."""
    found: dict[tuple[str, str, str], int] = {}

    def add(kind: str, name: str, label: str, amount: int) -> None:
        found[kind, name, label] = found.get((kind, name, label), 0) + amount

    with ledger.reading() as connection:
        for row in connection.execute(select(schema.batches)):
            add(row.kind, "batches", "", 1)
            for name in SUMMED:
                add(row.kind, name, "", getattr(row, name))
            for name in ("reasons", "lateness"):
                for label, amount in json.loads(getattr(row, name)).items():
                    add(row.kind, name, label, amount)
    return {key: amount for key, amount in found.items() if amount}


def totals_of_batches(ledger: Ledger) -> dict[tuple[str, str, str], int]:
    totals = gauges(ledger, "file:").totals
    return {key: amount for key, amount in totals.items() if amount and key[0] != TICK}


# What is measured is true.


def test_every_metric_is_exposed_after_a_real_tick(pipeline):
    assert set(Meter(pipeline).measure()) == set(METRICS)


def test_the_counters_are_what_the_ledger_has(pipeline):
    measured = Meter(pipeline).measure()
    ledger = Ledger(pipeline.effective_ledger_url)
    seen = overview(ledger)
    assert seen.late and seen.held and seen.quarantined
    assert measured["uniq_records_read_total"]["topic",] == seen.delivered
    assert measured["uniq_frames_total"]["topic",] == measured["uniq_stored_records"]["frames",] == seen.frames
    assert measured["uniq_late_frames_total"]["topic",] == seen.late
    held = measured["uniq_held_frames_total"]
    assert (
        held["topic", "very_late"] + held["topic", "future"]
        == seen.held + measured["uniq_moved_records_total"]["admitted",]
    )
    assert measured["uniq_stored_records"]["held",] == seen.held
    assert sum(measured["uniq_rejected_records_total"].values()) == seen.quarantined
    assert measured["uniq_stored_records"]["quarantine",] == seen.quarantined
    assert sum(measured["uniq_windows"].values()) == sum(seen.windows.values())
    assert measured["uniq_outbox_windows"][()] == seen.outbox > 0
    assert sum(measured["uniq_stored_files"].values()) == seen.files
    assert sum(measured["uniq_stored_bytes"].values()) == seen.files_bytes
    assert measured["uniq_last_batch_timestamp_seconds"][()] == seen.last_batch_at
    assert {int(p): offset for (_, p), offset in measured["uniq_next_offset"].items()} == {
        p.kafka_partition: p.next_offset for p in seen.partitions
    }


def test_the_histogram_of_lateness_is_that_of_the_frames(pipeline):
    """Against the column late_by_s of what is stored: nothing was proved later in this traffic."""
    lateness = Meter(pipeline).measure()["uniq_lateness_seconds"]["topic",]
    with open_workshop(pipeline) as shop:
        columns = ["event_class", "late_by_s"]
        rows = [
            row
            for path in sorted((pipeline.data_dir / "lake").glob("*/*/*.parquet"))
            if path.relative_to(pipeline.data_dir / "lake").parts[0] in ("frames", "held")
            for row in shop.lake.read(str(path.relative_to(pipeline.data_dir / "lake")), columns).to_pylist()
        ]
    late_by = [row["late_by_s"] for row in rows if row["event_class"] != "future"]
    assert lateness.total == sum(late_by) > 0
    assert dict(lateness.steps) == {
        step: sum(seconds <= float(step) for seconds in late_by) for step, _ in lateness.steps
    }


def test_the_newest_final_minute_and_the_errors_are_those_of_the_results(pipeline):
    measured = Meter(pipeline).measure()
    watermark_s = measured["uniq_watermark_timestamp_seconds"][()]
    final_s = measured["uniq_newest_final_minute_timestamp_seconds"][()]
    assert final_s % 60 == 0
    assert 0 <= watermark_s - pipeline.allowed_lateness_s - final_s < 60
    assert measured["uniq_newest_minute_timestamp_seconds"][()] > final_s
    assert measured["uniq_estimate_windows"]["minute",] >= 60
    assert 0 < measured["uniq_estimate_error_ratio"]["minute",] < measured["uniq_estimate_worst_error_ratio"]["minute",]
    assert measured["uniq_estimate_standard_error_ratio"][()] == 1.04 / 64


def test_totals_are_the_sums_of_all_batches_whatever_moves(make_settings, topic):
    settings = make_settings(topic=topic.topic)
    topic.send([frame(START_S - 9000 + i, f"old{i}") for i in range(50)])  # very late: held
    run_tick(settings, topic)
    before = counters(Meter(settings).measure())
    with open_workshop(settings) as shop:
        admit(shop, *EVER)
        withdraw(shop, *EVER)
        admit(shop, *EVER)
        replay(shop)
        assert totals_of_batches(shop.ledger) == sums_of_batches(shop.ledger)
        assert {kind for kind, _, _ in totals_of_batches(shop.ledger)} >= {"drain", "admit", "withdraw"}
    measured = Meter(settings).measure()
    assert measured["uniq_moved_records_total"]["admitted",] == 100
    assert measured["uniq_moved_records_total"]["withdrawn",] == 50
    assert measured["uniq_stored_records"] == {("frames",): 350, ("held",): 0, ("quarantine",): 0}
    after = counters(measured)
    assert all(after[name] >= value for name, value in before.items())


def test_counters_go_on_where_they_were_when_the_endpoint_starts_again(make_settings, topic):
    settings = make_settings(topic=topic.topic)
    last: dict[tuple[str, ...], float] = {}
    for _ in range(3):
        run_tick(settings, topic)
        now = counters(Meter(settings).measure())
        assert all(now[name] >= value for name, value in last.items())
        last = now
        topic.send([frame(START_S + 300 + i, f"v{i}") for i in range(30)])
    assert last["uniq_ticks_total",] == 3
    assert last["uniq_records_read_total", "topic"] == 360


def test_a_lost_race_leaves_the_totals_alone(make_settings, topic):
    settings = make_settings(topic=topic.topic)
    topic.after_describe = lambda: run_tick(settings, MemoryTopic(logs=topic.logs))
    assert run_tick(settings, topic).lost_race
    with open_workshop(settings) as shop:
        assert totals_of_batches(shop.ledger) == sums_of_batches(shop.ledger)
    measured = Meter(settings).measure()
    assert measured["uniq_records_read_total"]["topic",] == 300
    assert sum(measured["uniq_failed_ticks_total"].values()) == 0


def test_ticks_that_fail_are_counted_by_cause_and_are_not_good_ones(make_settings, topic):
    settings = make_settings(topic=topic.topic, kafka_timeout_s=1)
    run_tick(settings, topic)
    good_at = Meter(settings).measure()["uniq_last_good_tick_timestamp_seconds"][()]
    run_tick(settings, KafkaSource(settings))  # nobody listens on port 1
    topic.low = {0: 10_000}
    assert isinstance(run_tick(settings, topic).drain_error, OffsetsLost)
    measured = Meter(settings).measure()
    assert measured["uniq_ticks_total"][()] == 3
    assert {cause: n for (cause,), n in measured["uniq_failed_ticks_total"].items() if n} == {"broker": 1, "offsets": 1}
    assert measured["uniq_last_good_tick_timestamp_seconds"][()] == good_at
    assert measured["uniq_last_tick_timestamp_seconds"][()] > good_at


def test_a_tick_has_the_stages_and_causes_that_are_measured(make_settings, topic):
    settings = make_settings(topic=topic.topic, refined_topic="refined")
    report = run_tick(settings, topic, close_windows=True, open_refined_sink=Nowhere)
    assert tuple(report.seconds) == STAGES
    for part, cause in (
        ("drain_error", "broker"),
        ("file_error", "file"),
        ("publish_error", "publish"),
        ("refined_error", "refined"),
    ):
        setattr(report, part, "what went wrong")
        assert report.failed_by == cause and cause in CAUSES
        setattr(report, part, None)


class Nowhere:
    """Takes every message, and drops it."""

    def send(self, messages):
        return len(list(messages))


def test_history_from_files_has_counters_of_its_own_and_no_topic_partitions(make_settings, tmp_path):
    from uniq_pipeline.cli.main import root

    lines = tmp_path / "old.jsonl"
    lines.write_text("".join(f'{{"ts":{START_S + i},"uid":"u{i % 9}"}}\n' for i in range(200)) + "broken\n")
    settings = make_settings()
    os.environ["UNIQ_DATA_DIR"], os.environ["UNIQ_LG_K"] = str(settings.data_dir), "8"
    try:
        root(["ingest", str(lines)], standalone_mode=False)
    finally:
        del os.environ["UNIQ_DATA_DIR"], os.environ["UNIQ_LG_K"]
    measured = Meter(settings).measure()
    assert measured["uniq_records_read_total"] == {("topic",): 0, ("file",): 201}
    assert measured["uniq_rejected_records_total"]["file", "invalid_json"] == 1
    assert "uniq_lag_records" not in measured


# A scrape is cheap, and changes nothing.


def test_a_scrape_never_looks_at_every_batch(pipeline):
    ledger, statements = Ledger(pipeline.effective_ledger_url, read_only=True), []
    event.listen(
        ledger.engine, "before_cursor_execute", lambda c, cursor, text, values, *rest: statements.append((text, values))
    )
    gauges(ledger, "file:")
    selects = [(text, values) for text, values in statements if text.startswith("SELECT")]
    assert len(selects) >= 10
    with sqlite3.connect(pipeline.data_dir / "ledger.db") as connection:
        plans = [row[3] for text, values in selects for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    scans = [plan for plan in plans if plan.startswith("SCAN")]
    assert any("batches USING INDEX batches_committed_at" in plan for plan in scans)
    tables = {plan.split()[1] for plan in scans}
    assert tables <= {"batches", "totals", "topic_partitions", "skipped", "dirty", "outbox", "files", "buckets", "meta"}
    assert [plan for plan in scans if plan.split()[1] == "batches" and "USING INDEX" not in plan] == []


def test_result_files_are_read_once(pipeline, monkeypatch):
    meter = Meter(pipeline)
    first = meter.measure()
    monkeypatch.setattr(
        "uniq_pipeline.metrics.accuracy.stored_windows", lambda *_: pytest.fail("a result file was read again")
    )
    second = meter.measure()
    assert second["uniq_estimate_error_ratio"] == first["uniq_estimate_error_ratio"]


def test_a_scrape_writes_nothing(pipeline):
    ledger = Ledger(pipeline.effective_ledger_url, read_only=True)
    assert Meter(pipeline).measure()["uniq_up"][()] == 1
    with pytest.raises(Exception, match="readonly"), ledger.writing() as connection:
        connection.execute(schema.meta.insert().values(key="k", value="v"))


# Whatever is wrong, there is an answer.


def test_without_a_ledger_it_says_so_and_makes_none(make_settings):
    said: list[str] = []
    settings = make_settings()
    meter = Meter(settings, complain=said.append)
    for _ in range(2):
        measured = meter.measure()
        assert measured["uniq_up"] == {(): 0}
        assert "uniq_records_read_total" not in measured
    assert len(said) == 1 and "the first drain makes it" in said[0]
    assert list(settings.data_dir.iterdir()) == []
    assert parse_names(as_text(meter.measure)) >= {"uniq_up", "uniq_limit", "uniq_build_info"}


def test_a_locked_ledger_is_not_up_until_it_is_free_again(make_settings, topic, monkeypatch):
    monkeypatch.setattr("uniq_pipeline.metrics.measured.LEDGER_TIMEOUT_S", 0.2)
    settings = make_settings(topic=topic.topic)
    run_tick(settings, topic)
    said: list[str] = []
    meter = Meter(settings, complain=said.append)
    lock = sqlite3.connect(settings.data_dir / "ledger.db", isolation_level=None)
    lock.execute("PRAGMA locking_mode=EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    assert meter.measure()["uniq_up"][()] == 0
    lock.execute("ROLLBACK")
    lock.close()
    assert meter.measure()["uniq_up"][()] == 1
    assert "locked" in said[0] and said[1:] == ["ledger and results can be read again"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database at all, but long enough to be one" * 100),
        lambda path: path.write_bytes(b""),
        lambda path: sqlite3.connect(path).executescript("UPDATE meta SET value = '1' WHERE key = 'schema'"),
        lambda path: sqlite3.connect(path).executescript("DROP TABLE totals"),
    ],
    ids=["damaged", "empty", "another version", "a table is missing"],
)
def test_a_ledger_that_cannot_be_read_is_not_up(make_settings, topic, spoil):
    settings = make_settings(topic=topic.topic)
    run_tick(settings, topic)
    for left in settings.data_dir.glob("ledger.db-*"):
        left.unlink()
    spoil(settings.data_dir / "ledger.db")
    measured = Meter(settings).measure()
    assert measured["uniq_up"][()] == 0 and "uniq_ticks_total" not in measured


def test_another_ledger_in_its_place_is_seen(make_settings, topic):
    settings = make_settings(topic=topic.topic)
    run_tick(settings, topic)
    meter = Meter(settings)
    assert meter.measure()["uniq_up"][()] == 1
    for left in settings.data_dir.glob("ledger.db*"):
        left.unlink()
    assert meter.measure()["uniq_up"][()] == 0


def test_a_result_file_that_is_gone_leaves_the_counters(make_settings, topic):
    settings = make_settings(topic=topic.topic)
    run_tick(settings, topic)
    meter = Meter(settings)
    for path in (settings.data_dir / "lake" / "results" / "minute").rglob("*.parquet"):
        path.unlink()
    measured = meter.measure()
    assert measured["uniq_up"][()] == 1 and measured["uniq_lake_up"][()] == 0
    assert measured["uniq_records_read_total"]["topic",] == 300
    assert meter.trouble is not None and "is not there" in str(meter.trouble)


# The ways out.


def parse_names(text: bytes) -> set[str]:
    return {sample.name for family in parse_text(text.decode()) for sample in family.samples}


def command(*arguments: str, settings: Settings) -> list[str]:
    return [sys.executable, "-c", "from uniq_pipeline.cli import main; main()", "metrics", *arguments]


def environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, "UNIQ_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(ROOT)}


def scrape(address: str, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_served_in_the_format_that_is_asked_for_until_sigterm(pipeline, tmp_path):
    textfile = tmp_path / "uniq.prom"
    process = subprocess.Popen(
        command("--listen", "0", "--textfile", str(textfile), "--every", "1", settings=pipeline),
        env=environment(pipeline),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stderr.readline().split()[-1]
        assert address.startswith("http://127.0.0.1:")
        kind, text = scrape(address, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
        assert kind.startswith("application/openmetrics-text; version=1.0.0") and text.endswith("# EOF\n")
        opened = {sample.name for family in parse_openmetrics(text) for sample in family.samples}
        kind, text = scrape(address, "text/plain")
        assert kind.startswith("text/plain; version=0.0.4") and "# EOF" not in text
        assert opened == parse_names(text.encode()) == {name for metric in METRICS.values() for name in metric.series}
        first = textfile.stat()
        deadline = time.monotonic() + 20
        while textfile.stat().st_ino == first.st_ino and time.monotonic() < deadline:
            time.sleep(0.05)
        assert textfile.stat().st_ino != first.st_ino  # another file in its place, not the same one written over
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[1]
    assert (process.returncode, rest) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["uniq.prom"]
    assert parse_names(textfile.read_bytes()) == opened
    assert stat.S_IMODE(textfile.stat().st_mode) & stat.S_IRUSR


def test_printed_once(pipeline, make_settings):
    done = subprocess.run(
        command("--openmetrics", settings=pipeline), env=environment(pipeline), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {family.name for family in parse_openmetrics(done.stdout)} >= {"uniq_records_read", "uniq_lateness_seconds"}
    empty = make_settings()
    done = subprocess.run(command(settings=empty), env=environment(empty), capture_output=True, text=True)
    assert done.returncode == 6 and "uniq_up 0.0" in done.stdout and "there is none" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--every", "5"], "--textfile"),
        (["--listen", "0", "--openmetrics"], "--openmetrics"),
        (["--listen", "0", "--textfile", "x.prom"], "--every"),
        (["--listen", "somewhere"], "no address"),
        (["--textfile", "/nowhere/at/all.prom"], "cannot be written"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(make_settings, monkeypatch, capsys, arguments, said):
    from uniq_pipeline.cli import main

    monkeypatch.setenv("UNIQ_DATA_DIR", str(make_settings().data_dir))
    monkeypatch.setattr(sys, "argv", ["uniq-pipeline", "metrics", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(make_settings):
    import socket

    settings = make_settings()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            command("--listen", f"127.0.0.1:{port}", settings=settings),
            env=environment(settings),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2 and f"--listen 127.0.0.1:{port}: Address already in use" in done.stderr


# What is made of them: alerts, the dashboard, and the page about them.

RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())
SERIES = {name: metric for metric in METRICS.values() for name in metric.series}


def queries() -> list[str]:
    """Every expression of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def used(expressions: list[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"\buniq[_:][a-z0-9_:]+", text)}


@pytest.mark.parametrize("expressions", [[rule["expr"] for rule in RULES], queries()], ids=["alerts", "dashboard"])
def test_rules_and_dashboard_use_only_what_is_exposed(pipeline, expressions):
    exposed = parse_names(as_text(Meter(pipeline).measure))
    assert len(used(expressions)) >= 15
    assert used(expressions) - exposed - RECORDED == set()
    for text in expressions:
        for name, labels in re.findall(r"\b(uniq_[a-z0-9_]+)\{([^}]*)\}", text):
            known = {*SERIES[name].labels, "job", "instance", *(["le"] if name.endswith("_bucket") else [])}
            asked = set(re.findall(r"([a-z_]+)=~?\"", labels.replace("$I", "")))
            assert asked <= known, f"{name}: {asked - known}"


def test_every_limit_that_rules_and_dashboard_ask_for_is_one(pipeline):
    limits = {limit for (limit,) in Meter(pipeline).measure()["uniq_limit"]}
    asked = {
        name
        for text in [*(rule["expr"] for rule in RULES), *queries()]
        for name in re.findall(r"limit=\"([a-z_]+)\"", text)
    }
    assert asked and asked <= limits


def test_every_metric_is_in_the_dashboard():
    shown = used(queries())
    assert {name for name, metric in METRICS.items() if not shown & set(metric.series)} == set()


def test_every_alert_says_what_to_do_and_is_tested_both_ways():
    tests = [
        test
        for one in yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
        for test in one["alert_rule_test"]
    ]
    fires = {test["alertname"] for test in tests if test["exp_alerts"]}
    is_quiet = {test["alertname"] for test in tests if not test["exp_alerts"]}
    assert fires == is_quiet == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 80, name


def test_every_command_and_setting_that_alerts_name_is_one():
    from uniq_pipeline.cli.main import root

    said = " ".join(rule["annotations"]["description"] for rule in ALERTS.values())
    named = set(re.findall(r"`uniq-pipeline ([a-z-]+)", said))
    assert len(named) >= 8 and named <= set(root.list_commands(click.Context(root)))
    settings = set(re.findall(r"UNIQ_[A-Z_]+", said))
    assert settings and settings <= {f"UNIQ_{name.upper()}" for name in Settings.model_fields}


def test_the_page_about_metrics_has_each_and_every_alert():
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = [
        f"| `{metric.name}` | {metric.type} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS.values()
    ]
    assert [row for row in rows if row not in text] == []
    assert [name for name, rule in ALERTS.items() if f"| `{name}` | {rule['labels']['severity']} |" not in text] == []


def test_the_scraped_host_is_not_this_machine():
    """On the compose network the endpoint has a name; an address of loopback would be Prometheus' own container."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "uniq-pipeline" and job["static_configs"] == [{"targets": ["metrics:9102"]}]
