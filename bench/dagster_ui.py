"""Asks a running Dagster UI, by its GraphQL API and in headless Chromium: what benchmarks, pictures and tests share."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, sync_playwright

_TIMEOUT_S = 120


@dataclass(frozen=True)
class Backfill:
    """A backfill that has ended: its status and its runs, each with when it started and ended, seconds since 1970."""

    status: str
    runs: list[dict[str, Any]]


class Api:
    """The GraphQL API that the UI itself uses."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/graphql"

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Raises RuntimeError with the API's own words."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error}: {error.read().decode(errors='replace')[:2000]}") from None
        if "errors" in found:
            raise RuntimeError(json.dumps(found["errors"])[:2000])
        return found["data"]

    def pause(self) -> None:
        """Stops every schedule and sensor, so that nothing runs that was not asked for."""
        repository = self.repository()
        for kind, mutation in (("schedules", "stopRunningSchedule"), ("sensors", "stopSensor")):
            for one in repository[kind]:
                stopped = self.ask(
                    f"mutation($id: String!) {{ it: {mutation}(id: $id) {{ __typename }} }}", id=one["id"]
                )
                if "Error" in stopped["it"]["__typename"]:
                    raise RuntimeError(f"{mutation}: {stopped}")

    def repository(self) -> dict[str, Any]:
        """Schedules and sensors of the code location, once it is loaded.

        The UI answers a moment before that: with an empty list or, where the code server is not up yet, with an error.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        why = ""
        while True:
            try:
                found = self.ask(
                    "{ repositoriesOrError { ... on RepositoryConnection { nodes { "
                    "schedules { id } sensors { id } } } } }"
                )["repositoriesOrError"].get("nodes")
                if found:
                    return found[0]
            except RuntimeError as error:
                why = f": {error}"
            if time.monotonic() > deadline:
                raise RuntimeError(f"the code location is not loaded{why}")
            time.sleep(0.25)

    def partition_keys(self, asset: str) -> list[str]:
        """All of them, oldest first."""
        found = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } } }",
            key={"path": [asset]},
        )
        return found["assetNodeOrError"]["partitionKeys"]

    def materialized(self, asset: str) -> int:
        """How many partitions of an asset are materialized."""
        found = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionStats { "
            "numMaterialized } } } }",
            key={"path": [asset]},
        )
        return found["assetNodeOrError"]["partitionStats"]["numMaterialized"]

    def launch_backfill(self, asset: str, keys: Sequence[str]) -> str:
        """Launches it as the dialog does; returns its id."""
        launched = self.ask(
            "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { "
            "__typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            params={"assetSelection": [{"path": [asset]}], "partitionNames": list(keys)},
        )["launchPartitionBackfill"]
        if launched["__typename"] != "LaunchBackfillSuccess":
            raise RuntimeError(f"backfill of {asset}: {launched}")
        return launched["backfillId"]

    def wait_for_backfill(self, backfill_id: str, within_s: float) -> Backfill:
        """Raises RuntimeError when it has not ended by then."""
        deadline = time.monotonic() + within_s
        while True:
            found = self.ask(
                "query($id: String!) { "
                "partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } "
                'runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) { ... on Runs { results { '
                "id status startTime endTime } } } }",
                id=backfill_id,
            )
            status = found["partitionBackfillOrError"]["status"]
            if status not in ("REQUESTED", "CANCELING"):
                return Backfill(status, found["runsOrError"]["results"])
            if time.monotonic() > deadline:
                raise RuntimeError(f"backfill {backfill_id} has not ended: {found}")
            time.sleep(0.5)

    def wait_until_idle(self, within_s: float) -> None:
        """Until no run is queued or active. Raises RuntimeError when one still is by then."""
        deadline = time.monotonic() + within_s
        while active := self.ask(
            "{ runsOrError(filter: {statuses: [NOT_STARTED, QUEUED, STARTING, STARTED, CANCELING]}) { ... on Runs { "
            "results { id jobName status } } } }"
        )["runsOrError"]["results"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"still active: {active}")
            time.sleep(0.25)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless. Raises RuntimeError where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for found in map(shutil.which, names) if found is not None), None)
    if program is None:
        raise RuntimeError("Chromium is not installed")
    with sync_playwright() as playwright:
        # Without a sandbox of its own, because in a container it may have none.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
