"""The compose file: no engine runs here, so what can be read of it is held against the code."""

from __future__ import annotations

from pathlib import Path

import yaml

from uniq_pipeline.config import ENV_PREFIX, Settings

COMPOSE = yaml.safe_load((Path(__file__).parents[1] / "docker-compose.yml").read_text())


def test_68_every_published_port_is_on_loopback():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_68_there_is_no_password_and_no_docker_socket():
    text = str(COMPOSE).lower()
    assert "password" not in text and "docker.sock" not in text


def test_every_setting_it_sets_is_one():
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    used = {
        name
        for service in COMPOSE["services"].values()
        for name in service.get("environment", {})
        if name.startswith(ENV_PREFIX)
    }
    assert used and used <= known


def test_the_topics_it_makes_are_the_topics_of_the_settings():
    environment = COMPOSE["services"]["code-server"]["environment"]
    made = " ".join(COMPOSE["services"]["topics"]["command"])
    assert f"--topic {environment['UNIQ_TOPIC']} " in made
    assert f"--topic {environment['UNIQ_RESULTS_TOPIC']} " in made
