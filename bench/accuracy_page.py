"""Part of accuracy.py: docs/accuracy.md and its two plots, from the figures of a run.

The texts are in accuracy_page.md beside this file; every number comes from the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy_peers import DUCKDB, LIBRARY, LIBRARY_HIP, NAMES, OURS, OURS_LARGE
from accuracy_single import LG_K, SWEEP, Figure, ladder

DEFAULT = 12
_HEAD_BYTES = 40  # of a state, before its registers
PLOTS = ("accuracy.svg", "accuracy-lg-k.svg")
_SMOOTH = 300  # trials below which a plotted point is drawn hollow and joined to none
_COLOURS = ("#0b5fa5", "#c2410c", "#7b2d8e", "#15803d", "#b45309", "#be123c", "#475569")


@dataclass(frozen=True)
class Run:
    """All that a run found, and what a reader must know to repeat it."""

    single: list[Figure]
    unions: list[Figure]
    merged_states: int
    equal: int
    compared: int
    peers: list[Figure]
    peer_versions: list[str]
    state_bytes: dict[str, int]
    levels: list[str]  # what the trials of the single states were, for a person
    machine: str
    versions: str
    command: str
    seed: int
    seconds: int
    date: str


def standard_error(lg_k: int) -> float:
    return 1.04 / math.sqrt(1 << lg_k)


def page(run: Run) -> str:
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return template.format(**_of_single(run), **_of_unions(run), **_of_peers(run), **_about(run))


def _of_single(run: Run) -> dict[str, str]:
    at = {(f.lg_k, f.users): f for f in run.single if f.kind == "state"}
    pools = {f.lg_k: f for f in run.single if f.kind == "pool"}
    pool = pools[DEFAULT]
    small = [at[DEFAULT, n] for n in ladder(500)]
    sweep = [at[DEFAULT, int(share * (1 << DEFAULT))] for share in SWEEP]
    by_users = [f for (k, _), f in sorted(at.items()) if k == DEFAULT]
    return {
        "p68_3": _percent(pool.p68_3),
        "p95_4": _percent(pool.p95_4),
        "p99_7": _percent(pool.p99_7),
        "held": _share(pool.held),
        "most_users": f"{by_users[-1].users:,}",
        **{f"error_{n}": _percent(n * standard_error(DEFAULT)) for n in (1, 2, 3)},
        "small_held": _share(min(f.held for f in small)),
        "sweep_first": f"{SWEEP[0]:g}",
        "sweep_last": f"{SWEEP[-1]:g}",
        "sweep_sizes": str(len(sweep)),
        "sweep_low": _signed(min(f.bias for f in sweep)),
        "sweep_high": _signed(max(f.bias for f in sweep)),
        "sweep_worst": _percent(max(f.p68_3 for f in sweep)),
        "small": _table(
            ("Users", "trials", "rounds to the truth", "68.3% within", "95.4% within", "worst", "in bounds"),
            [(f"{f.users:,}", f"{f.trials:,}", _share(f.whole) + "%", *_tail(f)) for f in small],
        ),
        "lg_k": _table(
            ("lg_k", "bytes a state", "525,600 minutes", "1.04/√(2^lg_k)", "68.3% within", "95.4% within",
             "99.7% within", "median bias", "in bounds", "estimates"),
            [
                (f"**{k}**" if k == DEFAULT else str(k), f"{_HEAD_BYTES + (1 << k):,}",
                 f"{525_600 * (_HEAD_BYTES + (1 << k)) / 1e9:.1f} GB", _percent(standard_error(k)), _percent(f.p68_3),
                 _percent(f.p95_4), _percent(f.p99_7), _signed(f.bias), _share(f.held) + "%", f"{f.trials:,}")
                for k, f in sorted(pools.items())
            ],
        ),
        "by_users": _table(
            ("Users", "trials", "median bias", "50%", "68.3%", "95.4%", "99.7%", "in bounds"),
            [
                (f"{f.users:,}", f"{f.trials:,}", _signed(f.bias), _percent(f.p50), _percent(f.p68_3),
                 _percent(f.p95_4), _percent(f.p99_7), _share(f.held) + "%")
                for f in by_users
            ],
        ),
        "by_lg_k": _table(
            ("Users", *(f"lg_k {k}" for k in LG_K)),
            [(f"{n:,}", *(_percent(at[k, n].p68_3) for k in LG_K)) for n in ladder(by_users[-1].users)],
        ),
    }  # fmt: skip


def _of_unions(run: Run) -> dict[str, str]:
    single = {f.users: f for f in run.single if f.kind == "state" and f.lg_k == DEFAULT}
    rows = []
    for f in run.unions:
        if "sparse" not in f.kind:
            rows.append(("none: a single state", single[f.users]))
        rows.append((f.kind, f))
    return {
        "merged_states": f"{run.merged_states:,}",
        "equal": f"{run.equal:,}",
        "compared": f"{run.compared:,}",
        "years": str(run.unions[-1].trials),
        "year_users": f"{run.unions[-1].users:,}",
        "unions": _table(
            ("Union", "users", "windows", "median bias", "68.3% within", "95.4% within", "worst", "in bounds"),
            [(name, f"{f.users:,}", f"{f.trials:,}", _signed(f.bias), *_tail(f)) for name, f in rows],
            texts=1,
        ),
    }


_STATES = {
    OURS: "yes: macros in any DuckDB; the bytes are DataSketches HLL_8, which Spark, Druid and others read",
    OURS_LARGE: "the same",
    LIBRARY: "by the library, not in SQL; the same bytes",
    LIBRARY_HIP: "the bytes yes, this accuracy no: after a union the estimate is the composite one",
    DUCKDB: "in DuckDB (`EXPORT_STATE`); in Parquet it becomes a plain struct; a hash of DuckDB's own",
    NAMES["approx_n_unique"]: "no, it gives a number",
    NAMES["uniq"]: "in ClickHouse (`uniqState`, `uniqMerge`); a format of its own",
    NAMES["uniqCombined"]: "in ClickHouse; a format of its own",
    NAMES["uniqHLL12"]: "in ClickHouse; a format of its own; its manual advises against the function",
}
# What the source says, of states that are not stored as bytes.
_REGISTERS = {DUCKDB: "1,024 registers", NAMES["approx_n_unique"]: "16,384 registers"}
_SHOWN = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def _of_peers(run: Run) -> dict[str, str]:
    pooled = {f.kind: f for f in run.peers if f.users == 0}
    at = {(f.kind, f.users): f for f in run.peers if f.users}
    trials = {users: f.trials for (name, users), f in at.items() if name == OURS}
    sizes = [n for n in _SHOWN if n in trials]
    return {
        "peer_trials": f"{max(trials.values()):,}",
        "peer_few": f"{min(trials.values()):,}",
        "peer_most": f"{max(trials):,}",
        "uniq_times": f"{run.state_bytes[NAMES['uniq']] / run.state_bytes[OURS]:.0f}",
        "combined_times": f"{run.state_bytes[NAMES['uniqCombined']] / run.state_bytes[OURS]:.0f}",
        "peers": _table(
            ("", "state", "median bias", "68.3% within", "95.4% within", "worst"),
            [
                (name, f"{run.state_bytes[name]:,} bytes" if name in run.state_bytes else _REGISTERS[name],
                 _signed(f.bias), _percent(f.p68_3), _percent(f.p95_4), _percent(f.worst))
                for name, f in pooled.items()
            ],
            texts=1,
        ),
        "peers_by_users": _table(
            ("", *(f"{n:,}" for n in sizes)),
            [(name, *(_percent(at[name, n].p68_3) for n in sizes)) for name in pooled],
            texts=1,
        ),
        "peer_states": _table(
            ("", "mergeable state in SQL, open format?"), [(name, _STATES[name]) for name in pooled], texts=2
        ),
    }  # fmt: skip


def _about(run: Run) -> dict[str, str]:
    return {
        "levels": "\n".join(f"- {level}" for level in run.levels),
        "command": run.command,
        "seed": str(run.seed),
        "minutes": f"{run.seconds / 60:.0f}",
        "date": run.date,
        "machine": run.machine,
        "versions": ", ".join([run.versions, *run.peer_versions]),
    }


def _tail(f: Figure) -> tuple[str, str, str, str]:
    return _percent(f.p68_3), _percent(f.p95_4), _percent(f.worst), _share(f.held) + "%"


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"


def _signed(share: float) -> str:
    return f"{share * 100:+.2f}%".replace("-0.00%", "0.00%").replace("+0.00%", "0.00%").replace("-", "−")


def _share(share: float) -> str:
    """Of 100; never rounded up to all of them."""
    return "100" if share == 1 else f"{math.floor(share * 1000) / 10:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 0) -> str:
    """The first `texts` columns are text, the others are numbers."""
    line = "|" + "---|" * texts + "--:|" * (len(head) - texts)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])


# Plots: SVG as text, on white, so that they read the same on a dark page.

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 58, 150, 46, 52, 860, 440


def plots(run: Run) -> dict[str, str]:
    return {PLOTS[0]: _plot_default(run), PLOTS[1]: _plot_lg_k(run)}


def _plot_default(run: Run) -> str:
    figures = [f for f in run.single if f.kind == "state" and f.lg_k == DEFAULT]
    axes = _Axes(max(f.users for f in figures), -0.01, 0.06, 0.01)
    axes.shade(SWEEP[0] * 4096, SWEEP[-1] * 4096, "end of the small range")
    for name, colour, value in (
        ("99.7% within", _COLOURS[2], lambda f: f.p99_7),
        ("95.4% within", _COLOURS[1], lambda f: f.p95_4),
        ("68.3% within", _COLOURS[0], lambda f: f.p68_3),
        ("median bias", _COLOURS[6], lambda f: f.bias),
    ):
        axes.line(figures, value, colour, name)
    for sigmas in (1, 2, 3):
        name = f"{'' if sigmas == 1 else f'{sigmas} × '}1.04/√4096"
        axes.level(sigmas * standard_error(DEFAULT), name, "#555", label_y=-5)
    return axes.svg(
        "Relative error of the estimate at lg_k 12",
        "lines: measured; dashed: theory; hollow: fewer than 300 trials; one user of ten missed is off the scale",
    )


def _plot_lg_k(run: Run) -> str:
    figures = [f for f in run.single if f.kind == "state"]
    axes = _Axes(max(f.users for f in figures), 0, 0.04, 0.005)
    for lg_k, colour in zip(LG_K, _COLOURS, strict=True):
        axes.level(standard_error(lg_k), "", colour)
        axes.line([f for f in figures if f.lg_k == lg_k], lambda f: f.p68_3, colour, f"lg_k {lg_k}",
                  standard_error(lg_k))  # fmt: skip
    return axes.svg(
        "68.3% of the estimates were within, by lg_k",
        "lines: measured; dashed: 1.04/√(2^lg_k); hollow: fewer than 300 trials",
    )


class _Axes:
    """Users on a logarithmic axis from 1, shares on a linear one."""

    def __init__(self, most_users: int, low: float, high: float, step: float) -> None:
        self._decades = math.log10(most_users)
        self._low, self._high, self._step = low, high, step
        self._parts: list[str] = []

    def _x(self, users: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log10(users) / self._decades

    def _y(self, share: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self._high - share) / (self._high - self._low)

    def _text(self, x: float, y: float, text: str, colour: str = "#333", size: int = 12, anchor: str = "start") -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" stroke="#fff" '
            f'stroke-width="3" paint-order="stroke">{text}</text>'
        )

    def shade(self, start: float, end: float, name: str) -> None:
        x, width = self._x(start), self._x(end) - self._x(start)
        self._parts.append(
            f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{_HEIGHT - _TOP - _BOTTOM}" fill="#eef2f7"/>'
        )
        self._text(x + width / 2, _HEIGHT - _BOTTOM - 6, name, "#667", 11, "middle")

    def level(self, share: float, name: str, colour: str, label_y: float = 0) -> None:
        y = self._y(share)
        self._parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="{colour}" '
            'stroke-width="1" stroke-dasharray="5 4" stroke-opacity="0.75"/>'
        )
        if name:
            self._text(_LEFT + 8, y + label_y, name, colour, 11)

    def line(
        self,
        figures: Sequence[Figure],
        value: Callable[[Figure], float],
        colour: str,
        name: str,
        label_at: float | None = None,
    ) -> None:
        figures = sorted(figures, key=lambda f: f.users)
        many = [f for f in figures if f.trials >= _SMOOTH]
        few = [f for f in figures if f.trials < _SMOOTH]
        points = " ".join(f"{self._x(f.users):.1f},{self._y(value(f)):.1f}" for f in many)
        self._parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" '
            'clip-path="url(#inside)"/>'
        )
        for f in few:
            self._parts.append(
                f'<circle cx="{self._x(f.users):.1f}" cy="{self._y(value(f)):.1f}" r="3" fill="#fff" stroke="{colour}" '
                'stroke-width="1.5" clip-path="url(#inside)"/>'
            )
        level = value((many or few)[-1]) if label_at is None else label_at
        self._text(_WIDTH - _RIGHT + 10, self._y(level) + 4, name, colour, 13)

    def svg(self, title: str, legend: str) -> str:
        grid = []
        inner, self._parts = self._parts, []
        for i in range(round((self._high - self._low) / self._step) + 1):
            share = self._low + i * self._step
            y = self._y(share)
            colour = "#888" if abs(share) < 1e-9 else "#e3e6ea"
            grid.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="{colour}"/>')
            self._text(_LEFT - 8, y + 4, f"{share * 100:.{0 if self._step >= 0.01 else 1}f}%".replace("-", "−"),
                       anchor="end")  # fmt: skip
        for decade in range(int(self._decades) + 1):
            x = self._x(10**decade)
            grid.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#e3e6ea"/>')
            self._text(x, _HEIGHT - _BOTTOM + 18, f"{10**decade:,}", anchor="middle")
        self._text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "different users", anchor="middle")
        self._text(_LEFT, 20, title, "#111", 15)
        self._text(_LEFT, 37, legend, "#555", 12)
        shades = [part for part in inner if part.startswith("<rect")]
        rest = [part for part in inner if not part.startswith("<rect")]
        body = "\n".join([*shades, *grid, *rest, *self._parts])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">\n'
            f"<title>{title}</title>\n"
            f'<clipPath id="inside"><rect x="{_LEFT - 4}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT + 8}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>\n'
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )
