"""Stretches of event time, joined where they touch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import numpy as np


class Spans:
    """Half-open stretches `[start, end)` in seconds since 1970, in order, none touching another."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self.joined: list[tuple[int, int]] = []
        for start_s, end_s in sorted(spans):
            if self.joined and start_s <= self.joined[-1][1]:
                self.joined[-1] = self.joined[-1][0], max(end_s, self.joined[-1][1])
            else:
                self.joined.append((start_s, end_s))

    def __bool__(self) -> bool:
        return bool(self.joined)

    def overlap(self, start_s: int, end_s: int) -> bool:
        """Whether any of `[start_s, end_s)` is in them."""
        place = bisect_right(self.joined, (end_s - 1, 1 << 62)) - 1
        return place >= 0 and self.joined[place][1] > start_s

    def cover(self, start_s: int, end_s: int) -> bool:
        """Whether all of `[start_s, end_s)` is in them."""
        place = bisect_right(self.joined, (start_s, 1 << 62)) - 1
        return place >= 0 and self.joined[place][1] >= end_s

    def contain(self, seconds: np.ndarray) -> np.ndarray:
        """bool[n]: which of n instants are in them."""
        if not self.joined or not len(seconds) or seconds.min() >= self.joined[-1][1]:
            return np.zeros(len(seconds), bool)  # as good as always: what expired is old
        starts, ends = (np.array(bounds) for bounds in zip(*self.joined, strict=True))
        place = np.searchsorted(starts, seconds, "right") - 1
        return (place >= 0) & (seconds < ends[place])


NOWHERE = Spans()
