"""Interchange with Apache Spark, by Spark itself: it reads our states, and our macros read what it writes.

Needs pyspark and Java, so `make test` leaves it out; `.ci/run` runs it with `pytest -m spark`, where anything
that is missing is a failure.
"""

from __future__ import annotations

import functools
import re
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_states import run_pipeline

from uniq_pipeline.coupons import coupons

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[1]
MACROS = sorted((ROOT / "sql" / "hll").glob("*.sql"))

LIST, SET, HLL = range(3)  # modes, as byte 7 of the layout numbers them
LG_KS = range(4, 22)
# At each of LG_KS: nothing, all lengths of a LIST, the first of a SET, a SET that has grown, HLL where lg_k is small.
SIZES = [0, 1, 7, 8, 100, 1_000]
# A million uids cost Spark a second for each lg_k.
MANY = 1_000_000
LG_KS_OF_MANY = [4, 12, 21]
STRANGE_UIDS = [
    "",
    " ",
    "Zoë",
    "Zoe\u0308",
    "漢字" * 20,
    "🦆",
    "a\0b",
    "x" * 1_000,
    "\u007f\u0080\u07ff\u0800\uffff\U0010ffff",
]


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """A session of two threads. All its folders are temporary; it listens on loopback only."""
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    options = {
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # A run of seconds: compiling well takes longer than running badly.
        "spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.io.tmpdir={folder}",
        "spark.local.dir": f"{folder}/local",
        "spark.sql.warehouse.dir": f"{folder}/warehouse",
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",  # two, so that Spark merges sketches of its own
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        builder = SparkSession.builder.master("local[2]").appName("uniq-pipeline tests")
        for name, value in options.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def db():
    with duckdb.connect(config={"threads": 2}) as connection:
        for path in MACROS:
            connection.execute(path.read_text())
        yield connection


def uids(count, prefix=None):
    """What `UIDS` makes in Spark."""
    return [f"{count if prefix is None else prefix}/user-{number}" for number in range(count)]


UIDS = "SELECT n, concat(n, '/user-', id) AS uid FROM range({most}) JOIN (VALUES {sizes}) AS size(n) ON id < n"


def registers_of(items, lg_k):
    """The registers that the pipeline computes, without SQL: the greatest value offered to each slot."""
    coupon = coupons(pa.array(items, pa.string())).to_numpy()
    return registers_of_coupons(coupon, lg_k)


def registers_of_coupons(coupon, lg_k):
    found = np.zeros(1 << lg_k, np.uint8)
    np.maximum.at(found, coupon & ((1 << lg_k) - 1), (coupon >> 26).astype(np.uint8))
    return found


def mode(state):
    return state[7] & 3


def lg_k_of(state):
    return state[3]


def decoded(state):
    """The registers behind HLL_8 bytes in any mode, read here once more and not by the macros."""
    assert state[1:3] == b"\x01\x07" and state[7] >> 2 == 2, "an HLL_8 sketch of serial version 1"
    lg_k = lg_k_of(state)
    if mode(state) == HLL:
        assert len(state) == 40 + (1 << lg_k)
        return np.frombuffer(state, np.uint8, offset=40)
    coupon = np.frombuffer(state, "<u4", offset={LIST: 8, SET: 12}[mode(state)])
    return registers_of_coupons(coupon[coupon != 0], lg_k)


def folded(registers, lg_k):
    """Registers at a smaller lg_k: slots that agree in the low bits become one."""
    return registers.reshape(-1, 1 << lg_k).max(axis=0)


def written(folder, name, **columns):
    """A Parquet file of the columns, as a path for Spark and DuckDB."""
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def our_state(db, items, lg_k=12):
    db.register("seen", pa.table({"coupon": coupons(pa.array(items, pa.string()))}))
    return bytes(
        one(
            db,
            """SELECT hll_state(slot, value, $1)
               FROM (SELECT hll_slot(coupon, $1) AS slot, max(hll_value(coupon)) AS value FROM seen GROUP BY slot)""",
            lg_k,
        )
    )


def our_union(db, states):
    db.register("parts", pa.table({"hll": pa.array(states, pa.binary())}))
    return one(db, "SELECT hll_union(hll_read(hll)) FROM parts")


def spark_union(spark, folder, states, allow_different_lg_k="false"):
    path = written(folder, "parts", hll=pa.array(states, pa.binary()))
    return bytes(
        spark.sql(f"SELECT hll_union_agg(hll, {allow_different_lg_k}) AS hll FROM parquet.`{path}`").first().hll
    )


def one(db, sql, *values):
    ((value,),) = db.execute(sql, list(values)).fetchall()
    return value


# 1. Spark's states, as Spark writes them to Parquet.


@pytest.fixture(scope="module")
def spark_states(spark, tmp_path_factory):
    """{(size, lg_k): state} of every size at every lg_k, and the folder of Parquet files where they came from."""
    folder = tmp_path_factory.mktemp("spark-states")

    def write(name, lg_ks, sizes):
        uid_rows = UIDS.format(most=max(sizes), sizes=", ".join(f"({size})" for size in sizes))
        sketches = ", ".join(f"hll_sketch_agg(uid, {lg_k}) AS k{lg_k}" for lg_k in lg_ks)
        by_size = f"SELECT n, {sketches} FROM ({uid_rows}) GROUP BY n"
        none = f"SELECT 0L AS n, {sketches} FROM (SELECT '' AS uid WHERE false)"
        spark.sql(f"{by_size} UNION ALL {none}" if 0 in sizes else by_size).write.parquet(str(folder / name))

    write("few", LG_KS, SIZES)
    write("many", LG_KS_OF_MANY, [MANY])
    states = {}
    for name in ("few", "many"):
        for row in pq.read_table(folder / name).to_pylist():
            states |= {(row["n"], int(column[1:])): state for column, state in row.items() if column != "n"}
    return states, folder


def of_size(states, size):
    return {lg_k: state for (n, lg_k), state in states.items() if n == size}


def test_spark_writes_every_mode_of_the_layout(spark_states):
    states, _ = spark_states
    assert len(states) == len(SIZES) * len(LG_KS) + len(LG_KS_OF_MANY)
    found = {(size, mode(state)) for (size, _), state in states.items()}
    assert found == {
        (0, LIST),
        (1, LIST),
        (7, LIST),
        (8, HLL),
        (8, SET),
        *[(n, m) for n in (100, 1_000) for m in (SET, HLL)],
        (MANY, HLL),
    }


@pytest.mark.parametrize("size", [*SIZES, MANY])
def test_spark_hashes_a_uid_as_the_pipeline_does(spark_states, size):
    items = uids(size)
    for lg_k, state in of_size(spark_states[0], size).items():
        assert np.array_equal(decoded(state), registers_of(items, lg_k)), f"lg_k {lg_k}"


def test_spark_hashes_the_utf8_bytes_of_strange_uids_as_the_pipeline_does(spark, tmp_path):
    path = written(tmp_path, "uids", uid=pa.array(STRANGE_UIDS))
    rows = spark.sql(f"SELECT uid, hll_sketch_agg(uid, 12) AS hll FROM parquet.`{path}` GROUP BY uid").collect()
    stored = {row.uid: np.frombuffer(row.hll, "<u4", offset=8)[0] for row in rows}
    # The library takes an empty string for no item; see the docs.
    assert stored.pop("") == 0
    expected = dict(zip(STRANGE_UIDS, coupons(pa.array(STRANGE_UIDS)).to_pylist(), strict=True))
    del expected[""]
    assert stored == expected


@pytest.mark.parametrize("size", [*SIZES, MANY])
def test_our_macros_read_sparks_states(db, spark_states, size):
    states, folder = spark_states
    items = uids(size)
    files = folder / ("many" if size == MANY else "few") / "*.parquet"
    db.execute(
        f"""CREATE OR REPLACE TEMP TABLE states AS
            SELECT k, hll_read(hll) AS hll
            FROM (UNPIVOT (SELECT * FROM '{files}' WHERE n = {size}) ON * EXCLUDE (n) INTO NAME k VALUE hll)"""
    )
    rows = db.execute(
        """SELECT k[2:]::INTEGER, hll_lg_k(hll), hll_estimate(hll),
                  hll_lower(hll, num_std_devs := 4), hll_upper(hll, num_std_devs := 4)
           FROM states ORDER BY 1"""
    ).fetchall()
    assert [lg_k for lg_k, *_ in rows] == (LG_KS_OF_MANY if size == MANY else list(LG_KS))
    for lg_k, said, estimate, lower, upper in rows:
        assert said == lg_k
        assert lower <= size <= upper, f"lg_k {lg_k}"
        assert lower <= estimate <= upper, f"lg_k {lg_k}"
    unions = db.execute("SELECT k[2:]::INTEGER, hll_union(hll) FROM states GROUP BY k").fetchall()
    for lg_k, union in unions:
        assert np.array_equal(decoded(union), registers_of(items, lg_k)), f"lg_k {lg_k}"


@pytest.mark.parametrize("lg_k", [4, 12, 21])
@pytest.mark.parametrize("size", [7, 100, 1_000])
def test_a_union_of_ours_and_sparks_is_the_same_in_both(spark, db, spark_states, tmp_path, size, lg_k):
    others = uids(3_000, "ours")
    theirs, ours = spark_states[0][size, lg_k], our_state(db, others, lg_k)
    expected = registers_of(uids(size) + others, lg_k)
    assert np.array_equal(decoded(spark_union(spark, tmp_path, [ours, theirs])), expected)
    assert np.array_equal(decoded(our_union(db, [ours, theirs])), expected)
    assert (
        our_union(db, [ours, theirs])
        == our_union(db, [theirs, ours])
        == our_union(db, [our_union(db, [theirs, ours]), ours])
    )


def test_states_of_different_lg_k_fold_to_the_same_registers_in_both(spark, db, tmp_path):
    parts = {lg_k: uids(20_000, f"{lg_k}") for lg_k in (10, 12, 14)}
    states = [our_state(db, items, lg_k) for lg_k, items in parts.items()]
    expected = registers_of(list(chain.from_iterable(parts.values())), 10)
    for order in (states, states[::-1]):
        theirs = spark_union(spark, tmp_path, order, "true")
        ours = our_union(db, order)
        assert lg_k_of(theirs) == lg_k_of(ours) == 10
        assert np.array_equal(decoded(theirs), expected)
        assert np.array_equal(decoded(ours), expected)


def test_small_sketches_of_another_lg_k_join_a_union_in_both(spark, db, spark_states, tmp_path):
    # Spark keeps the lg_k of the state that is in HLL mode, or folds it, by their order; the registers agree at 10.
    others = uids(20_000, "ours")
    states = [our_state(db, others, 12), spark_states[0][100, 10], spark_states[0][7, 14]]
    expected = registers_of(others + uids(100) + uids(7), 10)
    for order in (states, states[::-1]):
        assert np.array_equal(folded(decoded(spark_union(spark, tmp_path, order, "true")), 10), expected)
        assert np.array_equal(folded(decoded(our_union(db, order)), 10), expected)


def test_spark_refuses_different_lg_k_unless_told(spark, db, tmp_path):
    with pytest.raises(Exception, match="HLL_UNION_DIFFERENT_LG_K"):
        spark_union(spark, tmp_path, [our_state(db, ["a"], lg_k) for lg_k in (10, 12)])


# 2. Our states, read by Spark.


@pytest.mark.parametrize("lg_k", [4, 12, 21])
def test_spark_reads_our_states(spark, db, tmp_path, lg_k):
    sizes = [0, 1, 7, 8, 100, 1_000, 30_000]
    states = [our_state(db, uids(size), lg_k) for size in sizes]
    db.register("parts", pa.table({"n": sizes, "hll": pa.array(states, pa.binary())}))
    db.execute(f"COPY (FROM parts) TO '{tmp_path}/ours.parquet'")
    rows = spark.sql(
        f"""SELECT n, hll_sketch_estimate(hll) AS estimate, hll_union_agg(hll) OVER (PARTITION BY n) AS copy
            FROM parquet.`{tmp_path}/ours.parquet` ORDER BY n"""
    ).collect()
    bounds = db.execute(
        "SELECT hll_lower(hll, num_std_devs := 4), hll_upper(hll, num_std_devs := 4) FROM parts ORDER BY n"
    ).fetchall()
    for row, state, (lower, upper) in zip(rows, states, bounds, strict=True):
        assert lower <= row.estimate <= upper
        assert np.array_equal(decoded(bytes(row.copy)), decoded(state))


# 3. The results of a real run, and the examples of the docs.


@pytest.fixture(scope="module")
def pipeline(broker, tmp_path_factory):
    """40 minutes across the end of an hour, a day, a month and a year; `data/` below the folder is the data folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    run = run_pipeline(broker, folder / "data", "spark", "UTC", [("2025-12-31T23:40:30+00:00", 2400)])
    return folder, run


@functools.cache
def examples(language):
    """The fenced blocks of the page, in order; those of Python are one program."""
    page = (ROOT / "docs" / "interchange.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


@pytest.fixture(scope="module")
def counts(spark, pipeline):
    """What the example of the docs finds: a Spark view over the files that count, for each grain."""
    folder, _ = pipeline
    scope = {"spark": spark}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in examples("python"):
            exec(block, scope)
    return scope


def test_the_example_of_the_docs_gives_the_users_of_each_hour(counts, pipeline):
    _, run = pipeline
    found = {row.hour: (row.minutes, row.users) for row in counts["hours"].collect()}
    assert len(found) == len(run.rows["hour"]) == 2
    for row in run.rows["hour"]:
        minutes, users = found[row["window_start"].replace(tzinfo=None)]
        assert minutes == sum(row["window_start"] <= m["window_start"] < row["window_end"] for m in run.rows["minute"])
        assert row["estimate_lower"] <= users <= row["estimate_upper"]


@pytest.mark.parametrize("grain", ["minute", "hour", "day"])
def test_sparks_estimate_of_each_window_lies_within_our_bounds(spark, counts, pipeline, grain):
    _, run = pipeline
    found = spark.sql(f"SELECT window_start, hll_sketch_estimate(hll) AS users FROM {grain}_counts").collect()
    users = {row.window_start: row.users for row in found}
    assert len(users) == len(run.rows[grain])
    for row in run.rows[grain]:
        spark_says = users[row["window_start"].replace(tzinfo=None)]
        assert row["estimate_lower"] <= spark_says <= row["estimate_upper"]
        # Spark's is a whole number.
        assert spark_says == pytest.approx(row["estimate"], rel=0.0163, abs=1)


@pytest.mark.parametrize("grain", ["hour", "day", "month", "year"])
def test_sparks_union_of_our_minutes_is_our_state_of_the_whole(spark, counts, pipeline, grain):
    _, run = pipeline
    rows = spark.sql(
        f"""SELECT date_trunc('{grain}', window_start) AS start, hll_union_agg(hll) AS hll
            FROM minute_counts GROUP BY 1"""
    ).collect()
    unions = {row.start: bytes(row.hll) for row in rows}
    assert len(unions) == len(run.rows[grain])
    for row in run.rows[grain]:
        assert unions[row["window_start"].replace(tzinfo=None)][40:] == row["hll"][40:]


def test_the_example_of_the_docs_reads_sparks_states_beside_ours(spark, pipeline, monkeypatch):
    folder, run = pipeline
    monkeypatch.chdir(folder)
    spark.sql("SELECT hll_sketch_agg(concat('elsewhere-', id), 12) AS hll FROM range(500)").write.parquet(
        str(folder / "from_spark")  # its Java process is in another folder
    )
    (block,) = examples("sql")
    with duckdb.connect("data/uniq.duckdb", read_only=True) as catalog:
        ((users, at_least, at_most),) = catalog.execute(block).fetchall()
    truth = 500 + len({uid for _, uid in run.truth})
    assert at_least <= users <= at_most and at_least <= truth <= at_most
