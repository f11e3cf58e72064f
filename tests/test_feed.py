"""The demo's traffic by the clock."""

from __future__ import annotations

import signal
import time
from itertools import islice

import pytest

from uniq_pipeline.demo.feed import STEP_S, feed
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.kafka.sink import KafkaSink

START = 1_700_000_000.0


class Clock:
    """Time passes only in sleep, and once more than asked for."""

    def __init__(self, overslept_s: float = 0.0) -> None:
        self.now = START
        self._overslept_s = overslept_s

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._overslept_s
        self._overslept_s = 0.0


class Sink:
    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_frames(self, frames: list[bytes]) -> int:
        self.frames += frames
        return len(frames)


def fed(clock: Clock, steps: int, **options: float) -> list[bytes]:
    sink = Sink()
    traffic = Traffic(TrafficProfile(frames_per_s=10, small=True))
    list(islice(feed(traffic, sink, start_s=START, clock=clock, sleep=clock.sleep, **options), steps))
    return sink.frames


def expected(start_s: float, end_s: float) -> list[bytes]:
    return Traffic(TrafficProfile(frames_per_s=10, small=True)).between(start_s, end_s)


def test_every_frame_is_sent_once_when_its_half_second_is_over():
    assert fed(Clock(), 20) == expected(START, START + 20 * STEP_S)


def test_a_step_that_comes_late_sends_what_was_missed():
    assert fed(Clock(overslept_s=100), 2) == expected(START, START + 100 + 2 * STEP_S)


def test_after_a_night_only_the_last_minute_is_sent():
    frames = fed(Clock(overslept_s=8 * 3600), 1, most_behind_s=60)
    woken = START + 8 * 3600 + STEP_S
    assert frames == expected(woken - 60, woken)


def test_an_interrupt_within_a_callback_of_the_client_is_an_interrupt(make_settings, monkeypatch):
    settings = make_settings(kafka_timeout_s=0.5)  # nobody is there, which the client tells within a callback
    sink = KafkaSink(settings, settings.topic)

    def interrupted(error, message):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # here at the latest Python notices

    monkeypatch.setattr(sink, "_delivered", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            sink.send_frames([b"{}"])
    finally:
        signal.signal(signal.SIGINT, before)
