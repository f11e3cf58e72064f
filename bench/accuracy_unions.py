"""Part of accuracy.py: the relative error after unions: of the minutes of an hour, and of those of a year.

Minutes are packed by hll_state and merged by sql/rollup/merge_children.sql, the statement of the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb  # noqa: TID251 - runs the product's statements beside its warehouse, on one thread
import numpy as np
import pyarrow as pa
from accuracy_single import Figure, Progress, figure, fold, pack, registers, uids

from uniq_pipeline.coupons import coupons
from uniq_pipeline.queries import query

LG_K = 12
HOUR_S, DAY_S = 3600, 86_400
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
VISITS = 3  # to minutes of an hour, of a user, on average
_HOURS_AT_A_TIME = 10
_FIRST_UNION = 50_000  # trial number: no uids in common with the single states
_FIRST_YEAR = 90_000

_PACK = """
    SELECT window_start_s, window_start_s + 60 AS window_end_s, hll_state(slot, value, $lg_k) AS hll
    FROM (SELECT window_start_s, hll_slot(coupon, $lg_k) AS slot, max(hll_value(coupon)) AS value
          FROM seen GROUP BY ALL)
    GROUP BY window_start_s
"""


@dataclass(frozen=True)
class Plan:
    hours: int
    users_an_hour: tuple[int, ...]
    years: int
    days: int  # of a year
    users_a_year: int
    users_a_minute: int


FULL = Plan(500, (100, 2_000, 10_000, 100_000), 4, 365, 1_000_000, 5)
QUICK = Plan(10, (100, 10_000), 1, 31, 50_000, 5)


@dataclass(frozen=True)
class United:
    """What came of the unions: figures, and how many states were held against one made without a union."""

    figures: list[Figure]
    states: int  # minutes that were merged
    equal: int
    compared: int


def measure(db: duckdb.DuckDBPyConnection, plan: Plan, seed: int) -> United:
    hours = _hours(db, plan, seed)
    years = _years(db, plan, seed)
    return United(
        hours.figures + years.figures,
        hours.states + years.states,
        hours.equal + years.equal,
        hours.compared + years.compared,
    )


def _hours(db: duckdb.DuckDBPyConnection, plan: Plan, seed: int) -> United:
    """Every user is in one minute of the hour at least, in three on average."""
    random = np.random.default_rng((seed, 60))
    progress = Progress("unions of 60", len(plan.users_an_hour) * plan.hours, "hours")
    figures, states, equal = [], 0, 0
    trial = _FIRST_UNION
    for users in plan.users_an_hour:
        found = []
        for at in range(0, plan.hours, _HOURS_AT_A_TIME):
            batch = min(_HOURS_AT_A_TIME, plan.hours - at)
            minutes, digests, direct = [], [], []
            for hour in range(batch):
                own = coupons(uids(seed, trial, 0, users)).to_numpy()
                who = np.concatenate([np.arange(users), random.integers(0, users, (VISITS - 1) * users)])
                minutes.append(hour * HOUR_S + 60 * random.integers(0, 60, len(who)))
                digests.append(own[who])
                direct += [pack(fold(kept, LG_K), LG_K) for _, kept in registers(seed, trial, [users])]
                trial += 1
            packed = _packed(db, np.concatenate(minutes), np.concatenate(digests))
            states += len(packed)
            merged = _merged(db, packed, np.arange(batch) * HOUR_S, np.arange(1, batch + 1) * HOUR_S)
            equal += sum(ours == theirs for ours, theirs in zip(merged["hll"].to_pylist(), direct, strict=True))
            found.append(_columns(merged))
            progress.add(batch)
        figures.append(_figure("hour: 60 minutes", np.concatenate(found), np.full(plan.hours, users), users))
    progress.end()
    return United(figures, states, equal, plan.hours * len(plan.users_an_hour))


def _years(db: duckdb.DuckDBPyConnection, plan: Plan, seed: int) -> United:
    """Minutes to hours to days to months to a year, month by month; users differ in how active they are."""
    months = [days for days, end in zip(DAYS, np.cumsum(DAYS), strict=True) if end <= plan.days]
    progress = Progress("unions of a year", plan.years * sum(months) * 1440, "minutes")
    by_grain: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"hour": [], "day": [], "month": [], "year": []}
    states, equal = 0, 0
    for trial in range(plan.years):
        random = np.random.default_rng((seed, 525_600, trial))
        own = np.concatenate([
            coupons(uids(seed, _FIRST_YEAR + trial, at, min(100_000, plan.users_a_year - at))).to_numpy()
            for at in range(0, plan.users_a_year, 100_000)
        ])  # fmt: skip
        seen, month_rows, start_s = [], [], 0
        for days in months:
            end_s = start_s + days * DAY_S
            minutes = days * 1440
            # One visit in every minute, so that each has a state, and the others in any.
            any_minute = random.integers(0, minutes, minutes * (plan.users_a_minute - 1))
            minute_s = start_s + 60 * np.concatenate([np.arange(minutes), any_minute])
            who = (plan.users_a_year * random.random(len(minute_s)) ** 1.5).astype(np.int64)
            children = _packed(db, minute_s, own[who])
            states += len(children)
            for grain, step_s in (("hour", HOUR_S), ("day", DAY_S), ("month", end_s - start_s)):
                starts = np.arange(start_s, end_s, step_s)
                merged = _merged(db, children, starts, starts + step_s)
                truth = np.bincount(
                    np.unique((minute_s - start_s) // step_s * plan.users_a_year + who) // plan.users_a_year,
                    minlength=len(starts),
                )
                by_grain[grain].append((_columns(merged), truth))
                children = merged
            month_rows.append(children)
            seen.append(who)
            start_s = end_s
            progress.add(days * 1440)
        year = _merged(db, pa.concat_tables(month_rows), np.array([0]), np.array([start_s]))
        whole = np.unique(np.concatenate(seen))
        by_grain["year"].append((_columns(year), np.array([len(whole)])))
        direct = np.zeros(1 << LG_K, np.uint8)
        np.maximum.at(direct, own[whole] & ((1 << LG_K) - 1), (own[whole] >> 26).astype(np.uint8))
        equal += year["hll"][0].as_py() == pack(direct, LG_K)
    progress.end()
    names = {
        "hour": "hour: 60 minutes",
        "day": "day: 24 hours",
        "month": "month: its days",
        "year": f"year: {len(months)} months, {sum(months) * 1440:,} minutes",
    }
    figures = []
    for grain, parts in by_grain.items():
        columns, truth = (np.concatenate(column) for column in zip(*parts, strict=True))
        figures.append(_figure(names[grain] + " (sparse)", columns, truth, int(np.median(truth))))
    return United(figures, states, equal, plan.years)


def _packed(db: duckdb.DuckDBPyConnection, minute_s: np.ndarray, digests: np.ndarray) -> pa.Table:
    db.register("seen", pa.table({"window_start_s": minute_s, "coupon": digests}))
    states = db.sql(_PACK, params={"lg_k": LG_K}).to_arrow_table()
    db.unregister("seen")
    return states


def _merged(db: duckdb.DuckDBPyConnection, children: pa.Table, starts_s: np.ndarray, ends_s: np.ndarray) -> pa.Table:
    """Windows `[start, end)` of these children, by start."""
    users = pa.nulls(len(starts_s), pa.int64())
    db.register("targets", pa.table({"window_start_s": starts_s, "window_end_s": ends_s, "users": users}))
    db.register("children", _as_results(children))
    db.register("edges", _as_results(children.slice(0, 0)))
    merged = db.sql(query("rollup/merge_children"), params={"lg_k": LG_K}).to_arrow_table()
    return merged.sort_by("window_start_s")


def _as_results(counted: pa.Table) -> pa.Table:
    zero = pa.array(np.zeros(len(counted), np.int64))
    instants = {
        name: pa.array(counted[f"{name}_s"].to_numpy() * 1_000_000).cast(pa.timestamp("us", "UTC"))
        for name in ("window_start", "window_end")
    }
    counts = {name: zero for name in ("frames", "late_frames", "held_frames", "rejected_frames")}
    return pa.table({**instants, **counts, "hll": counted["hll"]})


def _columns(merged: pa.Table) -> np.ndarray:
    return np.stack([merged[name].to_numpy() for name in ("estimate", "estimate_lower", "estimate_upper")], axis=1)


def _figure(kind: str, rows: np.ndarray, truth: Sequence[int] | np.ndarray, users: int) -> Figure:
    estimates, lower, upper = rows.T
    truth = np.asarray(truth)
    return figure(kind, LG_K, users, estimates / truth - 1, (lower <= truth) & (truth <= upper))
