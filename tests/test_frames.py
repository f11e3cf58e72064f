"""The judge of frames: which bytes are a frame, which are rejected, and why."""

from __future__ import annotations

import json
import math
import unicodedata
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uniq_pipeline.config import TsUnit
from uniq_pipeline.frames import LATEST_EVENT_S, Reason, parse_frames


def only(payload, unit=TsUnit.SECONDS):
    """(event second, uid) of a frame, or the Reason it was rejected for."""
    parsed = parse_frames([payload], unit)
    if parsed.rejects:
        (reject,) = parsed.rejects
        assert len(parsed.index) == len(parsed.event_s) == len(parsed.uids) == 0
        assert reject.index == 0 and reject.detail
        return reject.reason
    (second,), (uid,) = parsed.event_s.tolist(), parsed.uids
    return second, uid


# The names begin with the row of the list of faults that a record stands for.
HOSTILE = {
    "29 invalid UTF-8 in uid": (b'{"ts":1,"uid":"\xff"}', Reason.INVALID_UTF8),
    "29 invalid UTF-8 in a field that is not read": (b'{"ts":1,"uid":"a","x":"\xc3("}', Reason.INVALID_UTF8),
    "29 overlong UTF-8": (b'{"ts":1,"uid":"\xc0\xaf"}', Reason.INVALID_UTF8),
    "29 UTF-16": ('{"ts":1,"uid":"a"}'.encode("utf-16"), Reason.INVALID_UTF8),
    "30 truncated": (b'{"ts":1,"uid":"a"', Reason.INVALID_JSON),
    "30 trailing text": (b'{"ts":1,"uid":"a"} x', Reason.INVALID_JSON),
    "30 two documents": (b'{"ts":1,"uid":"a"}{"ts":1,"uid":"a"}', Reason.INVALID_JSON),
    "30 two lines": (b'{"ts":1,"uid":"a"}\n{"ts":1,"uid":"a"}', Reason.INVALID_JSON),
    "30 empty": (b"", Reason.INVALID_JSON),
    "30 only spaces": (b"  \n", Reason.INVALID_JSON),
    "30 tombstone": (None, Reason.TOMBSTONE),
    "31 100,000 open lists": (b"[" * 100_000, Reason.INVALID_JSON),
    "31 100,000 nested lists": (
        b'{"ts":1,"uid":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        Reason.INVALID_JSON,
    ),
    "31 100,000 nested objects": (b'{"x":' * 100_000 + b"1" + b"}" * 100_000, Reason.INVALID_JSON),
    "32 NaN": (b'{"ts":NaN,"uid":"a"}', Reason.INVALID_JSON),
    "32 NaN in a field that is not read": (b'{"ts":1,"uid":"a","x":NaN}', Reason.INVALID_JSON),
    "32 Infinity": (b'{"ts":-Infinity,"uid":"a"}', Reason.INVALID_JSON),
    "32 trailing comma": (b'{"ts":1,"uid":"a",}', Reason.INVALID_JSON),
    "32 comment": (b'{"ts":1,/* who? */"uid":"a"}', Reason.INVALID_JSON),
    "32 single quotes": (b"{'ts':1,'uid':'a'}", Reason.INVALID_JSON),
    "32 leading zero": (b'{"ts":01,"uid":"a"}', Reason.INVALID_JSON),
    "32 raw control character": (b'{"ts":1,"uid":"a\x00b"}', Reason.INVALID_JSON),
    "33 1e400": (b'{"ts":1e400,"uid":"a"}', Reason.INVALID_JSON),
    "33 1e400 as a string": (b'{"ts":"1e400","uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "33 1e300": (b'{"ts":1e300,"uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "33 an integer past 64 bits": (b'{"ts":123456789012345678901,"uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "33 4,000 digits": (b'{"ts":' + b"9" * 4000 + b',"uid":"a"}', Reason.INVALID_JSON),
    "33 4,000 digits in a string": (b'{"ts":"' + b"9" * 4000 + b'","uid":"a"}', Reason.TS_INVALID),
    "34 of a repeated root key the last counts": (b'{"ts":1,"uid":"a","ts":2,"uid":"b"}', (2, "b")),
    "34 also when the last is wrong": (b'{"ts":1,"uid":"a","uid":null}', Reason.UID_MISSING),
    "34 also when it is spelled otherwise": (rb'{"uid":"a","ts":1,"\u0075id":"b"}', (1, "b")),
    "35 nested decoys": (b'{"x":{"ts":7,"uid":"no"},"ts":1,"uid":"a","y":[{"ts":8,"uid":"no"}]}', (1, "a")),
    "35 nothing but decoys": (b'{"x":{"ts":7,"uid":"no"}}', Reason.TS_MISSING),
    "35 decoys in text": (rb'{"x":"\"ts\":7,\"uid\":\"no\"","ts":1,"uid":"a"}', (1, "a")),
    "35 escaped keys": (rb'{"\u0074\u0073":1,"\u0075id":"a"}', (1, "a")),
    "35 keys in another case": (b'{"TS":1,"Uid":"a"}', Reason.TS_MISSING),
    "36 byte order mark": (b'\xef\xbb\xbf{"ts":1,"uid":"a"}', Reason.INVALID_JSON),
    "37 escaped lone surrogate": (rb'{"ts":1,"uid":"\ud800"}', Reason.INVALID_JSON),
    "37 lone low surrogate": (rb'{"ts":1,"uid":"\udc00"}', Reason.INVALID_JSON),
    "37 encoded lone surrogate": (b'{"ts":1,"uid":"\xed\xa0\x80"}', Reason.INVALID_UTF8),
    "37 a surrogate pair is a character": (rb'{"ts":1,"uid":"\ud83d\uded2"}', (1, "\U0001f6d2")),
    "38 NUL inside a uid": (rb'{"ts":1,"uid":"a\u0000b"}', (1, "a\0b")),
    "39 ts as an integer": (b'{"ts":1767225600,"uid":"a"}', (1767225600, "a")),
    "39 ts as a float": (b'{"ts":1767225600.999,"uid":"a"}', (1767225600, "a")),
    "39 ts with an exponent": (b'{"ts":1.7672256e9,"uid":"a"}', (1767225600, "a")),
    "39 ts as a string": (b'{"ts":"1767225600","uid":"a"}', (1767225600, "a")),
    "39 leading zeros in a string": (b'{"ts":"007","uid":"a"}', (7, "a")),
    "39 ts as a string with a fraction": (b'{"ts":"1767225600.9","uid":"a"}', (1767225600, "a")),
    "39 milliseconds are not guessed": (b'{"ts":1767225600000,"uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "39 ts as a date": (b'{"ts":"2026-01-01T00:00:00Z","uid":"a"}', Reason.TS_INVALID),
    "39 a string with a space": (b'{"ts":" 1","uid":"a"}', Reason.TS_INVALID),
    "39 a string with a line end": (rb'{"ts":"1\n","uid":"a"}', Reason.TS_INVALID),
    "39 a string with a plus sign": (b'{"ts":"+1","uid":"a"}', Reason.TS_INVALID),
    "39 a string with an underscore": (b'{"ts":"1_0","uid":"a"}', Reason.TS_INVALID),
    "39 digits of another script": ('{"ts":"\u0661","uid":"a"}'.encode(), Reason.TS_INVALID),
    "39 the string NaN": (b'{"ts":"NaN","uid":"a"}', Reason.TS_INVALID),
    "39 the empty string": (b'{"ts":"","uid":"a"}', Reason.TS_INVALID),
    "39 hexadecimal": (b'{"ts":"0x10","uid":"a"}', Reason.TS_INVALID),
    "39 true": (b'{"ts":true,"uid":"a"}', Reason.TS_INVALID),
    "39 a list": (b'{"ts":[1],"uid":"a"}', Reason.TS_INVALID),
    "39 an object": (b'{"ts":{"ts":1},"uid":"a"}', Reason.TS_INVALID),
    "39 null": (b'{"ts":null,"uid":"a"}', Reason.TS_MISSING),
    "39 missing": (b'{"uid":"a"}', Reason.TS_MISSING),
    "40 negative": (b'{"ts":-1,"uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "40 a hair below zero": (b'{"ts":-0.001,"uid":"a"}', Reason.TS_OUT_OF_RANGE),
    "40 the top bit flipped": (b'{"ts":%d,"uid":"a"}' % (1767225600 ^ 1 << 63), Reason.TS_OUT_OF_RANGE),
    "40 a low bit flipped is judged by the event clock": (b'{"ts":0,"uid":"a"}', (0, "a")),
    "41 uid missing": (b'{"ts":1}', Reason.UID_MISSING),
    "41 uid null": (b'{"ts":1,"uid":null}', Reason.UID_MISSING),
    "41 uid empty": (b'{"ts":1,"uid":""}', Reason.UID_EMPTY),
    "41 a space is a uid": (b'{"ts":1,"uid":" "}', (1, " ")),
    "42 the integer 42 is the text 42": (b'{"ts":1,"uid":42}', (1, "42")),
    "42 a negative integer": (b'{"ts":1,"uid":-7}', (1, "-7")),
    "42 the largest integer": (b'{"ts":1,"uid":18446744073709551615}', (1, "18446744073709551615")),
    "42 an integer past 64 bits": (b'{"ts":1,"uid":18446744073709551616}', Reason.UID_INVALID),
    "42 a float": (b'{"ts":1,"uid":42.0}', Reason.UID_INVALID),
    "42 true": (b'{"ts":1,"uid":true}', Reason.UID_INVALID),
    "42 a list": (b'{"ts":1,"uid":["a"]}', Reason.UID_INVALID),
    "42 an object": (b'{"ts":1,"uid":{"uid":"a"}}', Reason.UID_INVALID),
    "44 a list at the top": (b'[{"ts":1,"uid":"a"}]', Reason.NOT_AN_OBJECT),
    "44 a number at the top": (b"1", Reason.NOT_AN_OBJECT),
    "44 a text at the top": (b'"ts uid"', Reason.NOT_AN_OBJECT),
    "44 null at the top": (b"null", Reason.NOT_AN_OBJECT),
    "66 a uid of SQL is just a user": (b'{"ts":1,"uid":"\'; DROP TABLE frames"}', (1, "'; DROP TABLE frames")),
}


@pytest.mark.parametrize("payload, verdict", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_gets_the_documented_verdict(payload, verdict):
    assert only(payload) == verdict


def test_hostile_records_in_one_batch_do_not_change_each_others_verdicts():
    payloads = [payload for payload, _ in HOSTILE.values()]
    parsed = parse_frames(payloads)
    verdicts = dict(zip(parsed.index.tolist(), zip(parsed.event_s.tolist(), parsed.uids, strict=True), strict=True))
    verdicts |= {reject.index: reject.reason for reject in parsed.rejects}
    assert [verdicts[i] for i in range(len(payloads))] == [verdict for _, verdict in HOSTILE.values()]


def test_every_reason_for_a_rejection_occurs_among_the_hostile_records():
    assert {verdict for _, verdict in HOSTILE.values() if isinstance(verdict, Reason)} == set(Reason)


def test_43_case_unicode_form_and_spaces_tell_users_apart():
    e_acute = "caf\u00e9"
    uids = ["a", "A", " a", "a ", "a\t", e_acute, unicodedata.normalize("NFD", e_acute), "\u212a", "K"]
    parsed = parse_frames([json.dumps({"ts": 1, "uid": uid}).encode() for uid in uids])
    assert parsed.uids == uids and len(set(parsed.uids)) == len(uids)


def test_line_ends_and_spaces_around_a_frame_are_json():
    assert only(b' \t{"ts" : 1 , "uid" : "a"}\r\n') == (1, "a")


def test_bytearray_and_memoryview_are_payloads_like_bytes():
    assert only(bytearray(b'{"ts":1,"uid":"a"}')) == only(memoryview(b'{"ts":1,"uid":"a"}')) == (1, "a")


def test_the_detail_of_a_reject_is_short_however_long_the_value():
    (reject,) = parse_frames([json.dumps({"ts": "x" * 100_000, "uid": "a"}).encode()]).rejects
    assert len(reject.detail) < 100


# In nanoseconds JSON's 64-bit integers end in the year 2554 already.
@pytest.mark.parametrize("unit", [TsUnit.SECONDS, TsUnit.MILLISECONDS, TsUnit.MICROSECONDS])
def test_the_last_second_that_is_a_frame_is_so_in_every_unit(unit):
    last = (LATEST_EVENT_S + 1) * unit.per_second - 1
    assert only(b'{"ts":%d,"uid":"a"}' % last, unit) == (LATEST_EVENT_S, "a")
    assert only(b'{"ts":%d,"uid":"a"}' % (last + 1), unit) is Reason.TS_OUT_OF_RANGE


@pytest.mark.parametrize(
    "unit, ts",
    [("s", "1767225600"), ("ms", "1767225600999"), ("us", "1767225600999999"), ("ns", "1767225600999999999")],
)
def test_each_unit_is_floored_to_the_second_as_integer_and_as_string(unit, ts):
    assert only(b'{"ts":%s,"uid":"a"}' % ts.encode(), TsUnit(unit)) == (1767225600, "a")
    assert only(b'{"ts":"%s","uid":"a"}' % ts.encode(), TsUnit(unit)) == (1767225600, "a")


@given(
    st.floats(-1e12, 1e12) | st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(TsUnit),
    st.booleans(),
)
@example(-1e-9, TsUnit.SECONDS, False)
@example(-1, TsUnit.NANOSECONDS, False)
@example(0.9999999999999999, TsUnit.SECONDS, True)
@example(-0.0, TsUnit.SECONDS, True)
def test_ts_is_floored_and_never_rounded_or_truncated(ts, unit, as_text):
    exact = math.floor(Fraction(ts) / unit.per_second)
    written = json.dumps(json.dumps(ts) if as_text else ts)
    verdict = only(b'{"ts":%s,"uid":"a"}' % written.encode(), unit)
    assert verdict == ((exact, "a") if 0 <= exact <= LATEST_EVENT_S else Reason.TS_OUT_OF_RANGE)


FRAGMENTS = st.sampled_from(
    [b'"ts":', b'"uid":', b"{", b"}", b"[", b"]", b",", b'"', b"1", b"-", b"1e9", b"null", b"\\u0000", b"\\ud800"]
    + [b"\xff", b"\xef\xbb\xbf", b"NaN", b" ", b"\n", b'"a"', b'{"ts":1,"uid":"a"}']
)
JUNK = st.none() | st.binary(max_size=200) | st.lists(FRAGMENTS, max_size=20).map(b"".join)


@given(st.lists(JUNK, max_size=20))
def test_whatever_the_bytes_nothing_raises_and_every_payload_ends_in_one_place(payloads):
    parsed = parse_frames(payloads)
    assert sorted([*parsed.index.tolist(), *(reject.index for reject in parsed.rejects)]) == [*range(len(payloads))]
    assert len(parsed.index) == len(parsed.event_s) == len(parsed.uids)
    assert all(0 <= second <= LATEST_EVENT_S for second in parsed.event_s.tolist())
    assert all(uid and uid.encode() for uid in parsed.uids)


@given(st.lists(JUNK, max_size=8), st.sampled_from(TsUnit))
def test_the_verdict_does_not_depend_on_the_batch(payloads, unit):
    together = parse_frames(payloads, unit)
    verdicts = iter(zip(together.event_s.tolist(), together.uids, strict=True))
    rejected = {reject.index: reject.reason for reject in together.rejects}
    assert [rejected[i] if i in rejected else next(verdicts) for i in range(len(payloads))] == [
        only(payload, unit) for payload in payloads
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ts", "uid", "x"]) | TEXT, inner),
    max_leaves=6,
)
TS = st.integers(0, 4_000_000_000) | st.floats(0, 4e9) | st.integers(0, 4_000_000_000).map(str)
UIDS = TEXT.filter(bool) | st.integers(-(2**63), 2**64 - 1)


KEYS = TEXT.filter(lambda key: key not in ("ts", "uid"))


def spelled(draw, key):
    """A key as JSON, some of it with its first letter escaped."""
    if key.isalnum() and key.isascii() and draw(st.booleans()):
        return f'"\\u{ord(key[0]):04x}{key[1:]}"'
    return json.dumps(key)


@st.composite
def valid_frames(draw):
    """The text of a frame: root ts and uid among decoys, repeated keys and escapes, in any order."""
    members = draw(st.lists(st.tuples(st.just("x") | KEYS, VALUES), max_size=5))
    members += [("ts", ts) for ts in draw(st.lists(TS, min_size=1, max_size=2))]
    members += [("uid", uid) for uid in draw(st.lists(UIDS, min_size=1, max_size=2))]
    members = draw(st.permutations(members))
    ascii_only, space = draw(st.booleans()), draw(st.sampled_from(["", " ", "\n\t"]))
    texts = [f"{spelled(draw, key)}{space}:{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in members]
    return "{" + f"{space},".join(texts) + "}"


@given(valid_frames())
def test_a_valid_frame_is_read_as_pythons_json_reads_it(text):
    root = json.loads(text)
    assert only(text.encode()) == (math.floor(float(root["ts"])), str(root["uid"]))
