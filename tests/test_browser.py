"""The UI as a person uses it: real processes, a real browser, clicks, and what the pages say after them.

Needs Chromium and the extra `browser`, so `make test` leaves it out: `make test-browser` runs it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

from dagster_ui import Api, chromium  # noqa: E402

from assets.columns import FRAMES, RESULTS  # noqa: E402
from tests.support.ticks import run_tick  # noqa: E402
from uniq_pipeline.config import load_settings  # noqa: E402
from uniq_pipeline.demo.services import environment_of, free_port, running_dagster  # noqa: E402
from uniq_pipeline.kafka.embedded import EmbeddedBroker  # noqa: E402
from uniq_pipeline.kafka.sink import KafkaSink  # noqa: E402
from uniq_pipeline.queries import query  # noqa: E402

pytestmark = pytest.mark.browser

DAYS = 3
TOPIC = "browsed"
WAIT_MS = 60_000  # for a run that was launched: starting it is most of that


@dataclass(frozen=True)
class Ui:
    """A UI over three days of frames that are counted, of which Dagster has not been told, and 120 that are unread."""

    url: str
    browser: playwright.Browser
    unread: int
    days: list[str]


@pytest.fixture(scope="module")
def ui(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    now = datetime.now(UTC)
    days = [f"{now - timedelta(days=back):%Y-%m-%d}" for back in range(DAYS, -1, -1)]
    overrides = {"results_topic": "", "lg_k": "8", "duckdb_threads": "1", "history_start": days[0]}
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("browser"),
        kafka_bootstrap_servers=broker.bootstrap_servers,
        topic=TOPIC,
        **overrides,
    )
    end_s = int(time.time())
    minutes_s = range(end_s - DAYS * 86_400, end_s, 60)
    frames = [(b"one topic partition", json.dumps({"ts": s, "uid": f"u{s // 60 % 50}"}).encode()) for s in minutes_s]
    unread = 120
    sink = KafkaSink(settings, TOPIC)
    sink.send(frames[:-unread])
    run_tick(settings)
    sink.send(frames[-unread:])
    environment = environment_of(settings.data_dir, broker.bootstrap_servers, TOPIC)
    environment |= {f"UNIQ_{name.upper()}": value for name, value in overrides.items()}
    port = free_port()
    with running_dagster(environment, port), chromium() as browser:
        url = f"http://127.0.0.1:{port}"
        Api(url).pause()
        yield Ui(url, browser, unread, days)


@pytest.fixture
def page(ui: Ui) -> Iterator[playwright.Page]:
    """A page that must stay without errors and must ask nobody but us."""
    page = ui.browser.new_page(base_url=ui.url, viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    playwright.expect.set_options(timeout=WAIT_MS)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("request", lambda asked: None if _is_ours(asked.url, ui.url) else wrong.append(f"asked {asked.url}"))
    yield page
    page.close()
    assert wrong == []


def _is_ours(url: str, ours: str) -> bool:
    return url.startswith((ours, ours.replace("http", "ws"), "data:", "blob:"))


def _entry(page: playwright.Page, label: str) -> playwright.Locator:
    """The row of a metadata entry, or of a column."""
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=label, exact=True))


def test_an_asset_page_says_what_the_asset_is_with_every_column_and_its_sql(page: playwright.Page) -> None:
    expect = playwright.expect
    page.goto("/assets/hour_counts")
    expect(page.get_by_text("How many different users there were in each hour").first).to_be_visible()
    for name, meaning in RESULTS.items():
        expect(_entry(page, name).filter(has_text=meaning)).not_to_have_count(0)
    expect(page.get_by_text("sql/rollup/merge_children.sql").first).to_be_visible()
    page.get_by_text("[Show Markdown]").last.click()
    sql = query("rollup/merge_children")
    for line in (sql.splitlines()[0], sql.splitlines()[-1]):
        expect(page.get_by_role("dialog")).to_contain_text(line)
    page.goto("/assets/frames")
    for name, meaning in FRAMES.items():
        expect(_entry(page, name).filter(has_text=meaning)).not_to_have_count(0)
    for name in ("unique_users", "data", "Kafka", "Parquet"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_a_click_on_materialize_reads_the_topic_and_the_page_shows_how_much(ui: Ui, page: playwright.Page) -> None:
    expect = playwright.expect
    page.goto("/assets/frames")
    expect(page.get_by_text("Never materialized")).to_be_visible()
    with page.expect_response(re.compile("op=LaunchPipelineExecution")):
        page.get_by_role("button", name="Materialize").first.click()
    # The status follows by itself, the metadata when the page is opened again.
    expect(page.get_by_text("Never materialized")).to_have_count(0)
    Api(ui.url).wait_until_idle(WAIT_MS / 1000)
    page.reload()
    for label, value in (("delivered", str(ui.unread)), ("frames", str(ui.unread)), ("lag", "0"), ("held", "0")):
        expect(_entry(page, label).get_by_role("cell").last).to_have_text(value)

    page.goto("/assets/minute_counts")
    expect(page.get_by_role("row").filter(has_text=re.compile("newest_windows.*provisional"))).to_be_visible()


def test_a_backfill_launched_in_the_dialog_is_one_run_and_its_partitions_show_as_materialized(
    ui: Ui, page: playwright.Page
) -> None:
    expect = playwright.expect
    page.goto("/assets/hour_counts?view=partitions")
    oldest = page.get_by_text(ui.days[0], exact=True)
    expect(oldest.first).to_be_visible()
    expect(page.get_by_text(re.compile(r"^Materialized \([01]\)$"))).to_be_visible()

    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    loaded = dialog.get_by_text(f"Showing {DAYS + 1} of {DAYS + 1} partitions")
    confirm = dialog.get_by_role("button", name="Confirm")
    # Dagster asks first where the minutes were never materialized, as when no other test was before this one.
    loaded.or_(confirm).wait_for()
    if confirm.is_visible():
        confirm.click()
    loaded.wait_for()
    dialog.get_by_role("button", name="All", exact=True).click()
    expect(dialog.get_by_text(f"{DAYS + 1} partitions", exact=True)).to_be_visible()
    expect(dialog.get_by_text("Backfills all partitions in a single run.")).to_be_visible()
    dialog.get_by_role("button", name="Launch backfill").click()
    created = page.get_by_text(re.compile("Created backfill"))
    expect(created).to_be_visible()
    backfill = created.inner_text().split()[2]
    done = Api(ui.url).wait_for_backfill(backfill, WAIT_MS / 1000)
    assert (done.status, [run["status"] for run in done.runs]) == ("COMPLETED_SUCCESS", ["SUCCESS"])

    page.goto(f"/assets/hour_counts?view=partitions&partition={ui.days[1]}")
    for label in (f"Materialized ({DAYS + 1})", "Missing (0)", "Failed (0)"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    # Every hour that has frames, once; the unread ones are in the last three.
    marked = range(DAYS * 24 - 2, DAYS * 24 + 2)
    expect(_entry(page, "windows_marked")).to_have_text(re.compile(f"^windows_marked({'|'.join(map(str, marked))})$"))
    page.goto(f"/runs/b/{backfill}")
    expect(page.get_by_text("Completed").first).to_be_visible()
