"""Feeds traffic to a topic by the clock."""

from __future__ import annotations

import math
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
    most_behind_s: float = math.inf,
) -> Iterator[int]:
    """Sends the frames of each half second once it is over, for ever; yields how many were sent.

    When sending falls behind, the next step is larger, up to `most_behind_s`: what is older is left out, as after a
    night with the lid closed.
    """
    sent_until = start_s
    while True:
        sleep(max(0.0, sent_until + STEP_S - clock()))
        now = max(clock(), sent_until)
        sent_until = max(sent_until, now - most_behind_s)
        yield sink.send_frames(traffic.between(sent_until, now))
        sent_until = now
