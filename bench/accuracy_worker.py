"""Part of accuracy.py: the approximate distinct counts of one peer, run by the Python of the peer's own environment.

    python accuracy_worker.py polars|chdb [SIZE ...]

Prints the peer's version, then reads the name of a Parquet file (columns `i`, the row number, and `uid`) from each
line of its input and answers with a line of JSON: {function: {size: estimate}}. A line with "bytes" in front asks for
the size of a stored state of all the file's uids instead: {function: bytes}, empty where there is no such thing.
"""

from __future__ import annotations

import json
import sys

FUNCTIONS = ("uniq", "uniqCombined", "uniqHLL12")


def main() -> None:
    peer, *sizes = sys.argv[1:]
    ask = {"polars": _polars, "chdb": _chdb}[peer]
    version, counts, state_bytes = ask([int(size) for size in sizes])
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        verb, path = line.rstrip("\n").split(" ", 1)
        print(json.dumps(state_bytes(path) if verb == "bytes" else counts(path)), flush=True)


def _polars(sizes):
    import polars

    def counts(path):
        uids = polars.read_parquet(path)["uid"]
        return {"approx_n_unique": {n: uids.head(n).approx_n_unique() for n in sizes if n <= len(uids)}}

    return f"Polars {polars.__version__}", counts, lambda path: {}


def _chdb(sizes):
    import chdb

    def ask(sql):
        return json.loads(str(chdb.query(sql + " SETTINGS max_threads = 1", "JSONCompact")))["data"][0]

    def counts(path):
        (rows,) = ask(f"SELECT count() FROM file('{path}', Parquet)")
        wanted = [(name, n) for name in FUNCTIONS for n in sizes if n <= int(rows)]
        columns = ", ".join(f"{name}If(uid, i < {n})" for name, n in wanted)
        answer = {name: {} for name in FUNCTIONS}
        for (name, n), found in zip(wanted, ask(f"SELECT {columns} FROM file('{path}', Parquet)"), strict=True):
            answer[name][n] = int(found)
        return answer

    def state_bytes(path):
        columns = ", ".join(f"length(hex({name}State(uid))) / 2" for name in FUNCTIONS)
        return dict(zip(FUNCTIONS, map(int, ask(f"SELECT {columns} FROM file('{path}', Parquet)")), strict=True))

    (version,) = ask("SELECT version()")
    return f"ClickHouse {version} (chdb {chdb.__version__})", counts, state_bytes


if __name__ == "__main__":
    main()
