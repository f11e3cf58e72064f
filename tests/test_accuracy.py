"""What docs/accuracy.md says of the error of estimates holds on a small sample, and is what the last run found."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import accuracy  # noqa: E402 - it is no package, but a folder of commands
import accuracy_page  # noqa: E402
import accuracy_single  # noqa: E402
import accuracy_unions  # noqa: E402
from accuracy_single import LG_K, SETTLED, Level  # noqa: E402

SEED = 7  # not that of the page
SAMPLE = [Level(200, 30_000, (10, 12))]
UNIONS = accuracy_unions.Plan(
    hours=3, users_an_hour=(100, 3_000), years=1, days=31, users_a_year=20_000, users_a_minute=2
)


@pytest.fixture(scope="module")
def db():
    with accuracy_single.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def single(db):
    return accuracy_single.measure(db, SAMPLE, SEED)


@pytest.fixture(scope="module")
def run():
    """The figures of the run that the page shows."""
    return accuracy.load(accuracy.FIGURES)


def united(run):
    return accuracy_unions.United(run.unions, run.merged_states, run.equal, run.compared)


def test_folded_registers_are_the_state_that_sql_makes_of_the_coupons(db):
    assert accuracy_single.proofs(db, SEED, users=5_000) == []


def test_estimates_and_unions_keep_the_promise_on_a_small_sample(db, single):
    unions = accuracy_unions.measure(db, UNIONS, SEED)
    assert unions.compared == 7
    assert accuracy.violations(single, unions) == []


@pytest.mark.parametrize("lg_k", [10, 12])
def test_the_error_is_the_theoretical_one_and_not_less(single, lg_k):
    largest = max((f for f in single if f.lg_k == lg_k), key=lambda f: f.users)
    # Four standard errors of the percentile; with six users a register at lg_k 12 the error is a tenth below its limit.
    tolerance = 4 * accuracy.PERCENTILE_ERROR / largest.trials**0.5
    assert 0.9 - tolerance < largest.p68_3 / accuracy_page.standard_error(lg_k) < 1 + tolerance


def test_the_bounds_hold_the_truth_nineteen_times_in_twenty(single):
    for f in single:
        if f.kind == "state":
            assert f.held >= 0.954 - 4 * (0.954 * 0.046 / f.trials) ** 0.5, (f.lg_k, f.users)


def spoilt(figures, kind, users, **change):
    """The figures with that of lg_k 12 changed."""
    return [replace(f, **change) if (f.kind, f.lg_k, f.users) == (kind, 12, users) else f for f in figures]


@pytest.mark.parametrize(
    ("kind", "users", "change"),
    [
        ("pool", 0, {"p68_3": 0.0171}),
        ("state", 1_000, {"p68_3": 0.02}),
        ("state", 10_240, {"bias": 0.01}),  # classic HLL has several percent there
    ],
)
def test_a_broken_promise_is_seen(run, kind, users, change):
    assert len(accuracy.violations(spoilt(run.single, kind, users, **change), united(run))) == 1


def test_a_union_that_is_not_the_state_of_its_users_is_seen(run):
    assert len(accuracy.violations(run.single, replace(united(run), equal=run.equal - 1))) == 1


def test_the_page_shows_a_whole_run_that_keeps_the_promise(run):
    assert accuracy.violations(run.single, united(run)) == []
    assert {f.lg_k for f in run.single if f.kind == "pool"} == set(LG_K)
    at_default = {f.users: f.trials for f in run.single if f.kind == "state" and f.lg_k == 12}
    assert all(trials >= 300 for users, trials in at_default.items() if users <= 10**6)
    assert min(users for users in at_default if users >= SETTLED << 12) == 50_000


def test_the_page_and_its_plots_are_those_of_the_stored_figures(run):
    assert (accuracy.DOCS / "accuracy.md").read_text() == accuracy_page.page(run), "run bench/accuracy.py --page"
    for name, text in accuracy_page.plots(run).items():
        assert (accuracy.DOCS / name).read_text() == text, name


def test_the_page_names_its_command_and_has_every_lg_k(run):
    text = (accuracy.DOCS / "accuracy.md").read_text()
    assert f"`python bench/accuracy.py --write`, seed {run.seed}" in text
    for lg_k in LG_K:
        assert re.search(rf"^\| \**{lg_k}\** \| {40 + (1 << lg_k):,} \|", text, re.MULTILINE), lg_k
    for plot in accuracy_page.PLOTS:
        assert f"]({plot})" in text
