"""Estimates against exact counts, of the newest result files. A result file never changes, so each is read once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from uniq_pipeline.config import Settings
from uniq_pipeline.health import FEW_USERS, sketch_against_exact
from uniq_pipeline.lake import Lake
from uniq_pipeline.trends import Point, compared, stored_windows
from uniq_pipeline.windows import Grain


@dataclass(frozen=True)
class Accuracy:
    """Relative errors of some windows. `worst_standard_errors` leaves out what is only a handful of users."""

    windows: int
    error_ratio: float
    worst_error_ratio: float
    worst_standard_errors: float


class Results:
    """The windows in result files, as they were read before where they are asked for again."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._known: dict[str, list[Point]] = {}

    def read(self, paths: Mapping[Grain, Iterable[str]]) -> dict[Grain, list[Point]]:
        """The windows of these files, in order; forgets all others. Raises FileDamaged."""
        self._known = {
            path: self._known[path] if path in self._known else stored_windows(self._lake, grain, path)
            for grain, some in paths.items()
            for path in some
        }
        return {
            grain: sorted((point for path in set(some) for point in self._known[path]), key=lambda point: point.window)
            for grain, some in paths.items()
        }


def accuracy(settings: Settings, points: Sequence[Point]) -> Accuracy | None:
    """None where no window has an exact count of more than a handful of users."""
    windows = [one for one in compared(list(points)) if one.exact > FEW_USERS]
    if not windows:
        return None
    errors = [one.estimate / one.exact - 1 for one in windows]
    return Accuracy(
        len(windows),
        math.sqrt(math.fsum(error * error for error in errors) / len(errors)),
        max(map(abs, errors)),
        float(sketch_against_exact(settings, windows).facts["worst_in_standard_errors"]),
    )
