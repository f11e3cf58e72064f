"""Rollup: hour to year, merged in SQL from the results of the next finer grain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from uniq_pipeline.ledger.files import result_files
from uniq_pipeline.ledger.sets import ExactUsers, exact_users
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
from uniq_pipeline.schemas import RESULT_SCHEMA, USERS_BY_SCHEMA
from uniq_pipeline.windows import CHILD, HOUR_S, ROLLUP_ORDER, Grain


def roll_up(
    shop: Workshop,
    *,
    final_before_s: int | None,
    progress: Progress = lambda done, total: None,
    is_over: Callable[[], bool] = lambda: False,
) -> list[RefreshReport]:
    """Merges every dirty window, from the finest grain to the coarsest (see results.refresh)."""
    return [
        refresh(
            shop,
            grain,
            merger(shop, grain),
            final_before_s=final_before_s,
            progress=progress,
            is_over=is_over,
        )
        for grain in ROLLUP_ORDER
    ]


def merger(shop: Workshop, grain: Grain) -> Compute:
    """How windows of a grain are computed: merged from their children."""

    def compute(targets: Sequence[Target]) -> pa.Table:
        start_s, end_s = targets[0].window.start_s, targets[-1].window.end_s
        exact = exact_users(shop.ledger, grain, start_s, end_s)
        users = {window_start_s: found.users for window_start_s, found in exact.items()}
        shop.warehouse.register("targets", targets_table(targets, users))
        if shop.settings.dimension_keys:
            shop.warehouse.register("users_by", _users_by(exact))
        _register_results(shop, "children", CHILD[grain], [(start_s, end_s)])
        _register_results(shop, "edges", Grain.MINUTE, _cut_hours(targets) if grain is Grain.DAY else [])
        merged = shop.warehouse.run("rollup/merge_children", lg_k=shop.settings.lg_k)
        return with_entries(merged, shop.warehouse, shop.settings, "rollup/merge_dimensions")

    return compute


def _users_by(exact: Mapping[int, ExactUsers]) -> pa.Table:
    rows = [
        (window_start_s, dimension, value, users)
        for window_start_s, found in exact.items()
        for dimension, by_value in (found.by_value or {}).items()
        for value, users in by_value.items()
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], [], []], schema=USERS_BY_SCHEMA)


def _register_results(shop: Workshop, name: str, grain: Grain, spans: Sequence[tuple[int, int]]) -> None:
    paths = sorted({path for start_s, end_s in spans for path in result_files(shop.ledger, grain, start_s, end_s)})
    shop.warehouse.register_files(name, [shop.lake.absolute(path) for path in paths], RESULT_SCHEMA)


def _cut_hours(targets: Sequence[Target]) -> list[tuple[int, int]]:
    """The UTC hours that a bound of a target cuts: a local midnight at half past, say."""
    bounds = {bound for target in targets for bound in (target.window.start_s, target.window.end_s)}
    return [(bound - bound % HOUR_S, bound - bound % HOUR_S + HOUR_S) for bound in sorted(bounds) if bound % HOUR_S]
