"""Measures how far estimates are from the truth, and writes docs/accuracy.md.

    python bench/accuracy.py [--quick] [--write] [--seed 1] [--no-peers] [--dir FOLDER]
    python bench/accuracy.py --page

Measures the relative error of our estimates, by the macros of sql/hll, for lg_k 10 to 16 and 1 to 10^7 users; the
same after unions of 60 and of 525,600 states by sql/rollup/merge_children.sql; and that of the approximate distinct
counts of DuckDB, Polars, ClickHouse and Apache DataSketches, of the same uids. Polars and ClickHouse (chdb) are
installed by pip, each in a virtual environment of its own in --dir (default: a temporary folder; 1.2 GB).

Takes a quarter of an hour of one core and 2 GB of memory; --quick a minute, most of it pip's, for a look. --write keeps
the figures in bench/accuracy.json and writes docs/accuracy.md with its plots from them; --page does only the latter,
for a change of its texts (bench/accuracy_page.md). The same seed gives the same figures.

Exits with 1 when an estimate is worse than we promise: see `violations`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import accuracy_page
import accuracy_peers
import accuracy_single
import accuracy_unions
from accuracy_page import Run, standard_error
from accuracy_peers import Compared
from accuracy_single import SWEEP, Figure, Level
from accuracy_unions import United

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
FIGURES = FOLDER / "accuracy.json"

LG_K = 12
PROMISED = 0.017  # 68.3% of the estimates at lg_k 12 are within
MEDIAN_ERROR = 1.2533  # standard error of a median, in standard deviations / sqrt(trials)
PERCENTILE_ERROR = 0.961  # of the 68.3rd percentile of an absolute error, likewise
LEAN = 1.2  # the estimator leans high by about this / 2^lg_k (sql/hll/60_estimate.sql)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few trials")
    parser.add_argument("--write", action="store_true", help="write the figures, the page and the plots")
    parser.add_argument("--page", action="store_true", help="write page and plots from the figures of the last --write")
    parser.add_argument("--no-peers", action="store_true", help="without the peers; writes nothing")
    parser.add_argument("--dir", type=Path, default=None, help="of the virtual environments, kept for the next run")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.page:
        _write(load(FIGURES))
        return 0
    if options.write and options.no_peers:
        parser.error("the page has the peers in it: --write without --no-peers")
    folder = (options.dir or Path(tempfile.mkdtemp(prefix="uniq-accuracy-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _run(options, folder)
    finally:
        if options.dir is None:
            shutil.rmtree(folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    started = time.monotonic()
    seed, quick = options.seed, options.quick
    levels = accuracy_single.QUICK if quick else accuracy_single.FULL
    with accuracy_single.connect() as db:
        wrong = accuracy_single.proofs(db, seed)
        single = accuracy_single.measure(db, levels, seed)
        unions = accuracy_unions.measure(db, accuracy_unions.QUICK if quick else accuracy_unions.FULL, seed)
        peers = Compared([], [], {})
        if not options.no_peers:
            plan = accuracy_peers.QUICK if quick else accuracy_peers.FULL
            peers = accuracy_peers.measure(db, plan, seed, folder)
    run = Run(
        single=single,
        unions=unions.figures,
        merged_states=unions.states,
        equal=unions.equal,
        compared=unions.compared,
        peers=peers.figures,
        peer_versions=peers.versions,
        state_bytes=peers.state_bytes,
        levels=_described(levels),
        machine=_machine(),
        versions=_versions(),
        command="python bench/accuracy.py" + " --quick" * quick + " --write" * options.write,
        seed=seed,
        seconds=round(time.monotonic() - started),
        date=datetime.now(UTC).date().isoformat(),
    )
    _print(run)
    wrong += violations(single, unions)
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        return 1
    if options.write:
        save(run, FIGURES)
        _write(load(FIGURES))
    return 0


def violations(single: Sequence[Figure], unions: United) -> list[str]:
    """What breaks the promise at lg_k 12, as far as so many trials can tell.

    All sizes from ten users a register on together: 68.3% of the estimates are within 1.7%. A single size may miss
    that by three standard errors of the percentile, since one of forty would by chance. A spike near the end of the
    small range would be a bias: the median of the signed error is 0 there but for the estimator's lean and four
    standard errors of a median. A union is the state of its users.
    """
    wrong = []
    m, error = 1 << LG_K, standard_error(LG_K)
    for f in single:
        if f.lg_k != LG_K:
            continue
        chance = error / math.sqrt(f.trials)
        if f.kind == "pool":
            if f.p68_3 > PROMISED:
                wrong.append(f"68.3% of all estimates are within {f.p68_3:.2%} only, not {PROMISED:.1%}")
            continue
        if f.p68_3 > PROMISED + 3 * PERCENTILE_ERROR * chance:
            wrong.append(f"at {f.users:,} users 68.3% of {f.trials:,} estimates are within {f.p68_3:.2%} only")
        if SWEEP[0] * m <= f.users <= SWEEP[-1] * m and abs(f.bias) > LEAN / m + 4 * MEDIAN_ERROR * chance:
            wrong.append(f"at {f.users:,} users the median of {f.trials:,} estimates is off by {f.bias:+.2%}")
    if unions.equal != unions.compared:
        wrong.append(f"{unions.compared - unions.equal} of {unions.compared} unions are not the state of their users")
    return wrong


def _print(run: Run) -> None:
    print(f"{run.machine}; {run.versions}; {run.command}, seed {run.seed}, {run.seconds} s")
    head = f"{'users':>12}{'trials':>9}{'bias':>8}{'50%':>8}{'68.3%':>8}{'95.4%':>8}{'99.7%':>8}{'worst':>8}{'held':>8}"
    print(f"{'lg_k ' + str(LG_K):40}{head}")
    for f in run.single:
        if f.lg_k == LG_K and f.kind == "state":
            print(_row("", f))
    print(f"{'from 10 users a register on':40}{head}")
    for f in run.single:
        if f.kind == "pool":
            print(_row(f"lg_k {f.lg_k}, theory {standard_error(f.lg_k):.2%}", f))
    print(f"{'unions':40}{head}")
    for f in run.unions:
        print(_row(f.kind, f))
    print(
        f"{run.equal:,} of {run.compared:,} unions equal the state of their users; {run.merged_states:,} states merged"
    )
    if run.peers:
        print(f"{'of the same uids':40}{head}")
    for f in run.peers:
        if f.users == 0:
            print(_row(f.kind, f))


def _row(name: str, f: Figure) -> str:
    shares = (f.bias, f.p50, f.p68_3, f.p95_4, f.p99_7, f.worst)
    held = f"{f.held:8.1%}" if f.held >= 0 else ""
    users = f"{f.users:,}" if f.users else "all"
    return f"{name:40}{users:>12}{f.trials:>9,}" + "".join(f"{share:8.2%}" for share in shares) + held


def _described(levels: Iterable[Level]) -> list[str]:
    return [
        f"{level.trials:,} up to {level.limit:,} users at lg_k {level.lg_k[0]} to {level.lg_k[-1]}" for level in levels
    ]


def _machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}"


def _versions() -> str:
    names = {"NumPy": "numpy", "PyArrow": "pyarrow", "datasketches": "datasketches"}
    return ", ".join([f"Python {platform.python_version()}", *(f"{k} {version(v)}" for k, v in names.items())])


# The figures of the last run that was written: one line each, so that a later run shows as a readable diff.

_LISTS = ("single", "unions", "peers")


def save(run: Run, path: Path) -> None:
    about = {name: value for name, value in asdict(run).items() if name not in _LISTS}
    parts = [f'"about": {json.dumps(about)}', f'"columns": {json.dumps([field.name for field in fields(Figure)])}']
    for name in _LISTS:
        rows = ",\n".join(json.dumps([_short(value) for value in asdict(f).values()]) for f in getattr(run, name))
        parts.append(f'"{name}": [\n{rows}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def load(path: Path) -> Run:
    stored = json.loads(path.read_text())
    return Run(**stored["about"], **{name: [Figure(*row) for row in stored[name]] for name in _LISTS})


def _short(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _write(run: Run) -> None:
    for name, text in {"accuracy.md": accuracy_page.page(run), **accuracy_page.plots(run)}.items():
        (DOCS / name).write_text(text)
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    sys.exit(main())
