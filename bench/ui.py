"""Opens the pages of the Dagster UI over two years in the lake, and backfills a year, as a person would. Linux only.

    python bench/ui.py [--data-dir FOLDER] [--frames 2000000] [--days 730] [--loads 7] [--within 2.0]
                       [--pictures FOLDER]

Needs Chromium and the extra `browser`. The frames are those of bench/history.py, in UTC, up to today, few a minute:
what a page costs depends on partitions and events, not on frames. A lake that stands in --data-dir already, from an
earlier call, is used as it is; so are the partitions that Dagster holds for materialized there.

What Dagster does not know of yet is backfilled by the API that the UI uses: a single run for each asset. Then the
processes are started again and Chromium opens, for minute_counts (an hour a partition) and hour_counts (a day a
partition), the asset page, the partitions page and the dialog of "Materialize...". A time is that from the start of
the navigation, or from the click, until the data of the partitions is shown: of the asset page when the latest
materialization was and its metadata, of the partitions page how many are materialized and the newest key, of the dialog
how many partitions there are to choose from. The first load comes with an empty browser cache and a server that has
not been asked before; it is reported apart. At the end a year of hour_counts is backfilled.

Exits with 1 where a median is over --within seconds, the code location loads in more than 5 s, or a backfill is not one
run that succeeds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from dagster._grpc.client import DagsterGrpcClient  # noqa: TID251 - asks the code server as the webserver does
from dagster_ui import Api, Backfill, chromium
from history import add_options, generate, load, print_sizes, write
from playwright.sync_api import Locator, Page, Request
from processes import is_run, peak_memory_mb, tree

from uniq_pipeline.demo.services import environment_of, free_port, running_dagster

GRAINS = ("minute", "hour", "day", "week", "month", "year")
LOAD_S = 5.0  # promised of the code location
BACKFILL_S = 4 * 3600
YEAR = 365


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, frames=2_000_000, start=date.min, days=730, files=4)
    parser.add_argument("--data-dir", type=Path, default=None, help="kept; default: a temporary folder")
    parser.add_argument("--loads", type=int, default=7, help="how often each page is opened after the first time")
    parser.add_argument("--within", type=float, default=2.0, metavar="S")
    parser.add_argument("--pictures", type=Path, default=None, metavar="FOLDER", help="where a PNG of each page goes")
    options = parser.parse_args()
    options.timezone = ZoneInfo("UTC")
    options.start = datetime.now(UTC).date() - timedelta(days=options.days)
    data_dir = options.data_dir or Path(tempfile.mkdtemp(prefix="uniq-ui-"))
    try:
        return _run(options, data_dir)
    finally:
        if options.data_dir is None:
            shutil.rmtree(data_dir)


def _run(options: argparse.Namespace, data_dir: Path) -> int:
    first_day = data_dir / "first-day"
    if not (data_dir / "uniq.duckdb").exists():
        _fill(options, data_dir)
        first_day.write_text(f"{options.start}")
    environment = environment_of(data_dir, "localhost:1", "not.asked") | {
        "UNIQ_HISTORY_START": first_day.read_text().strip(),
        "UNIQ_RESULTS_TOPIC": "",
    }
    print_sizes(data_dir)
    over = []
    with _ui(environment) as (_, api):
        over += _materialize(api)
    load_s = [_code_server_s(environment) for _ in range(3)]
    print(f"code location: loads in {statistics.median(load_s):.1f} s, worst {max(load_s):.1f} s")
    over += ["code location"] if statistics.median(load_s) > LOAD_S else []
    with _ui(environment) as (url, api):
        events = data_dir / "dagster" / "history" / "runs" / "index.db"
        print(f"Dagster's index of events: {events.stat().st_size / 1e6:,.0f} MB")
        for page, times in _open_pages(url, options.loads, options.pictures):
            print(times.said(page), flush=True)
            over += [page] if statistics.median(times.seconds) > options.within else []
        keys = api.partition_keys("hour_counts")[-YEAR - 1 : -1]
        with _memory() as peaks:
            done = api.wait_for_backfill(api.launch_backfill("hour_counts", keys), BACKFILL_S)
        over += [] if _say("hour_counts", len(keys), 24 * len(keys), done, max(peaks, default=0.0)) else ["backfill"]
    print(f"over the limits: {', '.join(over) if over else 'nothing'}")
    return int(bool(over))


def _fill(options: argparse.Namespace, data_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="uniq-ui-frames-") as folder:
        names = write(generate(options), Path(folder) / "frames", options.files, options.seed)
        loaded = load(names, data_dir, options, close=False)
    print(f"loaded and counted in {loaded.seconds:,.0f} s, at most {loaded.peak_mb:,.0f} MB of memory", flush=True)


@contextmanager
def _ui(environment: Mapping[str, str]) -> Iterator[tuple[str, Api]]:
    port = free_port()
    with running_dagster(environment, port):
        url = f"http://127.0.0.1:{port}"
        api = Api(url)
        api.pause()
        api.wait_until_idle(120)
        yield url, api


def _materialize(api: Api) -> list[str]:
    """Backfills the assets of which Dagster does not know yet; those where that is not one run that succeeds."""
    keys = {f"{grain}_counts": api.partition_keys(f"{grain}_counts") for grain in GRAINS}
    # The newest partition may have begun since.
    keys = {asset: all_keys for asset, all_keys in keys.items() if api.materialized(asset) < len(all_keys) - 1}
    with _memory() as peaks:
        launched = {asset: api.launch_backfill(asset, all_keys) for asset, all_keys in keys.items()}
        done = {asset: api.wait_for_backfill(backfill_id, BACKFILL_S) for asset, backfill_id in launched.items()}
    peak_mb = max(peaks, default=0.0)
    return [asset for asset in keys if not _say(asset, len(keys[asset]), None, done[asset], peak_mb)]


def _say(asset: str, partitions: int, windows: int | None, done: Backfill, peak_mb: float) -> bool:
    is_one = done.status == "COMPLETED_SUCCESS" and [run["status"] for run in done.runs] == ["SUCCESS"]
    seconds = sum(run["endTime"] - run["startTime"] for run in done.runs if run["endTime"]) or float("nan")
    rate = f"{partitions / seconds:,.0f} partitions/s" + (f", {windows / seconds:,.0f} windows/s" if windows else "")
    print(
        f"backfill of {partitions:,} partitions of {asset}: {done.status}, {len(done.runs)} run(s), {seconds:,.0f} s, "
        f"{rate}, at most {peak_mb:,.0f} MB of memory",
        flush=True,
    )
    return is_one


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Samples the most memory that any run has had, in MB."""
    peaks: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.5):
            peaks.extend(peak_memory_mb(pid) for pid in tree(os.getpid()) if is_run(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _code_server_s(environment: Mapping[str, str]) -> float:
    """Seconds from the start of a code server until it answers, which it does once its definitions are loaded."""
    port = free_port()
    client = DagsterGrpcClient(port=port, host="127.0.0.1")
    command = [sys.executable, "-m", "dagster", "api", "grpc", "-m", "assets.definitions", "-h", "127.0.0.1"]
    started = time.monotonic()
    server = subprocess.Popen([*command, "-p", str(port)], env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                client.list_repositories()
                return time.monotonic() - started
            except Exception:  # whatever gRPC raises while nobody listens
                if server.poll() is not None or time.monotonic() - started > 120:
                    raise
                time.sleep(0.02)
    finally:
        # It has nothing to save, and takes over an ignored SIGINT for SIGTERM, as under nohup.
        server.kill()
        server.wait()


@dataclass
class Times:
    """Seconds until a page showed its data, and the slowest answers of the API."""

    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    asked: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def said(self, page: str) -> str:
        slowest = sorted(self.asked.items(), key=lambda item: -max(item[1]))[:4]
        return (
            f"{page:34} median {statistics.median(self.seconds):5.2f} s, worst {max(self.seconds):5.2f} s, first "
            f"{self.first_s:5.2f} s ({len(self.seconds)} loads); slowest queries: "
            + ", ".join(f"{name} {statistics.median(s):.2f} (most {max(s):.2f})" for name, s in slowest)
        )


def _open_pages(url: str, loads: int, pictures: Path | None) -> Iterator[tuple[str, Times]]:
    for asset in ("minute_counts", "hour_counts"):
        for name, path, answer in (
            ("asset page", "", _asset_page),
            ("partitions page", "?view=partitions", _partitions_page),
            ("dialog", "", _dialog),
        ):
            times = Times()
            with chromium() as browser:
                page = browser.new_page(base_url=url, viewport={"width": 1500, "height": 1000})
                page.set_default_timeout(120_000)
                page.on("requestfinished", lambda request, asked=times.asked: _note(request, asked))
                times.first_s = answer(page, f"/assets/{asset}{path}")
                times.asked.clear()
                times.seconds = [answer(page, f"/assets/{asset}{path}") for _ in range(loads)]
                if pictures is not None:
                    picture = f"two-years-{asset}-{name}.png".replace(" ", "-").replace("_", "-")
                    page.screenshot(path=pictures / picture)
            yield f"{name} of {asset}", times


def _note(request: Request, asked: dict[str, list[float]]) -> None:
    operation = re.search(r"graphql\?op=(\w+)", request.url)
    if operation:
        asked[operation[1]].append(request.timing["responseEnd"] / 1e3)


def _since(started: float, shown: Callable[[], list[Locator]]) -> float:
    for locator in shown():
        locator.first.wait_for(state="visible")
    return time.monotonic() - started


def _asset_page(page: Page, path: str) -> float:
    page.goto("about:blank")
    started = time.monotonic()
    page.goto(path, wait_until="commit")
    return _since(
        started,
        lambda: [
            page.get_by_role("cell", name=re.compile("^(windows_marked|newest_windows)$")),
            page.get_by_text(re.compile(r"^(a|an|\d+) [a-z ]+ ago$")),
        ],
    )


def _partitions_page(page: Page, path: str) -> float:
    page.goto("about:blank")
    started = time.monotonic()
    page.goto(path, wait_until="commit")
    # While it is loading it counts none.
    materialized = re.compile(r"^Materialized \([\d,]*[1-9][\d,]*\)$")
    newest = re.compile(rf"^{datetime.now(UTC):%Y-%m-%d}")
    return _since(started, lambda: [page.get_by_text(materialized), page.get_by_text(newest)])


def _dialog(page: Page, path: str) -> float:
    _asset_page(page, path)
    button = page.get_by_role("button", name="Materialize").first
    button.wait_for()
    # How many partitions there are is known: the dialog offers those of the last 90 days, and says how many are older.
    shown = page.get_by_role("dialog").get_by_text(re.compile(r"^[\d,]+ older partitions are outside this range")).first
    confirm = page.get_by_role("dialog").get_by_role("button", name="Confirm")
    started = time.monotonic()
    button.click()
    # Dagster asks first where an input was never materialized, such as admitted_frames.
    shown.or_(confirm).wait_for()
    if confirm.is_visible():
        confirm.click()
    shown.wait_for()
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
