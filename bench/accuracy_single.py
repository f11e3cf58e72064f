"""Part of accuracy.py: the relative error of single states, at many cardinalities from one stream of uids a trial."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb  # noqa: TID251 - asks the macros for thousands of states at a time, as a person's shell would
import numpy as np
import pyarrow as pa

from uniq_pipeline.coupons import coupons
from uniq_pipeline.queries import macros

LG_K = (10, 11, 12, 13, 14, 15, 16)
FINEST = 16  # registers are kept at this precision and folded to the others
# Around the end of the small range, in users a register: classic HLL changes its estimator at 2.5.
SWEEP = (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, 6)

# Users a register from which on the relative error hardly depends on their number: within 4% of its limit.
SETTLED = 10

_BLOCK = 10_000  # uids that differ in their last four digits only
_BLOCKS = 10**8
_BLOCKS_A_TRIAL = 1000  # no trial has more than 10^7 uids
_PIECE = 500_000  # uids hashed at a time
_DIGITS = np.frombuffer(b"".join(b"%04d" % i for i in range(_BLOCK)), "<u4")
_BYTES_A_BATCH = 24_000_000  # of states that are handed to SQL at once
_POWERS = 2.0 ** -np.arange(64)


@dataclass(frozen=True)
class Level:
    """Some trials: how many, up to how many users each, at which precisions."""

    trials: int
    limit: int
    lg_k: tuple[int, ...]


FULL = (
    Level(60, 10**7, LG_K),
    Level(240, 10**6, LG_K),
    Level(700, 10**6, (10, 11, 12, 13, 14)),
    Level(2000, 10**5, (10, 11, 12)),
)
QUICK = (Level(10, 10**6, LG_K), Level(30, 10**5, (10, 11, 12, 13, 14)), Level(160, 30_000, (10, 11, 12)))


@dataclass(frozen=True)
class Figure:
    """How far estimates of one kind were from the truth, relative to it. `users` is 0 where sizes are pooled.

    `bias` is the median of the signed error, `mean` its mean; p50 to p99_7 and `worst` are of the absolute one.
    `held` is the share of trials with the truth within the bounds at two standard errors, `whole` that of
    estimates that round to the truth.
    """

    kind: str
    lg_k: int
    users: int
    trials: int
    bias: float
    mean: float
    p50: float
    p68_3: float
    p95_4: float
    p99_7: float
    worst: float
    held: float
    whole: float


def figure(
    kind: str,
    lg_k: int,
    users: int,
    errors: np.ndarray,
    held: np.ndarray | None = None,
    whole: np.ndarray | None = None,
) -> Figure:
    p50, p68, p95, p99 = np.percentile(np.abs(errors), (50, 68.3, 95.4, 99.7))
    return Figure(
        kind, lg_k, users, len(errors), float(np.median(errors)), float(np.mean(errors)), float(p50), float(p68),
        float(p95), float(p99), float(np.abs(errors).max()),
        -1.0 if held is None else float(np.mean(held)), -1.0 if whole is None else float(np.mean(whole)),
    )  # fmt: skip


class Progress:
    """Prints how far a part has come, every ten seconds."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._started = 0.0, time.monotonic()
        self._next = self._started + 10

    def add(self, done: float) -> None:
        self._done += done
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 10
        rate = self._done / (now - self._started)
        print(
            f"  {self._what}: {self._done:,.0f} of {self._total:,.0f} {self._unit}, {rate:,.0f}/s, "
            f"{(self._total - self._done) / rate:,.0f} s to go",
            flush=True,
        )

    def end(self) -> None:
        seconds = time.monotonic() - self._started
        print(f"  {self._what}: {self._done:,.0f} {self._unit} in {seconds:,.0f} s", flush=True)


def ladder(limit: int) -> list[int]:
    """1, 2, 5, 10, ... up to the limit."""
    return [step * 10**power for power in range(8) for step in (1, 2, 5) if step * 10**power <= limit]


