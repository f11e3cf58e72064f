"""The HLL sketch, from a uid to a merged estimate with bounds.

Read from the top: it is the tutorial. The library `datasketches` is the oracle throughout; nothing but
these tests needs it.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import duckdb
import mmh3
import numpy as np
import pyarrow as pa
import pytest
from datasketches import hll_sketch, hll_union, tgt_hll_type
from hypothesis import given, settings
from hypothesis import strategies as st

from uniq_pipeline.coupons import coupons

MACROS = sorted((Path(__file__).parents[1] / "sql" / "hll").glob("*.sql"))


def load_macros(connection):
    for path in MACROS:
        connection.execute(path.read_text())
    return connection


@pytest.fixture(scope="module")
def db():
    with duckdb.connect() as connection:
        yield load_macros(connection)


def row(db, sql, *values):
    # fetchall, since after fetchone DuckDB 2.0 holds the connection for the rest of the result.
    (only,) = db.execute(sql, list(values)).fetchall()
    return only


def one(db, sql, *values):
    return row(db, sql, *values)[0]


def uids(count, prefix="user-"):
    return [f"{prefix}{i}" for i in range(count)]


def state_of(db, coupon, lg_k=12):
    """A state, the way the pipeline makes one: registers by GROUP BY slot, then hll_state."""
    db.register("seen", pa.table({"coupon": coupon}))
    return one(
        db,
        """
        SELECT hll_state(slot, value, $1)
        FROM (SELECT hll_slot(coupon, $1) AS slot, max(hll_value(coupon)) AS value FROM seen GROUP BY slot)
        """,
        lg_k,
    )


def library_sketch(items, lg_k=12):
    """The library's sketch of the same uids; `True` starts it in HLL mode, past LIST and SET."""
    sketch = hll_sketch(lg_k, tgt_hll_type.HLL_8, True)
    for item in items:
        sketch.update(item)
    return sketch


def library_estimate(state):
    """The library's composite estimate, the one it uses after a union (not its HIP estimate)."""
    return hll_sketch.deserialize(state).get_estimate()


# 1. A uid becomes a coupon.


def library_coupon(uid: str) -> int:
    h1, h2 = mmh3.mmh3_x64_128_utupledigest(uid.encode(), 9001)
    return (min(64 - h2.bit_length(), 62) + 1) << 26 | (h1 & 0x3FFFFFF)


def test_a_coupon_is_the_digest_that_the_library_stores(db):
    # A library sketch of few items is a LIST: 8 bytes of preamble, then the coupons themselves.
    for uid in ["user-1", "Zoë 🦆", "x" * 1000, "a\0b", "漢字" * 20]:
        sketch = hll_sketch(12, tgt_hll_type.HLL_8)
        sketch.update(uid)
        stored = int.from_bytes(sketch.serialize_compact()[8:12], "little")
        assert coupons(pa.array([uid])).to_pylist() == [stored]


@settings(deadline=None)
@given(st.lists(st.text(max_size=60)))
def test_coupons_equal_murmurhash3_for_any_text(items):
    assert coupons(pa.array(items, pa.string())).to_pylist() == [library_coupon(item) for item in items]


def test_every_length_of_uid_is_hashed_to_its_last_byte():
    items = ["\0" * n for n in range(50)] + ["é" * n for n in range(30)] + ["x" * n for n in range(300)]
    assert coupons(pa.array(items)).to_pylist() == [library_coupon(item) for item in items]


def test_leading_zero_bits_are_counted_exactly():
    # Rounding to float64 must not carry 2^53 - 1 and its like to the next power of two.
    from uniq_pipeline.coupons import _coupon

    h2 = [0] + [x for bits in range(64) for x in (1 << bits, (2 << bits) - 1)]
    found = _coupon(np.zeros(len(h2), np.uint64), np.array(h2, np.uint64)) >> 26
    assert found.tolist() == [min(64 - x.bit_length(), 62) + 1 for x in h2]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.cast(pa.large_string()),
        lambda a: a.dictionary_encode(),
        lambda a: a.cast(pa.large_string()).dictionary_encode(),
        lambda a: pa.chunked_array([a[:3], a[3:3], a[3:]]),
        lambda a: pa.concat_arrays([pa.array(["before"]), a, pa.array(["after"])])[1:-1],
    ],
    ids=["large_string", "dictionary", "dictionary of large_string", "chunked", "slice"],
)
def test_the_arrow_type_does_not_change_a_coupon(change):
    items = pa.array(uids(20_000))
    assert coupons(change(items)).equals(coupons(items))


def test_no_uids_give_no_coupons():
    for empty in [pa.array([], pa.string()), pa.chunked_array([], pa.string()), pa.array([], pa.large_string())]:
        assert coupons(empty).equals(pa.array([], pa.uint32()))


def test_nulls_and_other_types_have_no_coupon():
    with pytest.raises(ValueError, match="1 nulls"):
        coupons(pa.array(["a", None]))
    for hidden in [
        pa.array(["a", None]).dictionary_encode(),
        pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None])),
    ]:
        with pytest.raises(ValueError, match="null"):
            coupons(hidden)
    with pytest.raises(TypeError, match="int64"):
        coupons(pa.array([1]))


# 2. Coupons become a state, the library's own bytes.


# At lg_k 21 once: it says little that 14 does not.
@pytest.mark.parametrize(
    ("lg_k", "count"), [*itertools.product([4, 10, 12, 14], [0, 1, 7, 3_000, 300_000]), (21, 100_000)]
)
def test_a_state_is_what_the_library_would_have_written(db, lg_k, count):
    items = uids(count, f"{lg_k}/")
    state = state_of(db, coupons(pa.array(items, pa.string())), lg_k)
    theirs = library_sketch(items, lg_k).serialize_updatable()
    assert state[40:] == theirs[40:], "registers"
    assert state[16:40] == theirs[16:40], "sums and count of empty registers"
    assert state[:5] == theirs[:5] and state[6:8] == theirs[6:8]
    assert state[5] == theirs[5] & ~32 | 16, "flags: out of order, not 'allocated at full size'"
    assert state[8:16] == bytes(8), "no HIP accumulator"
    assert hll_sketch.deserialize(state).serialize_updatable()[40:] == state[40:], "the library reads it"


def test_high_register_values_go_to_the_second_sum(db):
    state = one(db, "SELECT hll_state(slot, slot + 48, 4) FROM range(16) AS t(slot)")
    assert list(state[40:]) == list(range(48, 64))
    low, high = np.frombuffer(state[16:32], "<f8")
    assert (low, high) == (0, sum(2.0**-value for value in range(48, 64)))


def test_bytes_come_apart_into_the_registers_they_were_made_of(db):
    state = state_of(db, coupons(pa.array(uids(5_000))))
    assert one(db, "SELECT hll_values(?)", state) == list(state[40:])
    assert one(db, "SELECT hll_lg_k(?)", state) == 12
    assert row(db, "SELECT hll_values(NULL), hll_lg_k(NULL), hll_estimate(NULL)") == (None,) * 3


# Registers anywhere from one to all, at either end and spread over: gaps are what packing and unpacking go by.
# {slot: value} by lg_k.
FILLS = {
    "none": lambda m: {},
    "the first": lambda m: {0: 1},
    "the last": lambda m: {m - 1: 63},
    "the first and the last": lambda m: {0: 62, m - 1: 1},
    "two neighbours": lambda m: {m // 2 - 1: 31, m // 2: 32},
    "few": lambda m: {slot: (1, 31, 32, 62, 63)[slot % 5] for slot in range(m // 7, m, max(1, m // 6))},
    "at the length of a run of zeros": lambda m: {slot: 2 for slot in range(0, m, max(8, m // 64) + 1)},
    "just below it": lambda m: {slot: 2 for slot in range(0, m, max(8, m // 64))},
    "an eighth": lambda m: {slot: 1 + slot % 63 for slot in range(0, m, 8)},
    "all but the first": lambda m: {slot: 1 + slot % 5 for slot in range(1, m)},
    "all but the last": lambda m: {slot: 1 + slot % 5 for slot in range(m - 1)},
    "all": lambda m: {slot: (1, 31, 32, 62, 63)[slot % 5] for slot in range(m)},
}


def packed(db, registers, lg_k):
    """The state of registers given as {slot: value}, in no order."""
    slots = np.array(list(registers), np.int32)[::-1]
    values = np.array(list(registers.values()), np.uint8)[::-1]
    db.register("registers", pa.table({"slot": slots, "value": values}))
    return one(db, "SELECT hll_state(slot, value, $1) FROM registers", lg_k)


def register_bytes(registers, lg_k):
    expected = bytearray(1 << lg_k)
    for slot, value in registers.items():
        expected[slot] = value
    return bytes(expected)


# At lg_k 21 the expensive fills say nothing that 14 does not.
FILLS_BY_LG_K = [
    *itertools.product([4, 8, 12, 14], FILLS),
    *itertools.product([21], ["none", "the first and the last", "at the length of a run of zeros"]),
]


@pytest.mark.parametrize(("lg_k", "fill"), FILLS_BY_LG_K)
def test_any_fill_is_packed_and_comes_apart_again(db, lg_k, fill):
    registers = FILLS[fill](1 << lg_k)
    state = packed(db, registers, lg_k)
    assert state[40:] == register_bytes(registers, lg_k)
    assert hll_sketch.deserialize(state).serialize_updatable()[40:] == state[40:], "the library reads it"
    low, high = np.frombuffer(state[16:32], "<f8")
    assert low == sum(2.0**-value for value in state[40:] if value < 32)
    assert high == sum(2.0**-value for value in state[40:] if value >= 32)
    assert int.from_bytes(state[32:36], "little") == state[40:].count(0)
    found = db.execute(
        """SELECT slot, hll_register(ascii(register))
           FROM (SELECT unnest(string_split(stretch.registers, '')) AS register,
                        unnest(hll_stretch_slots(stretch)) AS slot
                 FROM (SELECT unnest(hll_stretches(?)) AS stretch))
           WHERE register <> chr(0) ORDER BY slot""",
        [state],
    ).fetchall()
    assert dict(found) == {slot: value for slot, value in enumerate(state[40:]) if value}
    assert len(found) == len(registers)
    if lg_k <= 14:
        assert one(db, "SELECT hll_values(?)", state) == list(state[40:])
        assert merged(db, [state]) == state


@pytest.mark.parametrize("lg_k", [4, 8, 12, 14])
def test_states_of_any_fill_unite_as_in_the_library(db, lg_k):
    # The library makes states of uids only: a few, some and many, in this order.
    ours, theirs = [], hll_union(lg_k)
    for count in (0, 1, 2, 19, 100, 1 << lg_k, 10 << lg_k):
        part = uids(count, f"{count}/")
        ours.append(state_of(db, coupons(pa.array(part, pa.string())), lg_k))
        theirs.update(library_sketch(part, lg_k))
        union = theirs.get_result(tgt_hll_type.HLL_8).serialize_updatable()[40:]
        db.register("parts", pa.table({"hll": pa.array(ours, pa.binary())}))
        found = db.execute(
            """SELECT slot, hll_register(max(ascii(register)))
               FROM (SELECT unnest(string_split(stretch.registers, '')) AS register,
                            unnest(hll_stretch_slots(stretch)) AS slot
                     FROM (SELECT unnest(hll_stretches(hll)) AS stretch FROM parts))
               WHERE register <> chr(0) GROUP BY slot"""
        ).fetchall()
        if count:  # without any uid the library's union is a LIST
            assert register_bytes(dict(found), lg_k) == union
        assert register_bytes(dict(found), lg_k) == merged(db, ours)[40:]


def test_stretches_refuse_what_no_sketch_holds(db):
    state = packed(db, {7: 1}, 8)
    for byte in (b"\x40", b"\x7f", b"\x80", b"\xff"):
        with pytest.raises(duckdb.Error):
            db.execute(
                """SELECT hll_register(max(ascii(register)))
                   FROM (SELECT unnest(string_split(stretch.registers, '')) AS register
                         FROM (SELECT unnest(hll_stretches(?)) AS stretch))""",
                [state[:50] + byte + state[51:]],
            ).fetchall()
    with pytest.raises(duckdb.Error, match="register above 63"):
        one(db, "SELECT hll_register(ascii('é'))")
    assert one(db, "SELECT hll_stretches(NULL)") is None


@pytest.mark.parametrize("used", [1, 2, 31, 32, 33, 255])
def test_a_slot_given_twice_is_refused_whatever_the_fill(db, used):
    rows = pa.table({"slot": [*range(used), 0], "value": [1] * used + [2]})
    db.register("registers", rows)
    with pytest.raises(duckdb.Error, match="more than one row for a slot"):
        one(db, "SELECT hll_state(slot, value, 8) FROM registers")


def test_lg_k_may_be_a_variable_and_empty_registers_may_be_given(db):
    db.execute("SET VARIABLE lg_k = 8")
    state = one(db, "SELECT hll_state(slot, slot % 3, getvariable('lg_k')) FROM range(256) AS t(slot)")
    assert list(state[40:]) == [slot % 3 for slot in range(256)]


# 3. A state gives an estimate and bounds.


# From a twentieth to six times 2^lg_k uids the library goes over, in one step, from counting empty registers
# to its corrected raw estimate. There the two differ by as much as a standard error, each as near to the truth:
# over 100 to 1,000 trials at each of eight sizes (lg_k 10 and 12) root mean square errors differed by 3% at most.


@pytest.mark.parametrize("lg_k", [10, 12, 14])
@pytest.mark.parametrize("load", [0.001, 0.05, 6, 18])
def test_the_estimate_is_within_a_third_of_a_percent_of_the_librarys(db, lg_k, load):
    state = state_of(db, coupons(pa.array(uids(max(1, int(load * 2**lg_k))))), lg_k)
    assert one(db, "SELECT hll_estimate(?)", state) == pytest.approx(library_estimate(state), rel=0.003)


@pytest.mark.parametrize("lg_k", [10, 12, 14])
@pytest.mark.parametrize("load", [0.2, 0.6, 1, 1.5, 3])
def test_where_the_library_changes_its_method_both_estimates_are_near_the_truth(db, lg_k, load):
    count = int(load * 2**lg_k)
    state = state_of(db, coupons(pa.array(uids(count))), lg_k)
    three_errors = 3 * one(db, "SELECT hll_relative_standard_error(?)", lg_k)
    assert library_estimate(state) == pytest.approx(count, rel=three_errors)
    assert one(db, "SELECT hll_estimate(?)", state) == pytest.approx(count, rel=three_errors)


def test_registers_in_hand_give_the_same_estimate_as_a_state(db):
    state = state_of(db, coupons(pa.array(uids(5_000))))
    from_registers = one(
        db, "SELECT hll_estimate_registers(value, 12) FROM (SELECT unnest(hll_values(?)) AS value)", state
    )
    assert from_registers == one(db, "SELECT hll_estimate(?)", state)
    nested = (
        "SELECT hll_estimate(hll_state(slot, v, 12)) FROM (SELECT unnest(?::INT[]) AS v, unnest(range(4096)) AS slot)"
    )
    assert from_registers == one(db, nested, list(state[40:]))


def test_registers_in_hand_give_the_same_bounds_as_a_state(db):
    state = state_of(db, coupons(pa.array(uids(5_000))))
    used = sum(value > 0 for value in state[40:])
    lower, upper, lower_from, upper_from = row(
        db,
        """SELECT hll_lower($1), hll_upper($1),
                  hll_lower_from(hll_estimate($1), $2, 12), hll_upper_from(hll_estimate($1), $2, 12)""",
        state,
        used,
    )
    assert (lower_from, upper_from) == (lower, upper)


def test_an_empty_state_has_no_users_and_no_doubt(db):
    empty = state_of(db, pa.array([], pa.uint32()))
    assert hll_sketch.deserialize(empty).is_empty()
    assert row(db, "SELECT hll_estimate($1), hll_lower($1), hll_upper($1)", empty) == (0, 0, 0)


def test_the_standard_error_is_1_63_percent_at_lg_k_12(db):
    assert one(db, "SELECT hll_relative_standard_error(12)") == pytest.approx(0.01625)


@pytest.mark.parametrize("lg_k", [4, 8, 12])
@pytest.mark.parametrize("count", [1, 5, 25, 60, 1_000, 10_000])
def test_bounds_at_two_standard_deviations_hold_the_truth_nineteen_times_in_twenty(db, lg_k, count):
    trials = 200 if count <= 1_000 else 50
    random_coupons = coupons(pa.array([f"{count}/{i}" for i in range(trials * count)]))
    db.register("seen", pa.table({"coupon": random_coupons, "trial": np.repeat(np.arange(trials), count)}))
    held, above_zero = row(
        db,
        """
        SELECT avg(($2 BETWEEN hll_lower(hll) AND hll_upper(hll))::INT), bool_and(hll_lower(hll) >= 1)
        FROM (SELECT trial, hll_state(slot, value, $1) AS hll
              FROM (SELECT trial, hll_slot(coupon, $1) AS slot, max(hll_value(coupon)) AS value
                    FROM seen GROUP BY ALL) GROUP BY trial)
        """,
        lg_k,
        count,
    )
    # 95.4% by design; the rest is the luck of so few trials, at most three of its own deviations.
    assert held >= 0.954 - 3 * (0.954 * 0.046 / trials) ** 0.5
    assert above_zero


def test_more_standard_deviations_give_wider_bounds(db):
    state = state_of(db, coupons(pa.array(uids(5_000))))
    lower_3, lower_2, upper_2, upper_3 = row(
        db,
        "SELECT hll_lower($1, num_std_devs := 3), hll_lower($1), hll_upper($1), hll_upper($1, num_std_devs := 3)",
        state,
    )
    assert lower_3 < lower_2 < 5_000 < upper_2 < upper_3


# 4. States merge, in any order, any number of times.


def merged(db, states):
    # Columns named like those inside the macro, which must not be taken for them.
    db.register("parts", pa.table({"state": pa.array(states, pa.binary()), "slot": [1] * len(states)}))
    return one(db, "SELECT hll_union(state) FROM parts GROUP BY slot")


def test_the_union_of_the_parts_is_the_state_of_the_whole(db):
    whole = coupons(pa.array(uids(30_000)))
    parts = [state_of(db, whole[at : at + 4_000]) for at in range(0, 30_000, 3_000)]
    assert merged(db, parts) == state_of(db, whole)


def test_the_union_equals_the_librarys(db):
    ours, theirs = [], hll_union(12)
    for part in (uids(900, "a"), uids(5_000, "b"), uids(40, "a")):
        ours.append(state_of(db, coupons(pa.array(part))))
        theirs.update(library_sketch(part))
    result = theirs.get_result(tgt_hll_type.HLL_8)
    union = merged(db, ours)
    assert union[40:] == result.serialize_updatable()[40:]
    assert one(db, "SELECT hll_estimate(?)", union) == pytest.approx(5_900, rel=0.03)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sets(st.integers(0, 500), max_size=80), min_size=1, max_size=5), st.randoms())
def test_a_union_is_commutative_associative_and_idempotent(db, parts, rng):
    states = [state_of(db, coupons(pa.array([str(i) for i in part], pa.string())), 6) for part in parts]
    whole = state_of(db, coupons(pa.array([str(i) for part in parts for i in part], pa.string())), 6)
    shuffled = rng.sample(states, len(states))
    assert merged(db, states) == merged(db, shuffled) == whole
    assert merged(db, [merged(db, shuffled[:2]), *shuffled[1:]]) == whole
    assert merged(db, states + states + [whole]) == whole


def test_every_group_has_its_own_union_and_null_states_are_passed_over(db):
    a, b = (state_of(db, coupons(pa.array(uids(100, p)))) for p in "ab")
    db.execute("CREATE OR REPLACE TEMP TABLE days (day INT, hll BLOB)")
    db.executemany("INSERT INTO days VALUES (?, ?)", [(1, a), (1, None), (2, a), (2, b), (3, None)])
    found = dict(db.execute("SELECT day, hll_union(hll) FROM days GROUP BY day").fetchall())
    assert found == {1: a, 2: merged(db, [a, b]), 3: None}
    estimates = db.execute("SELECT day, hll_estimate(hll_union(hll)) FROM days GROUP BY day ORDER BY day").fetchall()
    assert [day for day, _ in estimates] == [1, 2, 3] and estimates[2][1] is None
    assert estimates[1][1] == pytest.approx(200, rel=0.05)


# 5. What cannot be read is refused, by name.


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (hll_sketch(12, tgt_hll_type.HLL_8).serialize_updatable()[:-1], "HLL_8 in LIST mode, lg_k 12"),
        (hll_sketch(11, tgt_hll_type.HLL_4, True).serialize_compact()[:-1], "HLL_4 in HLL mode, lg_k 11"),
        (hll_sketch(11, tgt_hll_type.HLL_6, True).serialize_updatable()[:-1], "HLL_6 in HLL mode, lg_k 11"),
        (library_sketch(["a"]).serialize_updatable()[:-1], "4135 bytes"),
        (b"", "not an Apache DataSketches HLL sketch: 0 bytes"),
        (b"garbage, and more of it", "not an Apache DataSketches HLL sketch: 23 bytes beginning 67617262"),
    ],
    ids=["list cut short", "hll_4 cut short", "hll_6 cut short", "cut short", "nothing", "garbage"],
)
@pytest.mark.parametrize("macro", ["hll_estimate", "hll_lower", "hll_lg_k", "hll_values", "hll_union"])
def test_an_unknown_layout_raises_and_says_what_it_is(db, macro, state, found):
    with pytest.raises(duckdb.Error, match="HLL state refused") as error:
        db.execute(f"SELECT {macro}(?)", [state]).fetchall()
    assert found in str(error.value)


def test_damaged_bytes_raise(db):
    state = bytearray(state_of(db, coupons(pa.array(uids(5_000)))))
    with pytest.raises(duckdb.Error, match="register above 63"):
        one(db, "SELECT hll_union(?)", bytes(state[:-1] + b"\x7f"))
    with pytest.raises(duckdb.Error):
        one(db, "SELECT hll_union(?)", bytes(state[:-1] + b"\xff"))
    for void in (state[:16] + bytes(24) + state[40:], state[:40] + bytes(4096), state[:16] + bytes(8) + state[24:]):
        with pytest.raises(duckdb.Error, match="contradict"):
            one(db, "SELECT hll_estimate(?)", bytes(void))


def test_a_full_size_library_sketch_is_read_from_its_registers(db):
    # Flag 32 does not promise that the sums in the preamble were kept up.
    theirs = library_sketch(uids(5_000)).serialize_updatable()
    ours = state_of(db, coupons(pa.array(uids(5_000))))
    void = theirs[:16] + bytes(24) + theirs[40:]
    assert one(db, "SELECT hll_estimate(?)", void) == pytest.approx(one(db, "SELECT hll_estimate(?)", ours), rel=1e-12)


def test_states_of_different_precision_merge_at_the_smallest(db):
    items = coupons(pa.array(uids(700)))
    fine, coarse = (state_of(db, items, lg_k) for lg_k in (12, 10))
    assert merged(db, [fine, coarse]) == merged(db, [fine, fine, coarse]) == coarse


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("hll_state(1, x, 12)", "more than one row for a slot"),
        ("hll_state(x, 64, 12)", "register values must be 0 to 63"),
        ("hll_state(x, 1, 3)", "lg_k must be 4 to 21"),
        ("hll_state(x, 1, 22)", "lg_k must be 4 to 21"),
        ("hll_state(x + 15, 1, 4)", "outside of provided min and max range"),
    ],
)
def test_wrong_registers_are_not_packed(db, call, why):
    with pytest.raises(duckdb.Error, match=why):
        db.execute(f"SELECT {call} FROM range(1, 4) AS t(x)").fetchall()


# 6. The macros travel inside a database file.


def test_macros_stored_in_a_file_work_for_whoever_opens_it_read_only(tmp_path, db):
    states = [state_of(db, coupons(pa.array(uids(2_000, prefix)))) for prefix in "ab"]
    path = str(tmp_path / "catalog.duckdb")
    with duckdb.connect(path) as writer:
        load_macros(writer)
        load_macros(writer)
        writer.execute("CREATE TABLE day_counts (hll BLOB)")
        writer.executemany("INSERT INTO day_counts VALUES (?)", [[state] for state in states])
    with duckdb.connect(path, read_only=True) as reader:
        reader.execute("SET TimeZone = 'Asia/Kathmandu'")
        union = one(reader, "SELECT hll_union(hll) FROM day_counts")
        estimate = one(reader, "SELECT hll_estimate(hll_union(hll)) FROM day_counts")
    assert union == merged(db, states)
    assert estimate == pytest.approx(4_000, rel=0.05)
