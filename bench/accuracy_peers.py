"""Part of accuracy.py: the approximate distinct counts of others, and ours, of the same uids at the same sizes.

DuckDB and the library `datasketches` run here; Polars and ClickHouse in virtual environments made for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb  # noqa: TID251 - one of the peers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq  # noqa: TID251 - hands the peers their uids
from accuracy_single import SETTLED, Estimator, Figure, Progress, figure, fold, ladder, pack, registers, uids
from datasketches import hll_sketch, tgt_hll_type  # noqa: TID251 - one of the peers

LG_K = 12
LARGE_LG_K = 16  # ours again, with a state as large as those of the peers that have large ones
OURS, OURS_LARGE = f"uniq-pipeline, lg_k {LG_K}", f"uniq-pipeline, lg_k {LARGE_LG_K}"
LIBRARY_HIP, LIBRARY = "DataSketches HLL_8, HIP", "DataSketches HLL_8, composite"
DUCKDB = "DuckDB approx_count_distinct"
NAMES = {
    "approx_n_unique": "Polars approx_n_unique",
    "uniq": "ClickHouse uniq",
    "uniqCombined": "ClickHouse uniqCombined",
    "uniqHLL12": "ClickHouse uniqHLL12",
}
# Pinned so that the same command measures the same peers.
WHEELS = {"polars": "polars==2.1.0", "chdb": "chdb==4.4.0"}
_FIRST_TRIAL = 80_000
_STATES_OF = 1_000_000  # users behind the states whose size is asked for


@dataclass(frozen=True)
class Plan:
    trials: int
    limit: int
    large_trials: int  # the first of them go on to large_limit
    large_limit: int


FULL = Plan(100, 10**6, 20, 10**7)
QUICK = Plan(10, 10**5, 2, 10**6)


@dataclass(frozen=True)
class Compared:
    figures: list[Figure]  # `users` 0: all sizes from SETTLED * 2^LG_K on together
    versions: list[str]
    state_bytes: dict[str, int]  # of a stored state of a million users, where there is one


class Worker:
    """A peer in its own environment, asked through a pipe."""

    def __init__(self, peer: str, folder: Path, sizes: Sequence[int]) -> None:
        python = _environment(peer, folder)
        command = [str(python), str(Path(__file__).with_name("accuracy_worker.py")), peer, *map(str, sizes)]
        environment = {"POLARS_MAX_THREADS": "1", "PATH": ""}
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._answer()

    def ask(self, verb: str, path: Path) -> dict:
        self._process.stdin.write(f"{verb} {path}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args[2]} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _environment(peer: str, folder: Path) -> Path:
    """The Python of a virtual environment with this peer alone; made unless it is there from an earlier run."""
    python = folder / f"venv-{peer}" / "bin" / "python"
    ready = python.parent / f"ready-{WHEELS[peer]}"
    if not ready.exists():
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", WHEELS[peer]]
        subprocess.run(pip, check=True)
        ready.touch()
        print(f"  installed {WHEELS[peer]} in {time.monotonic() - started:.0f} s", flush=True)
    return python


def measure(db: duckdb.DuckDBPyConnection, plan: Plan, seed: int, folder: Path) -> Compared:
    workers = [Worker(peer, folder, ladder(plan.large_limit)) for peer in WHEELS]
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    ours, ours_large = Estimator(db), Estimator(db)
    total = plan.large_trials * plan.large_limit + (plan.trials - plan.large_trials) * plan.limit
    progress = Progress("peers", total, "uids")
    state_bytes: dict[str, int] = {}
    path = folder / "uids.parquet"
    for number in range(plan.trials):
        trial = _FIRST_TRIAL + number
        limit = plan.large_limit if number < plan.large_trials else plan.limit
        items = pa.chunked_array([uids(seed, trial, at, min(10**6, limit - at)) for at in range(0, limit, 10**6)])
        for size, kept in registers(seed, trial, ladder(limit)):
            values = fold(kept, LG_K)
            ours.add(LG_K, size, values)
            ours_large.add(LARGE_LG_K, size, kept)
            found[LIBRARY][size].append(hll_sketch.deserialize(pack(values, LG_K)).get_estimate())
        for size, estimate in _hip(items):
            found[LIBRARY_HIP][size].append(estimate)
        for size, estimate in _duckdb(db, items):
            found[DUCKDB][size].append(estimate)
        pq.write_table(pa.table({"i": np.arange(limit, dtype=np.int32), "uid": items}), path)
        for worker in workers:
            for function, counts in worker.ask("count", path).items():
                for size, estimate in counts.items():
                    found[NAMES[function]][int(size)].append(estimate)
        progress.add(limit)
    pq.write_table(
        pa.table({"i": np.arange(_STATES_OF, dtype=np.int32), "uid": uids(seed, trial, 0, _STATES_OF)}), path
    )
    for worker in workers:
        state_bytes |= {NAMES[function]: size for function, size in worker.ask("bytes", path).items()}
        worker.end()
    path.unlink()
    figures = [
        *_figures(OURS, {size: rows[:, 0] for (_, size), rows in ours.found().items()}),
        *_figures(OURS_LARGE, {size: rows[:, 0] for (_, size), rows in ours_large.found().items()}),
    ]
    for name in (LIBRARY, LIBRARY_HIP, DUCKDB, *NAMES.values()):
        figures += _figures(name, found[name])
    progress.end()
    state_bytes |= {name: 40 + (1 << LG_K) for name in (OURS, LIBRARY, LIBRARY_HIP)}
    state_bytes[OURS_LARGE] = 40 + (1 << LARGE_LG_K)
    return Compared(figures, [f"DuckDB {duckdb.__version__}", *(worker.version for worker in workers)], state_bytes)


def _hip(items: pa.ChunkedArray):
    """The library as one uses it: a sketch that sees the uids themselves, in order, and was never merged."""
    sketch = hll_sketch(LG_K, tgt_hll_type.HLL_8)
    at = 0
    for size in ladder(len(items)):
        for uid in items[at:size].to_pylist():
            sketch.update(uid)
        at = size
        yield size, sketch.get_estimate()


def _duckdb(db: duckdb.DuckDBPyConnection, items: pa.ChunkedArray):
    for size in ladder(len(items)):
        db.register("items", pa.table({"uid": items[:size]}))
        ((estimate,),) = db.execute("SELECT approx_count_distinct(uid) FROM items").fetchall()
        db.unregister("items")
        yield size, estimate


def _figures(name: str, estimates: dict[int, Sequence[float]]) -> list[Figure]:
    errors = {size: np.asarray(found, float) / size - 1 for size, found in estimates.items()}
    pooled = np.concatenate([error for size, error in errors.items() if size >= SETTLED << LG_K])
    return [
        figure(name, 0, 0, pooled),
        *(figure(name, 0, size, error) for size, error in sorted(errors.items())),
    ]
