"""Measures the HLL sketch in SQL: packing states, uniting them, and planning the statements that do.

    python bench/sketch.py [--states 1440] [--users 19] [--lg-k 12] [--sql FOLDER ...]

Each state has `users` registers in use. Prints, medians of five: CPU and wall-clock time a state to pack
(hll_state over registers), to count (the whole of sql/count/window_counts.sql, exact count and all), and to
unpack and unite (the whole of sql/rollup/merge_children.sql, 60 states a window); and milliseconds to plan either
statement, and to run it as a small tick does. With --sql, does so for each of these copies of `sql/`, in turn,
and prints a digest of the answers to compare. CPU time is the figure to trust beside other work.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
import warnings
from pathlib import Path

import duckdb  # noqa: TID251 - plans are timed apart from their runs, which the warehouse does not offer
import numpy as np
import pyarrow as pa

RUNS = 5
PACK = """
    SELECT window_start_s, hll_state(slot, value, $lg_k) AS hll
    FROM registers GROUP BY window_start_s ORDER BY window_start_s
"""

# What a person asks of states; planning is most of it where there are few.
USERS = {
    "values": "SELECT sum(len(hll_values(hll))) FROM (FROM {})",
    "estimate": "SELECT sum(hll_estimate(hll)) FROM (FROM {})",
    "union": "SELECT hll_union(hll) FROM (FROM {})",
    "union and bounds": """SELECT hll_estimate(u), hll_lower(u), hll_upper(u)
                           FROM (SELECT hll_union(hll) AS u FROM (FROM {}))""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=1440)
    parser.add_argument("--users", type=int, default=19, help="registers in use of each state")
    parser.add_argument("--lg-k", type=int, default=12)
    parser.add_argument("--sql", type=Path, nargs="+", default=[Path(__file__).parents[1] / "sql"])
    options = parser.parse_args()
    if options.users > 1 << options.lg_k:
        parser.error("more users than registers")
    warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
    for folder in options.sql:
        _measure(folder, options.states, options.users, options.lg_k)


def _measure(folder: Path, states: int, users: int, lg_k: int) -> None:
    with duckdb.connect(config={"threads": 2, "memory_limit": "1024MiB"}) as db:
        db.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
        for path in sorted((folder / "hll").glob("*.sql")):
            db.execute(path.read_text())
        _fill(db, states, users, lg_k)
        pack = (PACK, {"lg_k": lg_k})
        count = ((folder / "count" / "window_counts.sql").read_text(), {"lg_k": lg_k})
        unite = ((folder / "rollup" / "merge_children.sql").read_text(), {"lg_k": lg_k})
        print(f"{folder}: {states} states of {users} registers at lg_k {lg_k}")

        _targets(db, states, 60)
        counted, figures = _timed(db, *count)
        print(f"  pack                 {_a_state(_timed(db, *pack)[1], states)}")
        print(f"  window_counts        {_a_state(figures, states)}")
        db.register("children", _as_children(counted))
        db.register("edges", _as_children(counted.slice(0, 0)))
        _targets(db, -(-states // 60), 3600)
        united, figures = _timed(db, *unite)
        print(f"  merge_children       {_a_state(figures, states)}")
        for name, (statement, values) in (("window_counts", count), ("merge_children", unite)):
            _, (cpu_s, wall_s) = _timed(db, "EXPLAIN " + statement, values)
            print(f"  {name + ' plan':20} {cpu_s * 1e3:8.1f} ms CPU {wall_s * 1e3:8.1f} ms")
        db.execute("CREATE OR REPLACE TEMP TABLE frames AS FROM frames WHERE epoch(event_time) < 120")
        db.register("children", _as_children(counted.slice(0, 60)))
        for name, (statement, values), step in (("window_counts", count, 60), ("merge_children", unite, 3600)):
            _targets(db, 2, step)
            _, (cpu_s, wall_s) = _timed(db, statement, values)
            print(f"  {name + ' small':20} {cpu_s * 1e3:8.1f} ms CPU {wall_s * 1e3:8.1f} ms")
        db.register("parts", counted)
        for name, statement in USERS.items():
            planned = _timed(db, "EXPLAIN " + statement.format("parts LIMIT 0"), {})[1][0]
            cpu_s = _timed(db, statement.format("parts"), {})[1][0] - planned
            print(f"  {name:20} {cpu_s / states * 1e3:8.4f} ms CPU a state, planned in {planned * 1e3:.1f} ms CPU")
        print(f"  digest of all answers {_digest(counted)} {_digest(united)}")


def _fill(db: duckdb.DuckDBPyConnection, states: int, users: int, lg_k: int) -> None:
    """The relations `frames`, one a register in use, `registers` and `tallies`."""
    random = np.random.default_rng(12)
    slots = np.concatenate([random.permutation(1 << lg_k)[:users] for _ in range(states)])
    values = np.minimum(random.geometric(0.5, len(slots)), 63)
    starts = np.repeat(np.arange(states) * 60, users)
    db.register("drawn", pa.table({"start_s": starts, "slot": slots, "value": values}))
    db.execute("""
        CREATE TEMP TABLE frames AS
        SELECT to_timestamp(start_s) AS event_time, 'user-' || slot AS uid, 0 AS late_by_s,
               ((value << 26) | slot)::UINTEGER AS coupon
        FROM drawn ORDER BY hash(start_s, slot);
        CREATE TEMP TABLE registers AS
        SELECT start_s AS window_start_s, slot::INTEGER AS slot, value::UTINYINT AS value
        FROM drawn ORDER BY hash(start_s, slot);
        CREATE TEMP TABLE tallies (window_start_s BIGINT, held_frames BIGINT, rejected_frames BIGINT)
    """)
    db.unregister("drawn")


def _targets(db: duckdb.DuckDBPyConnection, windows: int, step_s: int) -> None:
    starts = np.arange(windows) * step_s
    users = pa.nulls(windows, pa.int64())
    db.register("targets", pa.table({"window_start_s": starts, "window_end_s": starts + step_s, "users": users}))
    db.register("minutes", pa.table({"minute_s": starts, "window_start_s": starts}))


def _as_children(counted: pa.Table) -> pa.Table:
    instant = pa.timestamp("us", "UTC")
    for column, name in (("window_start_s", "window_start"), ("window_end_s", "window_end")):
        microseconds = pa.array(counted[column].to_numpy() * 1_000_000)
        counted = counted.append_column(name, microseconds.cast(instant))
    return counted


def _timed(db: duckdb.DuckDBPyConnection, statement: str, values: dict) -> tuple[pa.Table, tuple[float, float]]:
    """The result, and the medians of CPU and wall-clock seconds."""
    cpu_s, wall_s = [], []
    for _ in range(RUNS):
        cpu, wall = time.process_time(), time.perf_counter()
        result = db.execute(statement, values).to_arrow_table()
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return result, (statistics.median(cpu_s), statistics.median(wall_s))


def _a_state(figures: tuple[float, float], states: int) -> str:
    cpu_s, wall_s = figures
    return f"{cpu_s / states * 1e3:8.4f} ms CPU {wall_s / states * 1e3:8.4f} ms a state"


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in sorted(table.to_pylist(), key=lambda row: row["window_start_s"]):
        digest.update(repr(row).encode())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
