"""`make run` as a user meets it: real processes, the real UI, Ctrl-C, and a second start.

Takes minutes, so `make test` leaves it out; `.ci/run` runs it with `pytest -m demo`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSETS = {
    "frames",
    "minute_counts",
    "hour_counts",
    "day_counts",
    "week_counts",
    "month_counts",
    "year_counts",
}
BY_HAND = "admitted_frames"  # no tick fills it
PROMISED_S = 180  # "within three minutes"

pytestmark = pytest.mark.demo


class Demo:
    """A running demo on a free port."""

    def __init__(self, data_dir: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("UNIQ_")}
        self._environment = {**environment, "UNIQ_DATA_DIR": str(data_dir)}
        self._command = Path(sys.executable).with_name("uniq-pipeline")
        self._output = data_dir.parent / f"demo-{self.port}.txt"
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [self._command, "demo", "--port", str(self.port)],
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{self.port}"

    def graphql(self, query: str) -> dict:
        request = urllib.request.Request(
            f"{self.url}/graphql", json.dumps({"query": query}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]

    def materializations(self, limit: int) -> dict[str, list[dict]]:
        """Newest first, by asset."""
        found = self.graphql(
            f"{{ assetNodes {{ assetKey {{ path }} assetMaterializations(limit: {limit}) {{ timestamp partition "
            "metadataEntries { label ... on IntMetadataEntry { intValue } } } } }"
        )
        return {node["assetKey"]["path"][-1]: node["assetMaterializations"] for node in found["assetNodes"]}

    def wait_for(self, count: int, within_s: float) -> dict[str, list[dict]]:
        """Until every asset that ticks fill was materialized `count` times."""
        deadline = time.monotonic() + within_s
        while True:
            assert self.process.poll() is None, self._output.read_text()
            try:
                found = self.materializations(count)
                assert set(found) in (set(), ASSETS | {BY_HAND})
                if found and all(len(found[asset]) >= count for asset in ASSETS):
                    return found
            except OSError:
                pass  # not up yet
            assert time.monotonic() < deadline, f"not materialized {count} times: {self._output.read_text()}"
            time.sleep(1)

    def admit(self, hours: list[str]) -> None:
        """Launches a backfill of these hours as the UI does, and waits for it."""
        selection = f'assetSelection: [{{ path: ["{BY_HAND}"] }}], partitionNames: {json.dumps(hours)}'
        launched = self.graphql(
            f"mutation {{ launchPartitionBackfill(backfillParams: {{ {selection} }}) {{ __typename }} }}"
        )
        assert launched["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess"
        deadline = time.monotonic() + PROMISED_S
        while not self.materializations(1)[BY_HAND]:
            assert time.monotonic() < deadline, "the backfill did not end"
            time.sleep(1)

    def ask(self, sql: str) -> list[dict]:
        done = subprocess.run(
            [self._command, "query", "--json", sql], env=self._environment, capture_output=True, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self._output.read_text()


def test_the_demo_fills_every_asset_within_three_minutes_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    demo = Demo(data_dir)
    try:
        demo.wait_for(1, PROMISED_S)
        found = demo.wait_for(2, PROMISED_S)
        newest, oldest = (int(event["timestamp"]) / 1000 for event in found["minute_counts"][:2])
        assert 40 <= newest - oldest <= 80, "a tick is a minute"
        numbers = {entry["label"]: entry.get("intValue") for entry in found["frames"][0]["metadataEntries"]}
        assert numbers["delivered"] > 0
        assert numbers["lag"] is not None
        _assert_pictures(demo, tmp_path)
        before = demo.ask("SELECT sum(frames) AS frames, count(*) AS minutes FROM minute_counts")[0]
    finally:
        demo.stop()
    assert _left_behind(data_dir) == []

    again = Demo(data_dir)
    try:
        again.wait_for(3, PROMISED_S)
        after = again.ask("SELECT sum(frames) AS frames, count(*) AS minutes FROM minute_counts")[0]
        assert after["frames"] > before["frames"]
        assert after["minutes"] >= before["minutes"]
        conserved = again.ask(
            "SELECT sum(delivered + admitted + withdrawn + replayed - frames - held - quarantined - expired) AS gap "
            "FROM batches"
        )
        assert conserved[0]["gap"] == 0

        now = datetime.now(UTC)
        again.admit([f"{hour:%Y-%m-%d-%H}:00" for hour in (now - timedelta(hours=1), now)])
        (batch,) = again.ask("SELECT admitted, frames FROM batches WHERE kind = 'admit'")
        assert batch["admitted"] == batch["frames"] > 0, "the traffic has frames that come too late"
        reasons = again.ask("SELECT DISTINCT grain FROM revisions WHERE reason = 'admitted'")
        assert {row["grain"] for row in reasons} == {"minute", "hour", "day", "week", "month", "year"}
    finally:
        again.stop()
    assert _left_behind(data_dir) == []


def _assert_pictures(demo: Demo, folder: Path) -> None:
    """The pages draw something: a blank page of that size is a tenth of the bytes."""
    spec = importlib.util.spec_from_file_location("take_screenshots", ROOT / "docs" / "take_screenshots.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for picture in module.take(demo.url, folder):
        assert picture.stat().st_size > 60_000, picture


def _left_behind(data_dir: Path) -> list[str]:
    """Processes that still carry this demo's data folder in their environment."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(data_dir).encode() in environment and "dagster" in command:
            left.append(command)
    return left
