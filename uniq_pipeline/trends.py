"""Trends: the newest windows of a grain, as numbers over time for people. Reads a few result files, not the catalog."""

from __future__ import annotations

from dataclasses import dataclass

from uniq_pipeline.health import Compared
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger.health import newest_result_files
from uniq_pipeline.results import Workshop
from uniq_pipeline.windows import Grain, Window, to_epoch

_COLUMNS = [
    *("window_start", "window_end", "frames", "unique_users"),
    *("estimate", "estimate_lower", "estimate_upper", "status"),
]


@dataclass(frozen=True)
class Point:
    """One window. `users` is the exact count, or None where there is only an estimate."""

    window: Window
    frames: int
    users: int | None
    estimate: float
    lower: float
    upper: float
    is_final: bool

    @property
    def error_percent(self) -> float | None:
        """How far the estimate is off, in percent of the exact count; None where that is not known."""
        return 100 * (self.estimate - self.users) / self.users if self.users else None


def newest_windows(shop: Workshop, grain: Grain, since_s: int, until_s: int) -> list[Point]:
    """The windows of a grain that start in `[since_s, until_s)`, oldest first: a millisecond a result file.

    Raises FileDamaged when a file cannot be read.
    """
    points = [
        point
        for path in newest_result_files(shop.ledger, grain, since_s, until_s)
        for point in stored_windows(shop.lake, grain, path)
        if since_s <= point.window.start_s < until_s
    ]
    return sorted(points, key=lambda point: point.window)


def stored_windows(lake: Lake, grain: Grain, path: str) -> list[Point]:
    """The windows of one result file. Raises FileDamaged when it cannot be read."""
    return [
        Point(
            Window(grain, to_epoch(row["window_start"]), to_epoch(row["window_end"])),
            row["frames"],
            row["unique_users"],
            row["estimate"],
            row["estimate_lower"],
            row["estimate_upper"],
            row["status"] == "final",
        )
        for row in lake.read(path, _COLUMNS).to_pylist()
    ]


def compared(points: list[Point]) -> list[Compared]:
    """Those that have an exact count beside the estimate."""
    return [Compared(point.window, point.users, point.estimate) for point in points if point.users is not None]
