"""Names of data files: `<kind>/<folder>/<batch>.parquet`; `<batch>.rest-<move>.parquet` is what a move left of one."""

from __future__ import annotations


def origin_of(path: str) -> str:
    """The file as its batch wrote it, of which this is what moves have left."""
    return path.removesuffix(".parquet").partition(".rest-")[0] + ".parquet"


def batch_of(path: str) -> str:
    """The batch that wrote a file."""
    return origin_of(path).rpartition("/")[2].removesuffix(".parquet")


def rest_after(path: str, move_id: str) -> str:
    """What a move leaves of a file."""
    return f"{origin_of(path).removesuffix('.parquet')}.rest-{move_id}.parquet"


def mover_of(path: str) -> str | None:
    """The move that left this of a file; None of a file as its batch wrote it."""
    return path.removesuffix(".parquet").partition(".rest-")[2] or None
