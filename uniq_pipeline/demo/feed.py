"""Feeds traffic to a topic by the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from uniq_pipeline.demo.traffic import Traffic

STEP_S = 0.5


class FrameSink(Protocol):
    def send_frames(self, frames: list[bytes]) -> int: ...


def feed(
    traffic: Traffic,
    sink: FrameSink,
    *,
    start_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> Iterator[int]:
    """Sends the frames of each half second once it is over, for ever; yields how many were sent.

    When sending falls behind, the next step is larger: no frame is left out.
    """
    sent_until = start_s
    while True:
        sleep(max(0.0, sent_until + STEP_S - clock()))
        now = max(clock(), sent_until)
        yield sink.send_frames(traffic.between(sent_until, now))
        sent_until = now