def checkpoints(lg_k: int, limit: int) -> list[int]:
    return sorted({*ladder(limit), *(n for share in SWEEP if (n := int(share * (1 << lg_k))) <= limit)})


def uids(seed: int, trial: int, start: int, count: int) -> pa.StringArray:
    """Uids `[start, start + count)` of a trial: 12-digit numbers, consecutive; no two trials of a seed share one."""
    first = int(np.random.default_rng(seed).integers(_BLOCKS)) + trial * _BLOCKS_A_TRIAL
    blocks = (first + np.arange(start // _BLOCK, -(-(start + count) // _BLOCK))) % _BLOCKS
    words = np.empty((len(blocks), _BLOCK, 3), "<u4")
    words[:, :, 0] = _DIGITS[blocks // _BLOCK][:, None]
    words[:, :, 1] = _DIGITS[blocks % _BLOCK][:, None]
    words[:, :, 2] = _DIGITS
    text = words.reshape(-1, 3)[start % _BLOCK :][:count]
    ends = np.arange(0, 12 * count + 1, 12, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(text)))


def registers(seed: int, trial: int, sizes: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The registers at FINEST after each of these numbers of uids of a trial, in ascending order; one array, reused."""
    kept = np.zeros(1 << FINEST, np.uint8)
    piece_start, slots, values = 0, np.empty(0, np.uint16), np.empty(0, np.uint8)
    at = 0
    for size in sizes:
        while at < size:
            if at == piece_start + len(slots):
                piece_start = at
                found = coupons(uids(seed, trial, at, min(_PIECE, sizes[-1] - at))).to_numpy()
                slots, values = found.astype(np.uint16), (found >> 26).astype(np.uint8)
            end = min(size, piece_start + len(slots))
            part = slice(at - piece_start, end - piece_start)
            np.maximum.at(kept, slots[part], values[part])
            at = end
        yield size, kept


def fold(kept: np.ndarray, lg_k: int) -> np.ndarray:
    """Registers at a lower precision. The slot is the low bits of the coupon's address and the value does not
    depend on the precision, so slots that share their low bits become one, and the greatest value stays."""
    return kept.reshape(-1, 1 << lg_k).max(axis=0)


def pack(values: np.ndarray, lg_k: int) -> bytes:
    """The state of these registers, as hll_state would write it (sql/hll/30_layout.sql; held against it in the run)."""
    powers = _POWERS[values]
    low, empty = float(powers[values < 32].sum()), int(np.count_nonzero(values == 0))
    high = float(powers[values >= 32].sum())
    return (
        bytes([10, 1, 7, lg_k, 0, 20 if empty == 1 << lg_k else 16, 0, 10])
        + bytes(8)
        + np.array([low, high], "<f8").tobytes()
        + np.array([empty, 0], "<u4").tobytes()
        + values.tobytes()
    )


def connect() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(config={"threads": 1, "memory_limit": "2GiB"})
    db.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
    db.execute(macros("hll"))
    return db


class Estimator:
    """Collects states and has SQL estimate them a batch at a time: estimates and bounds by (lg_k, users)."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        self._db = db
        self._waiting: dict[int, list[tuple[int, int, bytes]]] = defaultdict(list)
        self._bytes: dict[int, int] = defaultdict(int)
        self._found: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)

    def add(self, lg_k: int, users: int, values: np.ndarray) -> None:
        self._waiting[lg_k].append((users, int(np.count_nonzero(values)), pack(values, lg_k)))
        self._bytes[lg_k] += len(values)
        if self._bytes[lg_k] > _BYTES_A_BATCH:
            self._flush(lg_k)

    def found(self) -> dict[tuple[int, int], np.ndarray]:
        """Rows of (estimate, lower, upper)."""
        for lg_k in list(self._waiting):
            self._flush(lg_k)
        return {key: np.concatenate(rows) for key, rows in self._found.items()}

    def _flush(self, lg_k: int) -> None:
        users, used, states = zip(*self._waiting.pop(lg_k), strict=True)
        self._bytes[lg_k] = 0
        self._db.register("states", pa.table({"users": users, "used": used, "hll": pa.array(states, pa.binary())}))
        rows = self._db.execute(
            """WITH estimates AS MATERIALIZED (SELECT users, used, hll_estimate(hll) AS estimate FROM states)
               SELECT users, estimate, hll_lower_from(estimate, used, $lg_k) AS lower,
                      hll_upper_from(estimate, used, $lg_k) AS upper FROM estimates""",
            {"lg_k": lg_k},
        ).fetchnumpy()
        self._db.unregister("states")
        table = np.stack([np.asarray(rows[name], float) for name in ("estimate", "lower", "upper")], axis=1)
        order = np.argsort(rows["users"], kind="stable")
        sizes, starts = np.unique(rows["users"][order], return_index=True)
        for size, part in zip(sizes, np.split(table[order], starts[1:]), strict=True):
            self._found[lg_k, int(size)].append(part)


def measure(db: duckdb.DuckDBPyConnection, levels: Sequence[Level], seed: int) -> list[Figure]:
    """Of every precision: a figure for each number of users, and one for all from SETTLED * 2^lg_k on (`users` 0)."""
    estimator = Estimator(db)
    progress = Progress("single states", sum(level.trials * level.limit for level in levels), "uids")
    trial = 0
    for level in levels:
        wanted = {lg_k: set(checkpoints(lg_k, level.limit)) for lg_k in level.lg_k}
        sizes = sorted(set().union(*wanted.values()))
        for _ in range(level.trials):
            for size, kept in registers(seed, trial, sizes):
                for lg_k in level.lg_k:
                    if size in wanted[lg_k]:
                        estimator.add(lg_k, size, fold(kept, lg_k))
            trial += 1
            progress.add(sizes[-1])
    found = estimator.found()
    progress.end()
    return _figures(found)


def _figures(found: dict[tuple[int, int], np.ndarray]) -> list[Figure]:
    figures, pools = [], defaultdict(list)
    for (lg_k, users), rows in sorted(found.items()):
        estimates, lower, upper = rows.T
        errors, held = estimates / users - 1, (lower <= users) & (users <= upper)
        figures.append(figure("state", lg_k, users, errors, held, np.round(estimates) == users))
        if users >= SETTLED << lg_k:
            pools[lg_k].append((errors, held))
    for lg_k, parts in pools.items():
        errors, held = (np.concatenate(column) for column in zip(*parts, strict=True))
        figures.append(figure("pool", lg_k, 0, errors, held))
    return figures


def proofs(db: duckdb.DuckDBPyConnection, seed: int, users: int = 30_000) -> list[str]:
    """What is wrong with the short cuts: folded registers against a state that SQL builds from the coupons
    themselves, at every precision, byte for byte; and hll_estimate against hll_estimate_registers."""
    wrong = []
    sizes = [1, 40, users // 10, users]
    for size, kept in registers(seed, 0, sizes):
        db.register("seen", pa.table({"coupon": coupons(uids(seed, 0, 0, size))}))
        for lg_k in LG_K:
            ((state, estimate, from_registers),) = db.execute(
                """SELECT hll, hll_estimate(hll), estimate FROM (
                       SELECT hll_state(slot, value, $lg_k) AS hll, hll_estimate_registers(value, $lg_k) AS estimate
                       FROM (SELECT hll_slot(coupon, $lg_k) AS slot, max(hll_value(coupon)) AS value
                             FROM seen GROUP BY slot))""",
                {"lg_k": lg_k},
            ).fetchall()
            if state != pack(fold(kept, lg_k), lg_k):
                wrong.append(f"the folded state of {size:,} users at lg_k {lg_k} is not the one that SQL builds")
            if estimate != from_registers:
                wrong.append(f"two estimates of {size:,} users at lg_k {lg_k}: {estimate}, {from_registers}")
        db.unregister("seen")
    return wrong
