"""`uniq-pipeline count`, as a user runs it: files and pipes in, JSON lines or a table out, nothing left."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from uniq_pipeline.cli.main import main

COMMAND = [str(Path(sys.executable).with_name("uniq-pipeline"))]
FRAMES = 200_000
START = 1_767_225_600  # 2026-01-01T00:00:00Z
KEYS = "grain window_start window_end frames unique_users estimate estimate_lower estimate_upper".split()


@dataclass
class Done:
    returncode: int
    stdout: bytes
    stderr: bytes


@pytest.fixture
def run(tmp_path, monkeypatch, capsysbinary):
    """Runs the command in this process, with a temporary folder that has to be empty afterwards.

    The tests that need a process of its own start one; a new Python for each case would take a minute.
    """
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=b"", **variables):
        monkeypatch.setattr(sys, "argv", ["uniq-pipeline", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            main()
            status = 0
        except SystemExit as left:
            status = left.code
        return Done(status, *capsysbinary.readouterr())

    yield run
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "data").exists()


def rows_of(done):
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(done, *said):
    """The command failed with exit code 2, said why, and showed no traceback."""
    text = done.stderr.decode()
    assert done.returncode == 2 and done.stdout == b"" and "Traceback" not in text
    assert all(part in text for part in said), text


def lines(*frames):
    return b"".join(json.dumps({"ts": ts, "uid": uid}).encode() + b"\n" for ts, uid in frames)


def written(instant_s):
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def generated(tmp_path, *options):
    """A file of demo frames."""
    path = tmp_path / "frames.jsonl"
    with open(path, "wb") as file:
        subprocess.run([*COMMAND, "generate", "--start", str(START), *options], stdout=file, check=True)
    return path


def counted_with_json_and_sets(path, window_of):
    """{window: (frames, users)}, with nothing but Python's json and sets."""
    frames, users = defaultdict(int), defaultdict(set)
    with open(path, "rb") as file:
        for line in file:
            frame = json.loads(line)
            window = window_of(int(float(frame["ts"])))
            frames[window] += 1
            users[window].add(str(frame["uid"]))
    return {window: (frames[window], len(users[window])) for window in frames}


