"""Count: exact distinct users and HLL states of windows, from frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from uniq_pipeline.config import Settings
from uniq_pipeline.ledger.files import frame_files
from uniq_pipeline.ledger.tallies import tallies_between
from uniq_pipeline.results import (
    Compute,
    Progress,
    RefreshReport,
    Target,
    Workshop,
    refresh,
    targets_table,
    with_entries,
)
from uniq_pipeline.schemas import FRAMES_SCHEMA, MINUTES_SCHEMA, TALLIES_SCHEMA
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import HOUR_S, Grain


def count_minutes(
    shop: Workshop,
    *,
    final_before_s: int | None,
    progress: Progress = lambda done, total: None,
    is_over: Callable[[], bool] = lambda: False,
) -> RefreshReport:
    """Recounts every dirty minute, and the newest ones, whole (see results.refresh)."""

    return refresh(shop, Grain.MINUTE, counter(shop), final_before_s=final_before_s, progress=progress, is_over=is_over)


def counter(shop: Workshop) -> Compute:
    """How minutes are computed: counted from frames."""

    def compute(targets: Sequence[Target]) -> pa.Table:
        minutes = [target.window.start_s for target in targets]
        hours = sorted({minute - minute % HOUR_S for minute in minutes})
        # The file list is read after the dirty marks: a file committed later leaves a newer mark.
        paths = frame_files(shop.ledger, minutes, hours)
        shop.failpoint("count.files_listed")
        files = [shop.lake.absolute(path) for path in paths]
        shop.warehouse.register_files("frames", files, FRAMES_SCHEMA)
        tallies = tallies_between(shop.ledger, minutes[0], targets[-1].window.end_s)
        return count_targets(shop.warehouse, targets, shop.settings, {m: m for m in minutes}, tallies)

    return compute


def count_targets(
    warehouse: Warehouse,
    targets: Sequence[Target],
    settings: Settings,
    window_of_minute: Mapping[int, int],
    tallies: Sequence[tuple[int, str, int]] = (),
) -> pa.Table:
    """Counts target windows over the relation `frames`; `window_of_minute` maps minutes to window starts."""
    warehouse.register("targets", targets_table(targets))
    warehouse.register(
        "minutes", pa.table([list(window_of_minute), list(window_of_minute.values())], schema=MINUTES_SCHEMA)
    )
    warehouse.register("tallies", _tallies_table(tallies))
    counts = warehouse.run("count/window_counts", lg_k=settings.lg_k)
    return with_entries(counts, warehouse, settings, "count/window_dimensions")


def _tallies_table(tallies: Sequence[tuple[int, str, int]]) -> pa.Table:
    by_window: dict[int, dict[str, int]] = {}
    for window_start_s, kind, records in tallies:
        counts = by_window.setdefault(window_start_s, {"held": 0, "rejected": 0})
        counts[kind] += records
    return pa.table(
        [
            list(by_window),
            [counts["held"] for counts in by_window.values()],
            [counts["rejected"] for counts in by_window.values()],
        ],
        schema=TALLIES_SCHEMA,
    )
