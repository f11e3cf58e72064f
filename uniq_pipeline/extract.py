"""The root `ts`, `uid` and dimensions of a frame without building the rest of it: msgspec in front of the judge.

The judge is orjson (see frames). It builds every object of a frame of 2 kB to read two of them; msgspec skips the
rest, which takes a quarter to a half of the time. The rule: the same bytes give the same verdict and the same values.
So the extractor may decline any payload, and then the judge decides; what it takes, the judge would have taken.

msgspec is as strict as orjson but for these, each found by experiment and read in its source (json_skip), and
`trusted` guards against each:

- text that is skipped is not checked to be UTF-8;
- a number that is skipped is checked for its form only: 1e400 and 400 digits pass, which to orjson are no numbers;
- depth ends where Python's recursion does, not at the judge's 1,024; from Python 3.12 on, or with a raised limit,
  that is far deeper;
- of a root value past 64 bits msgspec makes an integer, orjson a float: the caller compares (see frames).

Declined by msgspec and taken by the judge are a repeated ts or uid whose earlier value is of another kind, an object
or array where a dimension is read, and depths from about 1,000 to 1,024: slower, never wrong.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec
import numpy as np
import pyarrow as pa

# The guards run over many payloads at once, joined: the dozen calls of NumPy cost as much as 100 frames of 2 kB. A
# block is the 500 that a reader hands over; a larger payload goes to the judge, which bounds the buffers.
BLOCK_BYTES = 1 << 20

DECLINED = b""
"""What stands for a payload that the judge must see: no JSON, so msgspec declines it."""

# A double ends at 1.8e308. Fewer than 200 digits before the point and an exponent of two digits stay far below.
_LONG_RUN = 200
_STRIDE = 32
_SAMPLES = _LONG_RUN // _STRIDE  # a run of 200 digits meets at least so many of every 32nd byte


# In valid JSON a number is made of these and follows one of those; after any other byte it is part of a string.
_NUMBER_BYTES = b"0123456789.-"
_BEFORE_A_NUMBER = b":,[ \t\r\n"
_TEXT = 2
_KINDS = np.full(256, _TEXT, np.uint8)
_KINDS[list(_BEFORE_A_NUMBER)] = 1
_KINDS[list(_NUMBER_BYTES)] = 0
_LOOK_BACK = np.arange(1, 9)

# The judge's limit is 1,024 levels, the root among them.
_SAFE_DEPTH = 1000


class Root(msgspec.Struct, gc=False):
    """What is read of a frame. Other kinds of value are declined, as is a frame without one of the two."""

    ts: int | float | str
    uid: int | str


decode = msgspec.json.Decoder(Root).decode
"""The root of a payload that `trusted` let through. Raises whatever it likes for what it declines."""


@lru_cache(maxsize=8)
def decoder_with(dimensions: tuple[str, ...]) -> Callable[[bytes], msgspec.Struct]:
    """Like `decode`, of roots that have the values of these root keys behind ts and uid, in their order.

    None stands for a key that is missing or null. A key that msgspec cannot look for leaves all to the judge.
    """
    scalar = str | int | float | bool | None
    fields = [(f"d{i}", scalar, None) for i in range(len(dimensions))]
    names = {f"d{i}": name for i, name in enumerate(dimensions)}
    try:
        root = msgspec.defstruct(
            "Root", [("ts", int | float | str), ("uid", int | str), *fields], rename=names, gc=False
        )
    except ValueError:  # a quote, a backslash or a control character in a key
        return _decline
    return msgspec.json.Decoder(root).decode


def _decline(payload: bytes) -> msgspec.Struct:
    raise ValueError("left to the judge")


def trusted(payloads: Sequence[bytes | None]) -> list[bytes]:
    """The payloads, with `DECLINED` in the place of each on which msgspec and the judge might differ.

    Costs about half of msgspec's own work on ASCII frames of 2 kB, and 0.25 us on frames of 42 bytes. An odd payload
    costs its neighbours nothing but a closer look at the block they share.
    """
    kept = list(payloads)
    if set(map(type, kept)) - {bytes}:  # bytearray and memoryview are rare, and may change
        kept = [payload if type(payload) is bytes else DECLINED for payload in kept]
    lengths = list(map(len, kept))
    longest = max(lengths, default=0)
    if longest >= 2 * _SAFE_DEPTH and _may_recurse_deeper_than_the_judge():
        kept = [DECLINED if _may_be_too_deep(payload) else payload for payload in kept]
    if longest > BLOCK_BYTES:
        kept = [payload if len(payload) <= BLOCK_BYTES else DECLINED for payload in kept]
    if longest >= min(2 * _SAFE_DEPTH, BLOCK_BYTES):
        lengths = list(map(len, kept))  # what was declined just now is shorter, and `ends` are of what is joined
    ends = np.cumsum(np.fromiter(lengths, np.int64, len(kept)) + 1)
    guard = _guard()
    start, start_byte = 0, 0
    while start < len(kept):
        # At least one payload, as none is longer than a block.
        stop = int(np.searchsorted(ends, start_byte + BLOCK_BYTES + 1, side="right"))
        for i in guard.odd(kept[start:stop], ends[start:stop] - start_byte):
            kept[start + i] = DECLINED
        start, start_byte = stop, int(ends[stop - 1])
    return kept


def _may_be_too_deep(payload: bytes) -> bool:
    """As many closing brackets follow, so a shorter payload cannot be valid and too deep."""
    return len(payload) >= 2 * _SAFE_DEPTH and payload.count(b"[") + payload.count(b"{") > _SAFE_DEPTH


def _may_recurse_deeper_than_the_judge() -> bool:
    """Whether msgspec's depth is not bounded below the judge's: Python 3.12 took C code out of the setting."""
    return sys.version_info >= (3, 12) or sys.getrecursionlimit() > _SAFE_DEPTH


_of_this_thread = threading.local()


def _guard() -> _Guard:
    """This thread's guard: its buffers are kept, as new ones at each call cost more than they are used for."""
    try:
        return _of_this_thread.guard
    except AttributeError:
        _of_this_thread.guard = _Guard(BLOCK_BYTES + 1)
        return _of_this_thread.guard


