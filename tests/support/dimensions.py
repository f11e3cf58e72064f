"""Counts by dimension, computed anew in plain Python from what was delivered, and held against what is stored."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.audit import GRAINS, Place, Stored, _epoch, _floor, _registers, bounds_of
from uniq_pipeline.config import Settings

CHILD = {"hour": "minute", "day": "hour", "week": "day", "month": "day", "year": "month"}


@dataclass
class Entry:
    """What counts under a value: frames, and the users whose state it is."""

    frames: int = 0
    users: set[str] = field(default_factory=set)


Entries = dict[tuple[str, str], Entry]  # (dimension, value)


def value_of(found: Any) -> str:
    """The rule of the documents, from what Python's own parser reads."""
    match found:
        case bool():
            return str(found).lower()
        case str():
            return "(none)" if found == "" else "(other)" if len(found) > 64 else found
        case int() if -(2**63) <= found < 2**64:
            return str(found)
    return "(none)"


def values_in(payload: bytes, names: Iterable[str]) -> dict[str, str]:
    root = json.loads(payload)
    return {name: value_of(root.get(name)) for name in sorted(names)}


def ranked(entries: Entries, most: int) -> Entries:
    """All but the values with most frames, and among equals the first, are together under (other)."""
    kept: Entries = defaultdict(Entry)
    for name in {dimension for dimension, _ in entries}:
        named = sorted(
            (value for dimension, value in entries if dimension == name and value != "(other)"),
            key=lambda value: (-entries[name, value].frames, value.encode()),
        )
        for dimension, value in entries:
            if dimension == name:
                into = kept[name, value if value in named[:most] else "(other)"]
                into.frames += entries[name, value].frames
                into.users |= entries[name, value].users
    return dict(kept)


@dataclass
class Counted:
    """By grain and window start: entries, and who really had each value."""

    entries: dict[str, dict[int, Entries]]
    truth: dict[str, dict[int, dict[tuple[str, str], set[str]]]]


def count_anew(
    settings: Settings, frames: Iterable[tuple[int, str, Mapping[str, str]]], grains: Iterable[str] = GRAINS
) -> Counted:
    """Counts (event second, uid, dimension -> value) frames at every grain, the coarser from the finer."""
    most = settings.dimension_values
    plain: dict[int, Entries] = defaultdict(lambda: defaultdict(Entry))
    truth: dict[str, dict[int, dict]] = {grain: defaultdict(lambda: defaultdict(set)) for grain in GRAINS}
    for event_s, uid, values in frames:
        for name, value in values.items():
            entry = plain[_floor(event_s, 60)][name, value]
            entry.frames += 1
            entry.users.add(uid)
            for grain in grains:
                truth[grain][bounds_of(grain, event_s, settings.timezone)[0]][name, value].add(uid)
    entries = {"minute": {start_s: ranked(found, most) for start_s, found in plain.items()}}
    for grain in grains:
        if grain == "minute":
            continue
        merged: dict[int, Entries] = defaultdict(lambda: defaultdict(Entry))
        child = CHILD[grain]
        for minute in entries["minute"]:
            first, after = bounds_of(grain, minute, settings.timezone)
            start, end = bounds_of(child, minute, settings.timezone)
            if start < first or end > after:  # a local midnight cuts the hour
                _add(merged[first], entries["minute"][minute])
        for start, found in entries[child].items():
            end = bounds_of(child, start, settings.timezone)[1]
            first, after = bounds_of(grain, start, settings.timezone)
            if first <= start and end <= after:
                _add(merged[first], found)
        entries[grain] = {start_s: ranked(found, most) for start_s, found in merged.items()}
    return Counted(entries, truth)


def _add(into: Entries, more: Entries) -> None:
    for key, entry in more.items():
        into[key].frames += entry.frames
        into[key].users |= entry.users


def dimension_problems(
    settings: Settings, stored: Stored, payloads: Mapping[Place, bytes], grains: Iterable[str] = GRAINS
) -> list[str]:
    """All that is wrong with the counts by dimension; the frames themselves are the audit's business."""
    names = settings.dimension_keys
    problems = []
    frames = []
    for row in stored.files.get("frames", []):
        place = row["kafka_partition"], row["kafka_offset"]
        values = values_in(payloads[place], names)
        if row["dimensions"] != list(values.items()):
            problems.append(f"frame {place} has {row['dimensions']}, should have {values}")
        frames.append((_epoch(row["event_time"]), row["uid"], values))
    counted = count_anew(settings, frames, grains)
    for grain in grains:
        rows = stored.results[grain]
        for start_s in set(rows) | set(counted.entries[grain]):
            expected = counted.entries[grain].get(start_s, {})
            found = {(e["dimension"], e["value"]): e for e in rows[start_s]["by_dimension"]}
            where = f"{grain} {start_s}"
            if list(found) != sorted(expected, key=lambda key: (key[0].encode(), key[1].encode())):
                problems.append(f"{where}: entries {list(found)}, should be {sorted(expected)}")
                continue
            truth = counted.truth[grain][start_s]
            for key, entry in expected.items():
                problems += _entry_problems(settings, f"{where} {key}", found[key], entry)
                is_exact = grain == "minute" or (grain, start_s) in stored.sets
                if grain == "minute":
                    users = len(entry.users)
                else:
                    most = Counter({value: len(uids) for (name, value), uids in truth.items() if name == key[0]})
                    del most["(other)"]
                    best = sorted(most, key=lambda value: (-most[value], value.encode()))[: settings.dimension_values]
                    users = most[key[1]] if is_exact and key[1] in best else None
                if found[key]["unique_users"] != users:
                    problems.append(f"{where} {key}: {found[key]['unique_users']} users, should be {users}")
                if key[1] != "(other)" and not found[key]["estimate_lower"] <= len(truth[key]) * 1.2 + 2:
                    problems.append(f"{where} {key}: at least {found[key]['estimate_lower']} of {len(truth[key])}")
    return problems


def _entry_problems(settings: Settings, where: str, found: dict[str, Any], entry: Entry) -> list[str]:
    problems = []
    if found["frames"] != entry.frames:
        problems.append(f"{where}: {found['frames']} frames, should be {entry.frames}")
    if found["hll"][40:] != _registers(entry.users, settings.lg_k) or found["hll"][3] != settings.lg_k:
        problems.append(f"{where}: other registers")
    if not found["estimate_lower"] <= found["estimate"] <= found["estimate_upper"]:
        problems.append(f"{where}: the estimate is outside its bounds")
    return problems
