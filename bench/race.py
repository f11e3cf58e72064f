"""Backfills that race the live job, again and again, and at the end every window held against the truth. Linux only.

    python bench/race.py [--minutes 20] [--rate 1000] [--data-dir FOLDER]

Starts an embedded broker, a producer of frames of about 2 KB of which 2% come up to ten minutes late, and Dagster as
the demo does, with its schedules on; late frames correct their windows at once (UNIQ_VERY_LATE=correct). Meanwhile
every counts asset is backfilled over the newest partitions, which ticks are writing, by the API that the UI uses: real
runs, and as soon as they have ended the next ones.

After --minutes the traffic stops. Once a tick has read the last frame, and nothing runs, all windows of every grain,
from the minute to the year to date, must have the frames, the users counted exactly and the HLL registers of what was
produced, which the producer noted frame by frame, and there must be no other window. Exits with 1 and a list where
not, and where a backfill has failed. The oracle of the registers is the library datasketches.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb  # noqa: TID251 - reads the catalog as a person would, beside the product
from datasketches import hll_sketch, tgt_hll_type  # noqa: TID251 - the oracle of the registers
from live import Live, live_stack

from uniq_pipeline.demo.traffic import TrafficProfile

GRAINS = ("minute", "hour", "day", "week", "month", "year")
SETTINGS = {"UNIQ_VERY_LATE": "correct", "UNIQ_RESULTS_TOPIC": "", "UNIQ_TIMEZONE": "UTC", "UNIQ_LG_K": "12"}
NEWEST = 2  # partitions of each asset that are backfilled
LAST_TICK_S = 300.0
BACKFILL_S = 600.0
REGISTERS_AT = 40  # bytes before the registers in the library's layout
SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--data-dir", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    data_dir = options.data_dir or Path(tempfile.mkdtemp(prefix="uniq-race-"))
    profile = TrafficProfile(
        frames_per_s=options.rate,
        users=options.users,
        late_share=0.02,
        late_by_max_s=600,
        flip_share=0,
        bad_share=0.001,
    )
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    try:
        with live_stack(data_dir, profile, SETTINGS | {"UNIQ_HISTORY_START": f"{yesterday}"}) as live:
            return _run(live, time.time() + 60 * options.minutes)
    finally:
        if options.data_dir is None:
            shutil.rmtree(data_dir)


def _run(live: Live, until_s: float) -> int:
    wrong: list[str] = []
    backfills: Counter[str] = Counter()
    took_s: list[float] = []
    while time.time() < until_s:
        wrong += _backfill_all(live, backfills, took_s)
    live.producer.stop()
    deadline = time.time() + LAST_TICK_S
    while live.delivered() < live.producer.truth.frames and time.time() < deadline:
        time.sleep(1)
    live.api.pause()
    live.api.wait_until_idle(LAST_TICK_S)
    if not took_s:
        wrong.append("no backfill has raced anything")
    print(
        f"{sum(backfills.values())} backfills: {', '.join(f'{n} {status}' for status, n in backfills.items())}; "
        f"seconds a run: median {statistics.median(took_s or [0.0]):.1f}, most {max(took_s, default=0.0):.1f}"
    )
    wrong += _differences(live)
    for line in wrong[:SHOWN]:
        print(f"WRONG: {line}")
    print(f"{len(wrong)} wrong" if wrong else "every window equals the truth")
    return int(bool(wrong))


def _backfill_all(live: Live, backfills: Counter[str], took_s: list[float]) -> list[str]:
    """Launches one of each asset, waits for all; says which failed."""
    launched = {
        grain: live.api.launch_backfill(f"{grain}_counts", live.api.partition_keys(f"{grain}_counts")[-NEWEST:])
        for grain in GRAINS
    }
    failed = []
    for grain, backfill_id in launched.items():
        done = live.api.wait_for_backfill(backfill_id, BACKFILL_S)
        backfills[done.status] += 1
        took_s += [run["endTime"] - run["startTime"] for run in done.runs if run["endTime"]]
        if done.status != "COMPLETED_SUCCESS" or [run["status"] for run in done.runs] != ["SUCCESS"]:
            failed.append(f"backfill {backfill_id} of {grain}_counts: {done}")
    return failed


def _differences(live: Live) -> list[str]:
    truth = live.producer.truth
    wrong = []
    with duckdb.connect(str(live.data_dir / "uniq.duckdb"), read_only=True) as shell:
        shell.execute("SET TimeZone = 'UTC'")
        (conserved,) = shell.execute(
            "SELECT sum(delivered), sum(frames), sum(held), sum(quarantined) FROM batches"
        ).fetchall()
        print(
            f"produced {truth.frames:,}, of which {truth.bad:,} bad; delivered, frames, held, quarantined: {conserved}"
        )
        if conserved != (truth.frames, truth.frames - truth.bad, 0, truth.bad):
            wrong.append(f"delivered, frames, held, quarantined: {conserved}")
        for grain in GRAINS:
            windows: dict[int, Counter[str]] = defaultdict(Counter)
            for minute_s, users in truth.users.items():
                windows[_start_s(grain, minute_s)].update(users)
            found = _wrong_windows(shell, grain, windows)
            print(f"{grain:8}{len(windows):6} windows, {len(found)} wrong")
            wrong += found
    return wrong


def _wrong_windows(shell: duckdb.DuckDBPyConnection, grain: str, windows: dict[int, Counter[str]]) -> list[str]:
    rows = {
        row[0]: row[1:]
        for row in shell.execute(
            "SELECT epoch(window_start)::BIGINT, window_start::VARCHAR, window_end::VARCHAR, frames, unique_users, hll "
            f"FROM {grain}_counts"
        ).fetchall()
    }
    wrong = [f"{grain} {rows[start_s][0]}: nothing was produced for it" for start_s in rows.keys() - windows.keys()]
    for start_s, users in sorted(windows.items()):
        if start_s not in rows:
            wrong.append(f"{grain} {datetime.fromtimestamp(start_s, UTC)}: not there, {users.total():,} frames")
            continue
        start, end, frames, exact, state = rows[start_s]
        # An open window stores no exact count: its users are counted from the sets and frames that there are.
        counted, is_exact = shell.execute(
            f"SELECT users, is_exact FROM unique_users('{start}', '{end}', exact_up_to := 1000000000)"
        ).fetchall()[0]
        if frames != users.total():
            wrong.append(f"{grain} {start}: {frames:,} frames, the truth is {users.total():,}")
        stored = {len(users)} if grain == "minute" else {len(users), None}
        if not is_exact or counted != len(users) or exact not in stored:
            wrong.append(f"{grain} {start}: {exact} users stored, {counted} counted, the truth is {len(users):,}")
        sketch = hll_sketch(12, tgt_hll_type.HLL_8, True)
        for uid in users:
            sketch.update(uid)
        if bytes(state)[REGISTERS_AT:] != sketch.serialize_updatable()[REGISTERS_AT:]:
            wrong.append(f"{grain} {start}: the registers differ")
    return wrong


def _start_s(grain: str, minute_s: int) -> int:
    """Start of the window of a grain, in UTC, that holds a minute."""
    at = datetime.fromtimestamp(minute_s, UTC)
    if grain == "minute":
        return minute_s
    at = at.replace(minute=0)
    if grain != "hour":
        at = at.replace(hour=0)
    if grain == "week":
        at -= timedelta(days=at.weekday())
    if grain in ("month", "year"):
        at = at.replace(day=1)
    if grain == "year":
        at = at.replace(month=1)
    return int(at.timestamp())


if __name__ == "__main__":
    sys.exit(main())