class _Guard:
    """Looks for what msgspec does not check in what it skips, in joined payloads of up to `size` bytes."""

    def __init__(self, size: int) -> None:
        self._octets = np.empty(size, np.uint8)
        self._is_digit = np.empty(size, np.bool_)
        self._is_suspect = np.zeros(size + 8, np.bool_)  # read in words of 8

    def odd(self, payloads: list[bytes], ends: np.ndarray) -> set[int]:
        """Places of the payloads to decline. `ends[i]` is where payload i+1 begins in the joined payloads."""
        # A line end between two keeps half a character here and half there from being a whole one.
        joined = b"\n".join(payloads)
        odd: set[int] = set()
        if not _is_utf8(joined):
            odd.update(i for i, payload in enumerate(payloads) if not _is_utf8(payload))
        if len(joined) >= len("1e400"):
            places = [*self._long_runs(joined), *self._large_exponents(joined)]
            if places:
                odd.update(np.searchsorted(ends, places, side="right").tolist())
        return odd

    def _long_runs(self, joined: bytes) -> list[int]:
        """A place within each run of 200 digits, and in some that are shorter. Leaves `_is_digit` for the other."""
        octets = np.frombuffer(joined, np.uint8)
        scratch, is_digit = self._octets[: len(octets)], self._is_digit[: len(octets)]
        np.subtract(octets, ord("0"), out=scratch)
        np.less(scratch, 10, out=is_digit)
        if len(octets) < _LONG_RUN:
            return []
        sampled = is_digit[::_STRIDE].copy()
        runs = sampled[: len(sampled) - _SAMPLES + 1].copy()
        for k in range(1, _SAMPLES):
            runs &= sampled[k : len(sampled) - _SAMPLES + 1 + k]
        places = (np.flatnonzero(runs) * _STRIDE).tolist()
        return [place for place in places if joined[place : place + (_SAMPLES - 1) * _STRIDE + 1].isdigit()]

    def _large_exponents(self, joined: bytes) -> list[int]:
        """Places of an e with a number before it and three digits behind it, unless that is surely within a string.

        Passes over all bytes are dear, so they test no more than is needed to
        leave few candidates: a digit, an e, any byte, two digits. Hexadecimal text has one now and then.
        """
        octets = np.frombuffer(joined, np.uint8)
        size = len(octets)
        scratch, is_digit, is_suspect = self._octets[:size], self._is_digit[:size], self._is_suspect
        np.bitwise_or(octets, 0x20, out=scratch)
        suspect = is_suspect[: size - 4]
        np.equal(scratch[1:-3], ord("e"), out=suspect)
        suspect &= is_digit[:-4]
        suspect &= is_digit[4:]
        suspect &= is_digit[3:-1]
        is_suspect[size - 4 : size + 4] = False
        # NumPy's nonzero takes as long as three passes, so words that are zero are left out of it.
        suspects = is_suspect[: (size + 3) // 8 * 8]
        words = np.flatnonzero(suspects.view(np.uint64) != 0)
        if not len(words):
            return []
        within = np.flatnonzero(suspects.reshape(-1, 8).take(words, axis=0))
        places = words[within >> 3] * 8 + (within & 7) + 1
        after = places + 1
        places = places[is_digit.take(after) | (octets.take(after) == ord("+"))]
        # Where the number would begin: most of the rest is seen to be text within 8 bytes, by NumPy.
        before = octets.take(np.maximum(places[:, np.newaxis] - _LOOK_BACK, 0))
        kinds = _KINDS.take(before)
        first = (kinds != 0).argmax(axis=1)
        kind = kinds[np.arange(len(places)), first]
        return [place for place in places[kind != _TEXT].tolist() if _begins_outside_text(joined, place)]


def _begins_outside_text(joined: bytes, end: int) -> bool:
    """Whether digits, points and signs up to `end` may be a number's; also if they go on for too long to tell."""
    return joined[max(0, end - _LONG_RUN) : end].rstrip(_NUMBER_BYTES)[-1:] in _BEFORE_A_NUMBER


def _is_utf8(text: bytes) -> bool:
    """Strict UTF-8. Arrow's check runs at 4 GB/s, Python's decoder at 0.3, as it builds the text."""
    if text.isascii():
        return True
    offsets = pa.py_buffer(np.array([0, len(text)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
