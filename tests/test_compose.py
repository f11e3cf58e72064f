"""The compose file: no engine runs here, so what can be read of it is held against the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.kafka.jars import kafka_version

from uniq_pipeline.cli.main import root
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.setting_sources import known_variables

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
# What ends by itself, when it has done its work.
ONE_SHOT = {"topics", "prepare", "traffic"}
OPTIONAL = {"grafana", "traffic"}


def mounts(service: dict[str, Any]) -> list[list[str]]:
    """[source, target, mode] of each, the mode "rw" where none is given."""
    return [[*mount.split(":"), "rw"][:3] for mount in service.get("volumes", [])]


def test_it_has_what_a_host_needs():
    needed = {"kafka", "topics", "postgres", "prepare", "code-server", "webserver", "daemon", "metrics", "prometheus"}
    assert set(SERVICES) == needed | OPTIONAL
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == OPTIONAL


# 68: who can reach it, and as whom it runs


def test_68_every_published_port_is_on_loopback():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) >= 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not any(service.get("network_mode") for service in SERVICES.values())


def test_68_there_is_no_docker_socket():
    assert "docker.sock" not in (ROOT / "docker-compose.yml").read_text()


def test_68_no_secret_stands_in_it_and_each_comes_from_a_file():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("password|secret|token", name, re.IGNORECASE):
                assert str(value).startswith("/run/secrets/") or name == "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"
            assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), f"{name} has a password in a URL"
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    paths = {f"/run/secrets/{name}" for name in used}
    named = {v for s in SERVICES.values() for v in s.get("environment", {}).values() if str(v).startswith("/run/")}
    assert named == paths


@pytest.mark.parametrize("name", SERVICES)
def test_68_nobody_is_root_or_becomes_it(name):
    service = SERVICES[name]
    assert str(service["user"]).split(":")[0] not in ("0", "root")
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    # Apache Kafka's image writes its configuration when it starts.
    assert service.get("read_only") is (None if service["image"].startswith("apache/kafka") else True)


def test_the_user_of_the_image_is_the_one_of_the_compose_file():
    uid = re.search(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())[1]
    assert all(service["user"] == f"{uid}:{uid}" for service in OURS.values())


def test_grafana_can_only_be_looked_at():
    said = SERVICES["grafana"]["environment"]
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == said["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert said["GF_AUTH_BASIC_ENABLED"] == "false"


def test_make_secrets_makes_what_it_names_and_keeps_what_is_there(tmp_path):
    def make() -> dict[str, str]:
        subprocess.run(["make", "-s", "-f", ROOT / "Makefile", "secrets"], cwd=tmp_path, check=True)
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = make()
    assert {f"./secrets/{name}" for name in first} == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert make() == first
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    password = first["postgres_password"].strip()
    assert len(password) >= 32
    postgres = SERVICES["postgres"]["environment"]
    assert first["pg_service.conf"].splitlines() == [
        "[dagster]",
        "host=postgres",
        "port=5432",
        f"dbname={postgres['POSTGRES_DB']}",
        f"user={postgres['POSTGRES_USER']}",
        f"password={password}",
    ]
    assert OURS["code-server"]["environment"]["DAGSTER_POSTGRES_URL"].endswith("?service=dagster")


# It stays up, and says when it does not


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_what_runs_on_has_a_healthcheck_and_is_started_again(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD" and service["restart"] == "unless-stopped"
    assert service["mem_limit"]


def test_what_ends_by_itself_is_waited_for():
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            ends = name in ONE_SHOT
            allowed = ("service_completed_successfully",) if ends else ("service_healthy", "service_started")
            assert condition["condition"] in allowed
            assert not SERVICES[name].get("profiles"), f"{name} is not always there"


def test_nothing_of_dagster_starts_before_its_tables_are_made():
    assert "prepare" in SERVICES["code-server"]["depends_on"] and "postgres" in SERVICES["prepare"]["depends_on"]
    assert all("code-server" in SERVICES[name]["depends_on"] for name in ("webserver", "daemon"))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(OURS)))
def test_images_of_others_are_pinned(name):
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?", SERVICES[name]["image"])


def test_the_broker_is_the_one_that_is_tested_against():
    assert {SERVICES[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{kafka_version()}"}


# What is mounted exists


def test_every_volume_is_declared_and_used():
    named = {source for s in SERVICES.values() for source, _, _ in mounts(s) if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_every_file_that_is_mounted_exists_and_is_read_only():
    files = [(source, mode) for s in SERVICES.values() for source, _, mode in mounts(s) if source.startswith(".")]
    assert len(files) >= 6
    for source, mode in files:
        assert (ROOT / source).exists(), source
        assert mode == "ro", source


def test_what_dagster_and_prometheus_read_is_mounted_where_they_look():
    for name in ("prepare", "code-server", "webserver", "daemon"):
        assert ["./dagster-postgres.yaml", "/data/dagster/dagster.yaml", "ro"] in mounts(SERVICES[name])
    assert "DAGSTER_HOME=/data/dagster" in (ROOT / "Dockerfile").read_text()
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    targets = {target: where for _, target, where in mounts(SERVICES["prometheus"])}
    assert all(f"/etc/prometheus/{name}" in targets for name in ["prometheus.yml", *config["rule_files"]])
    provider = yaml.safe_load((ROOT / "monitoring/grafana/provisioning/dashboards/uniq.yml").read_text())["providers"]
    dashboards = [target for _, target, _ in mounts(SERVICES["grafana"]) if target.endswith(".json")]
    assert dashboards == [f"{provider[0]['options']['path']}/dashboard.json"]


def test_prometheus_scrapes_where_metrics_listens():
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    command = SERVICES[host]["command"]
    assert command[command.index("--listen") + 1] == f"0.0.0.0:{port}"


# Its settings and commands are those of the code


def test_every_setting_it_sets_is_one(monkeypatch):
    for service in OURS.values():
        used = {name: value for name, value in service.get("environment", {}).items() if name.startswith("UNIQ_")}
        assert used and set(used) <= known_variables(Settings)
        with monkeypatch.context() as patch:
            for name, value in used.items():
                patch.setenv(name, value)
            load_settings()


def test_its_processes_agree_on_broker_and_topics():
    names = ("UNIQ_KAFKA_BOOTSTRAP_SERVERS", "UNIQ_TOPIC", "UNIQ_RESULTS_TOPIC")
    for name in names:
        assert len({service["environment"][name] for service in OURS.values() if name in service["environment"]}) == 1
    server = OURS["code-server"]["environment"]["UNIQ_KAFKA_BOOTSTRAP_SERVERS"]
    assert server in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_the_topics_it_makes_are_the_topics_of_the_settings():
    environment = SERVICES["code-server"]["environment"]
    made = " ".join(SERVICES["topics"]["command"])
    assert f"--topic {environment['UNIQ_TOPIC']} " in made
    assert re.search(rf"--topic {environment['UNIQ_RESULTS_TOPIC']} .*cleanup\.policy=compact", made)
    assert f"--bootstrap-server {environment['UNIQ_KAFKA_BOOTSTRAP_SERVERS']}" in made
    assert f"--topic={environment['UNIQ_TOPIC']}" in SERVICES["traffic"]["command"]


@pytest.mark.parametrize("name", [name for name, s in OURS.items() if s["command"][0] == "uniq-pipeline"])
def test_the_commands_of_ours_are_understood(name):
    """By the parser of the command line itself, without doing anything."""
    _, command, *arguments = OURS[name]["command"]
    found = root.get_command(click.Context(root), command)
    assert found is not None, command
    found.make_context(command, list(arguments))


@pytest.mark.parametrize(
    "name, part", [(n, p) for n in ("code-server", "webserver", "daemon") for p in ("command", "healthcheck")]
)
def test_the_commands_of_dagster_are_understood(name, part):
    """By its own parsers: dagster, dagster-webserver and dagster-daemon are click's, as ours."""
    from dagster._cli import create_dagster_cli
    from dagster._daemon.cli import cli as daemon
    from dagster_webserver.cli import dagster_webserver

    words = SERVICES[name]["command"] if part == "command" else SERVICES[name]["healthcheck"]["test"][1:]
    if words[0] == "python":
        compile(words[2], name, "exec")
        return
    command: click.Command = {
        "dagster": create_dagster_cli(),
        "dagster-daemon": daemon,
        "dagster-webserver": dagster_webserver,
    }[words[0]]
    arguments = list(words[1:])
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    if "-w" in arguments:  # the parser looks for the file
        at = arguments.index("-w") + 1
        (source,) = [source for source, target, _ in mounts(SERVICES[name]) if target == arguments[at]]
        arguments[at] = str(ROOT / source)
    command.make_context(words[0], arguments)


def test_the_workspace_names_the_code_server_and_its_port():
    (server,) = yaml.safe_load((ROOT / "workspace-compose.yaml").read_text())["load_from"]
    command = SERVICES[server["grpc_server"]["host"]]["command"]
    assert command[command.index("-p") + 1] == str(server["grpc_server"]["port"])


def test_what_prepares_the_instance_is_a_module_of_ours():
    assert SERVICES["prepare"]["command"] == ["python", "-m", "assets.recover"]
    assert "__main__" in (ROOT / "assets" / "recover.py").read_text()