@pytest.mark.slow
def test_the_count_of_200_000_full_frames_equals_one_made_with_json_and_sets(tmp_path):
    (tmp_path / "tmp").mkdir()
    path = generated(tmp_path, "--frames", str(FRAMES), "--rate", "50", "--users", "20000", "--late-share", "0.05")
    assert path.stat().st_size > 1_800 * FRAMES
    with open(path, "rb") as file:
        done = subprocess.run(
            [*COMMAND, "count"],
            stdin=file,
            capture_output=True,
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        )
    rows = rows_of(done)
    truth = counted_with_json_and_sets(path, lambda ts: written(ts // 60 * 60))
    assert {row["window_start"]: (row["frames"], row["unique_users"]) for row in rows} == truth
    assert sum(row["frames"] for row in rows) == FRAMES and len(rows) >= 60
    assert [row["window_start"] for row in rows] == sorted(truth)
    assert all(row["estimate_lower"] <= row["estimate"] <= row["estimate_upper"] for row in rows)
    within = sum(row["estimate_lower"] <= row["unique_users"] <= row["estimate_upper"] for row in rows)
    print(f"{len(rows)} windows, the truth within the bounds of {within}")
    assert within >= 0.95 * len(rows)
    assert b"200,000 lines: 200,000 frames counted, 0 held, 0 rejected" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    path.unlink()  # 400 MB


def test_a_row_has_the_documented_keys_in_order_and_times_in_utc(run):
    (row,) = rows_of(run("count", stdin=lines((START, "a"), (START + 1, "b"), (START + 59, "a"))))
    assert list(row) == KEYS
    assert row["window_start"] == "2026-01-01T00:00:00Z" and row["window_end"] == "2026-01-01T00:01:00Z"
    assert (row["grain"], row["frames"], row["unique_users"]) == ("minute", 3, 2)
    assert row["estimate_lower"] <= 2 <= row["estimate_upper"] and row["estimate"] == pytest.approx(2, abs=0.01)


def test_several_grains_come_finest_first_and_each_counts_every_frame(run):
    stdin = lines(*((START + 1000 * i, f"u{i % 7}") for i in range(400)))
    rows = rows_of(run("count", "--grain", "year", "--grain", "hour", "--grain", "week", stdin=stdin))
    grains = [row["grain"] for row in rows]
    assert list(dict.fromkeys(grains)) == ["hour", "week", "year"]
    for grain in set(grains):
        assert sum(row["frames"] for row in rows if row["grain"] == grain) == 400
    assert [row for row in rows if row["grain"] == "year"][0]["unique_users"] == 7


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Europe/Zurich"])
def test_days_are_those_of_the_time_zone(run, tmp_path, zone):
    stdin = lines(*((START + 911 * i, f"u{i % 13}") for i in range(500)))
    (tmp_path / "in.jsonl").write_bytes(stdin)
    rows = rows_of(run("count", "--grain", "day", "--timezone", zone, stdin=stdin))
    truth = counted_with_json_and_sets(
        tmp_path / "in.jsonl", lambda ts: datetime.fromtimestamp(ts, ZoneInfo(zone)).date().isoformat()
    )
    local = [datetime.fromisoformat(row["window_start"]).astimezone(ZoneInfo(zone)).isoformat()[:16] for row in rows]
    assert local == [f"{day}T00:00" for day in truth]
    assert [(row["frames"], row["unique_users"]) for row in rows] == list(truth.values())


def compressed(path, kind, content):
    with pa.CompressedOutputStream(str(path), kind) as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("as_stdin", [False, True])
def test_compressed_input_is_recognised_by_its_bytes(run, tmp_path, kind, as_stdin):
    path = compressed(tmp_path / "no-suffix", kind, lines((START, "a"), (START, "b")))
    done = run("count", "-", stdin=path.read_bytes()) if as_stdin else run("count", path)
    assert rows_of(done)[0]["unique_users"] == 2


def test_gzip_files_appended_to_each_other_are_read_to_the_end(run):
    stdin = gzip.compress(lines((START, "a"))) + gzip.compress(lines((START, "b")))
    assert rows_of(run("count", stdin=stdin))[0]["unique_users"] == 2


def test_files_and_stdin_are_counted_together(run, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines((START, "a"), (START, "b")))
    compressed(tmp_path / "b.gz", "gzip", lines((START, "b"), (START + 86_400, "c")))
    rows = rows_of(run("count", "a.jsonl", "b.gz", "-", stdin=lines((START - 86_400, "d"), (START, "e"))))
    assert [(row["frames"], row["unique_users"]) for row in rows] == [(1, 1), (4, 3), (1, 1)]


def test_blank_lines_line_ends_of_windows_and_a_missing_last_one_do_not_matter(run):
    done = run("count", stdin=b'\n\n{"ts":%d,"uid":"a"}\r\n   \n\r\n{"ts":%d,"uid":"b"}' % (START, START))
    assert rows_of(done)[0]["frames"] == 2 and done.stderr.startswith(b"2 lines: 2 frames counted")


def test_hostile_uids_are_just_users(run):
    uids = [
        "'; DROP TABLE frames; --",
        "a\0b",
        "a",
        "A",
        "\u00e9",
        "e\u0301",
        " a",
        "\U0001f6d2",
        "x" * 10_000,
        "$lg_k",
    ]
    (row,) = rows_of(run("count", stdin=lines(*((START, uid) for uid in uids))))
    assert row["unique_users"] == len(uids)


@pytest.mark.parametrize("stdin", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_no_input_at_all_gives_no_windows(run, stdin):
    done = run("count", stdin=stdin)
    assert rows_of(done) == [] and b"0 lines" in done.stderr


def test_held_and_rejected_lines_are_in_the_summary_with_their_reasons(run):
    steady = lines(*((START + i, f"u{i}") for i in range(1000)))
    wrong = lines((START + 10**6, "future"), (START - 10**6, "old")) + b"{}\n[]\nnonsense\n"
    done = run(
        "count",
        stdin=steady[: len(steady) // 2 + 5].rpartition(b"\n")[0]
        + b"\n"
        + wrong
        + steady[len(steady) // 2 :].partition(b"\n")[2],
    )
    summary = done.stderr.decode()
    assert "2 held (very_late 1, future 1)" in summary
    assert "3 rejected (invalid_json 1, not_an_object 1, ts_missing 1)" in summary
    frames = sum(row["frames"] for row in rows_of(done))
    delivered = int(summary.split(" lines")[0].replace(",", ""))
    assert frames == delivered - 5 and f"{frames:,} frames counted" in summary


def test_a_setting_counts_very_late_frames_too(run):
    stdin = lines(*((START + i, "u") for i in range(500)), (START - 10**6, "old"))
    done = run("count", stdin=stdin, UNIQ_VERY_LATE="correct")
    assert sum(row["frames"] for row in rows_of(done)) == 501 and b"0 held" in done.stderr


@pytest.mark.parametrize("unit, factor", [("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
def test_the_unit_of_ts_is_an_option(run, unit, factor):
    (row,) = rows_of(run("count", "--ts-unit", unit, stdin=lines((START * factor + factor - 1, "a"))))
    assert row["window_start"] == "2026-01-01T00:00:00Z"


def test_a_table_for_people_has_the_same_columns_and_rows(run):
    done = run("count", "--format", "table", stdin=lines(*((START + i, f"u{i}") for i in range(120))))
    header, *rows = done.stdout.decode().splitlines()
    assert done.returncode == 0 and header.split() == KEYS and len(rows) == 2
    assert rows[0].split()[:5] == ["minute", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "60", "60"]


def test_json_wins_over_the_table_when_both_are_asked_for(run):
    assert rows_of(run("count", "--format", "table", "--json", stdin=lines((START, "a"))))


# What goes wrong


def test_damaged_or_truncated_compression_is_an_error_that_names_the_file(run, tmp_path):
    good = gzip.compress(os.urandom(50_000))
    (tmp_path / "cut.gz").write_bytes(good[:20_000])
    (tmp_path / "damaged.gz").write_bytes(good[:20_000] + b"garbage" + good[20_007:])
    (tmp_path / "zstd").write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 100)
    for name in ("cut.gz", "damaged.gz", "zstd"):
        refused(run("count", name), f"{name}: cannot be read")
    refused(run("count", stdin=good[:20_000]), "stdin: cannot be read")


def test_a_missing_file_and_a_folder_are_errors_that_name_them(run, tmp_path):
    refused(run("count", "missing.jsonl"), "missing.jsonl: cannot be read: No such file or directory")
    refused(run("count", tmp_path), f"{tmp_path}: cannot be read: Is a directory")


def test_a_closed_stdin_is_an_error_in_words(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"exec {COMMAND[0]} count <&-"], capture_output=True, cwd=tmp_path, env=dict(os.environ)
    )
    refused(done, "stdin")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--grain", "fortnight"], "'fortnight' is not one of 'minute'"),
        (["--lg-k", "3"], "UNIQ_LG_K: found 3"),
        (["--lg-k", "x"], "'x' is not a valid integer"),
        (["--timezone", "Mars"], "UNIQ_TIMEZONE: found 'Mars'"),
        (["--ts-unit", "h"], "'h' is not one of"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_is_allowed(run, options, said):
    refused(run("count", *options, stdin=lines((START, "a"))), said)


@pytest.mark.parametrize("options", [[], ["--format", "table"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path, options):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(*((START + 60 * i, "a") for i in range(400))))
    script = f'{COMMAND[0]} count {" ".join(options)} in.jsonl | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, timeout=60)
    first, status = done.stdout.decode().splitlines()
    assert "grain" in first and b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr
    # Rich, which prints the tables, exits with 1 by itself.
    assert status == "0" or options
