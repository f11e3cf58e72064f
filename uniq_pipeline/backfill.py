"""Backfill: marks the windows of a range to be computed again, from frames or from finer results.

The next tick computes them like any dirty window, so a backfill and the live run converge whatever their
order; a window that comes out the same keeps its revision.
"""

from __future__ import annotations

from uniq_pipeline.ledger.dirty import mark_for_count
from uniq_pipeline.ledger.expiry import uncomputable
from uniq_pipeline.ledger.files import hours_with_data, result_spans
from uniq_pipeline.results import Workshop
from uniq_pipeline.windows import CHILD, HOUR_S, MINUTE_S, Grain, Window, windows_in

REASON = "backfill"


def mark_range(shop: Workshop, grain: Grain, start_s: int, end_s: int) -> int:
    """Marks the windows of a grain that start in `[start_s, end_s)` and have something to be computed from.

    Returns how many. Minutes are marked where their hour has frames or results, coarser windows where a
    finer result overlaps them; and none of whose frames or finer results some have expired.
    """
    found = _minutes(shop, start_s, end_s) if grain is Grain.MINUTE else _rollups(shop, grain, start_s, end_s)
    is_gone = uncomputable(shop.ledger, grain)
    windows = [window for window in found if not is_gone(window)]
    mark_for_count(shop.ledger, windows, REASON, shop.settings.zone)
    return len(windows)


def _minutes(shop: Workshop, start_s: int, end_s: int) -> list[Window]:
    first_hour = start_s - start_s % HOUR_S
    return [
        Window(Grain.MINUTE, minute_s, minute_s + MINUTE_S)
        for hour_s in hours_with_data(shop.ledger, first_hour, end_s)
        for minute_s in range(max(hour_s, start_s), min(hour_s + HOUR_S, end_s), MINUTE_S)
    ]


def _rollups(shop: Workshop, grain: Grain, start_s: int, end_s: int) -> list[Window]:
    spans = result_spans(shop.ledger, CHILD[grain], start_s, end_s)
    found = {
        window
        for span_start_s, span_end_s in spans
        for window in windows_in(grain, max(span_start_s, start_s), min(span_end_s, end_s), shop.settings.zone)
    }
    return sorted(window for window in found if start_s <= window.start_s < end_s)
