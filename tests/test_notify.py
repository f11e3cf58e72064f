"""Telling a webhook of a failure: posted once in a while, tried again, never an error, never the address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from uniq_pipeline.config import Settings, describe_settings, load_settings
from uniq_pipeline.errors import SettingError
from uniq_pipeline.notify import FIRST_WAIT_S, REST_S, RunFailure, notify_failure


class Hook:
    """A webhook on this machine that keeps what it is told, and answers as a list says, then 200."""

    def __init__(self) -> None:
        self.told: list[dict] = []
        self.answers: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                hook.told.append(json.loads(body))
                self.send_response(hook.answers.pop(0) if hook.answers else 200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hooks/s3cret-token"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings_of(data_dir, url, **more) -> Settings:
    return Settings(data_dir=data_dir, failure_webhook_url=url, **more)


def failure(error="broker kafka-1:9092 is down", job="tick", run="run-1", at=1_700_000_000.0) -> RunFailure:
    return RunFailure(job, run, error, at)


def tell(settings, clock, it=None) -> str:
    return notify_failure(settings, it or failure(), now=clock.now, sleep=clock.sleep)


def test_a_failure_is_posted_as_json_with_a_link(data_dir, hook, clock):
    settings = settings_of(data_dir, hook.url, dagster_url="http://dagster.example/")
    assert tell(settings, clock) == "sent"
    assert hook.told == [
        {
            "text": "uniq-pipeline: tick failed: broker kafka-1:9092 is down",
            "job": "tick",
            "run_id": "run-1",
            "error": "broker kafka-1:9092 is down",
            "time": "2023-11-14T22:13:20Z",
            "same_before": 0,
            "link": "http://dagster.example/runs/run-1",
        }
    ]


def test_the_same_failure_is_posted_once_in_a_while_and_then_says_how_many_there_were(data_dir, hook, clock):
    settings = settings_of(data_dir, hook.url, failure_webhook_every_min=30)
    for minute in range(31):
        said = tell(settings, clock, failure(f"offset {1000 + minute} of run 0a1b2c3d-{minute:04} is gone"))
        assert said.startswith("sent" if minute in (0, 30) else "not sent: the same was sent")
        clock.now_s += 60
    assert [told["same_before"] for told in hook.told] == [0, 29]


def test_another_job_or_another_error_is_posted_at_once(data_dir, hook, clock):
    settings = settings_of(data_dir, hook.url)
    for it in (failure(), failure(job="upkeep"), failure("disk full")):
        assert tell(settings, clock, it) == "sent"
    assert len(hook.told) == 3


def test_a_webhook_that_fails_for_a_moment_is_tried_again(data_dir, hook, clock):
    hook.answers = [500, 503]
    assert tell(settings_of(data_dir, hook.url), clock) == "sent"
    assert len(hook.told) == 3
    assert clock.slept == [FIRST_WAIT_S, 2 * FIRST_WAIT_S]


def test_a_refusal_is_not_tried_again(data_dir, hook, clock):
    hook.answers = [404]
    assert "the webhook answered 404" in tell(settings_of(data_dir, hook.url), clock)
    assert len(hook.told) == 1


def test_a_webhook_that_is_down_is_left_alone_for_a_while_and_the_failure_is_told_later(data_dir, hook, clock):
    hook.answers = [500] * 3
    settings = settings_of(data_dir, hook.url)
    assert tell(settings, clock).startswith("not sent: the webhook answered 500")
    assert "a moment ago" in tell(settings, clock, failure("something else"))
    assert len(hook.told) == 3
    clock.now_s += REST_S
    assert tell(settings, clock) == "sent"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/s3cret-token", "http://s3cret-token.invalid:1/x", "http://[s3cret-token/", "http://h:s3cret/"],
)
def test_an_address_that_cannot_be_reached_raises_nothing_and_is_not_shown(data_dir, clock, url):
    said = tell(settings_of(data_dir, url), clock)
    assert said.startswith("not sent: the webhook cannot be reached") and "s3cret" not in said


def test_the_address_is_a_secret(data_dir, monkeypatch):
    settings = settings_of(data_dir, "https://example.com/s3cret-token")
    assert "s3cret" not in repr(settings) + str(describe_settings(settings))
    monkeypatch.setenv("UNIQ_FAILURE_WEBHOOK_URL", "ftp://example.com/s3cret-token")
    with pytest.raises(SettingError, match="UNIQ_FAILURE_WEBHOOK_URL.*http") as refused:
        load_settings()
    assert "s3cret" not in str(refused.value)


def test_without_an_address_nothing_happens(data_dir, clock):
    assert "is not set" in tell(settings_of(data_dir, ""), clock)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"sent": {"x": 1}, "rests_until": 0}', "\x00"])
def test_a_damaged_memory_costs_a_message_and_no_more(data_dir, hook, clock, content):
    settings = settings_of(data_dir, hook.url)
    (data_dir / "notified.json").write_text(content)
    assert tell(settings, clock) == "sent"
    assert tell(settings, clock).startswith("not sent: the same")


def test_a_folder_that_cannot_be_written_does_not_keep_the_message_back(data_dir, hook, clock):
    (data_dir / "file").write_text("no folder")
    assert tell(settings_of(data_dir / "file", hook.url), clock) == "sent"
