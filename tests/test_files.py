"""Lines of files and stdin as records."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniq_pipeline import files
from uniq_pipeline.errors import InputError
from uniq_pipeline.files import read_lines, size_of
from uniq_pipeline.records import NO_TIME


def write(path, content, kind=None):
    """A file of that content, compressed where a kind is given."""
    if kind is None:
        path.write_bytes(content)
    else:
        with pa.CompressedOutputStream(str(path), kind) as stream:
            stream.write(content)
    return str(path)


def lines_of(name):
    """(line number, line) of everything read."""
    read = list(read_lines(name, 3))
    assert all(records.kafka_partition == 3 for records in read)
    assert all(set(records.kafka_times_ms) == {NO_TIME} for records in read)
    return [pair for records in read for pair in zip(records.offsets, records.payloads, strict=True)]


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
@given(
    content=st.lists(st.sampled_from([b"a", b"bb" * 9, b"\n", b" ", b"\r", b"\0", b"\xff"])).map(b"".join),
    block=st.integers(1, 9),
)
def test_every_line_that_is_not_blank_is_a_record_with_its_number(tmp_path_factory, kind, content, block):
    name = write(tmp_path_factory.getbasetemp() / f"lines-{kind}", content, kind)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "_BLOCK", block)  # lines then span blocks
        found = lines_of(name)
    assert found == [(i, line) for i, line in enumerate(content.split(b"\n")) if line.strip()]


def test_the_next_offset_lies_after_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 8)
    read = list(read_lines(write(tmp_path / "f", b"1\n22\n\n333\n4444\n55555"), 0))
    assert len(read) > 1
    assert all(records.next_offset > max(records.offsets) for records in read)
    assert all(a.next_offset <= b.offsets[0] for a, b in zip(read, read[1:], strict=False))


def test_a_line_longer_than_a_block_is_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 10)
    assert lines_of(write(tmp_path / "f", b"x" * 1000 + b"\ny")) == [(0, b"x" * 1000), (1, b"y")]


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_the_bytes_told_are_those_of_the_file(tmp_path, kind):
    name = write(tmp_path / "f", b'{"ts":1}\n' * 10_000, kind)
    told = []
    list(read_lines(name, 0, read_bytes=told.append))
    assert sum(told) == size_of(name) == (tmp_path / "f").stat().st_size


def test_a_file_shorter_than_a_magic_number_is_read(tmp_path):
    assert lines_of(write(tmp_path / "f", b"1")) == [(0, b"1")]
    assert lines_of(write(tmp_path / "g", b"")) == []


def test_gzip_members_after_each_other_are_one_file(tmp_path):
    assert lines_of(write(tmp_path / "f", gzip.compress(b"a\n", mtime=0) + gzip.compress(b"b\n", mtime=0))) == [
        (0, b"a"),
        (1, b"b"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"a\n" * 9999, mtime=0)[:-9],
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd\xff\xff",
        gzip.compress(b"a", mtime=0) + b"tail",
    ],
)
def test_damaged_compression_raises_and_names_the_file(tmp_path, content):
    with pytest.raises(InputError, match="damaged: cannot be read"):
        lines_of(write(tmp_path / "damaged", content))


def test_a_file_is_closed_when_its_reader_stops_early(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 4)
    opened = []
    monkeypatch.setattr(files, "open", lambda *a: opened.append(open(*a)) or opened[-1], raising=False)
    reader = read_lines(write(tmp_path / "f", b"1\n2\n3\n4\n5\n"), 0)
    next(reader)
    reader.close()
    assert opened[0].closed


def test_the_size_of_stdin_and_of_what_is_missing_is_unknown(tmp_path):
    assert size_of("-") is None and size_of(str(tmp_path / "missing")) is None and size_of(str(tmp_path)) is None
