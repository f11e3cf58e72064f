"""The extractor in front of the judge: the same bytes, the same verdict and the same values."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniq_pipeline import extract, frames
from uniq_pipeline.config import TsUnit
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.frames import LATEST_EVENT_S, judge_frames, parse_frames


def verdicts(parsed):
    return parsed.index.tolist(), parsed.event_s.tolist(), parsed.uids, parsed.values, parsed.rejects


def assert_same(payloads, unit=TsUnit.SECONDS):
    """Also when what is skipped otherwise is read as dimensions, which changes nothing else."""
    for dimensions in ((), ("TS", "x"), ("", "x", "ts\0", "\N{LATIN SMALL LETTER E WITH ACUTE} y")):
        judged = judge_frames(payloads, unit, dimensions)
        assert verdicts(parse_frames(payloads, unit, dimensions)) == verdicts(judged)
        assert len(judged.values) == (len(judged.uids) if dimensions else 0)
        assert judged.rejects == judge_frames(payloads, unit).rejects


def with_skipped(value):
    """The value in a field that is not read: first, last, nested, in a list."""
    return [
        b'{"x":%s,"ts":1,"uid":"a"}' % value,
        b'{"ts":1,"uid":"a","x":%s}' % value,
        b'{"ts":1,"x":{"y":[0, %s ]},"uid":"a"}' % value,
        b'{"ts":1,"uid":"a","x":[%s,-%s]}' % (value, value),
    ]


NUMBERS = (
    [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1E400", b"1e+400", b"1E+0400", b"1e309", b"1e308"]
    + [b"1.7976931348623157e308", b"1.7976931348623159e308", b"0.1e310", b"1e-400", b"0e400", b"0.0e99999999999999"]
    + [b"1e99999999999999999999", b"9" * 199, b"9" * 200, b"9" * 308, b"9" * 309, b"9" * 400, b"9" * 5000]
    + [b"1" * 250 + b"e59", b"1" * 199 + b"e99", b"1" * 250 + b".5e59", b"0." + b"0" * 400 + b"1", b"1." + b"1" * 900]
    + [b"0", b"-0", b"-0.0", b"01", b"-01", b"00", b"1.", b".5", b"1.e5", b"1e", b"1e+", b"e5", b"+1", b"--1", b"-"]
    + [b"0x10", b"1_0", b"1.0.0", b"1e5.5", b"1e05", b"18446744073709551615", b"18446744073709551616"]
    + [b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809"]
    + [b"4294967295.99999999", b"0.99999999999999999", b"1767225599.9999999999", b"1.7672256e9", b"17672256e2"]
    + [b"253370678399", b"253370678400", b"253370678399.99999", b"1e11", b"9007199254740993", b"9007199254740993.0"]
)
TEXTS = (
    [rb'"\ud800"', rb'"\udc00"', rb'"\ud800\ud800"', rb'"\ud800x"', rb'"\ud83d\ude00"', rb'"\uD83D\u0041"', rb'"\u12"']
    + [
        rb'"\u12g4"',
        rb'"\x41"',
        rb'"\'"',
        rb'"\v"',
        rb'"\U0041"',
        rb'"\/\b\f\n\r\t\"\\"',
        rb'"\u0000"',
        b'"\\',
        b'"\\"',
    ]
    + [b'"\x00"', b'"\x1f"', b'"\t"', b'"\n"', b'"\x7f"', b'"\xff"', b'"\xc3("', b'"\xc0\xaf"', b'"\xed\xa0\x80"']
    + [
        b'"\xf0\x9f"',
        b'"\xf4\x90\x80\x80"',
        b'"\xc3\xa9"',
        b'"\xf0\x9f\x98\x80"',
        b'"\xef\xbf\xbf"',
        b"'a'",
        b'"a',
        b'""',
    ]
    + [
        b'"5e400"',
        b'"[5e400"',
        b'"id 5e400"',
        b'"deadbeef1e4567"',
        b'"' + b"7" * 300 + b'"',
        b'"1767225600"',
        b'"1e400"',
    ]
)
OTHERS = (
    [b"true", b"truex", b"tru", b"null", b"nulll", b"nul", b"False", b"[]", b"{}", b"[,]", b"[1,]", b"[1 2]", b"[1,,2]"]
    + [b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a" 1}', b"{1:2}", b'{"":1}', b'{"a":1 "b":2}', b"{null:1}"]
    + [rb'{"\ud800":1}', b'{"\xff":1}', b'{"\x01":1}', b"[1}", b'{"a":1]', b"", b" 1 ", b"\x0b1", b"\x0c1", b"\xa01"]
    + [b"\x001", b"/**/1", b"1//", b"[" * 900 + b"]" * 900, b"[" * 1022 + b"]" * 1022, b"[" * 1023 + b"]" * 1023]
    + [b"[" * 1024 + b"]" * 1024, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 1023 + b"1" + b"}" * 1023]
)
ROOTS = [
    b'\xef\xbb\xbf{"ts":1,"uid":"a"}',
    b'{"ts":1,"uid":"a"} x',
    b'{"ts":1,"uid":"a"}{"ts":1,"uid":"a"}',
    b'{"ts":1,"uid":"a"},',
    b'{"ts":1,"uid":"a"}\0',
    b'{"ts":1,"uid":"a"}\x0b',
    b' \t\r\n{"ts" : 1 ,\n"uid":"a"}\t\r\n ',
    b'{"ts":1,"uid":"a",}',
    b'{"ts":1,"uid":"a"',
    b'{"ts":1,"uid":"a","ts":2,"uid":"b"}',
    b'{"ts":null,"uid":[],"ts":2,"uid":"b"}',
    b'{"ts":2,"uid":"b","ts":null}',
    b'{"ts":1e400,"ts":2,"uid":"b"}',
    b'{"ts":' + b"9" * 400 + b',"ts":2,"uid":"b"}',
    rb'{"ts":1,"uid":"a","\u0075id":"b"}',
    rb'{"\u0074\u0073":1,"\u0075\u0069\u0064":"a"}',
    rb'{"ts\u0000":3,"ts":1,"uid":"a","uid\u0000":"b"}',
    b'{"ts ":3,"TS":4,"t":5,"tss":6,"ts":1,"uid":"a","ui":"b","uidx":"c","":"d"}',
    b'{"x":{"ts":7,"uid":"no"}}',
    b'[1,"a"]',
    b'[{"ts":1,"uid":"a"}]',
    b'"ts uid"',
    b"null",
    b"5e400",
    b"",
    b" ",
    None,
    bytearray(b'{"ts":1,"uid":"a","x":1e400}'),
    memoryview(b'{"ts":1,"uid":"a"}'),
    '{"ts":1,"uid":"a"}'.encode("utf-16"),
    b'{"type":"Root","ts":1,"uid":"a"}',
]
TOO_DEEP = b'{"ts":1,"uid":"a","x":' + b"[" * 1100 + b"]" * 1100 + b"}"
HOSTILE = [
    *ROOTS,
    *(payload for value in NUMBERS + TEXTS + OTHERS for payload in with_skipped(value)),
    *(b'{"ts":%s,"uid":"a"}' % value for value in NUMBERS + TEXTS + OTHERS),
    *(b'{"ts":1,"uid":%s}' % value for value in NUMBERS + TEXTS + OTHERS),
    *(b'{"ts":%s,"ts":2,"uid":%s,"uid":"b"}' % (value, value) for value in NUMBERS + TEXTS + OTHERS),
    *(b'{"ts":1,"uid":"a",%s:2}' % value for value in TEXTS),
]


@pytest.fixture
def deep_recursion():
    """As from Python 3.12 on, where msgspec's depth ends far behind the judge's."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("unit", TsUnit)
def test_hostile_payloads_get_the_judges_verdict_alone_and_together(unit):
    assert len(HOSTILE) >= 80
    for payload in HOSTILE:
        assert_same([payload], unit)
    assert_same(HOSTILE, unit)
    assert_same(HOSTILE[::-1], unit)


def test_nesting_between_the_two_limits_gets_the_judges_verdict(deep_recursion):
    for depth in (900, 1022, 1023, 1024, 1100, 5000, 100_000):
        for value in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            assert_same(with_skipped(value))
    assert_same(HOSTILE)
    # What was declined for its depth must not shift the places at which the other guards look.
    large = b'{"ts":1,"uid":"a","x":1e400}'
    assert_same([b'{"ts":1,"uid":"a"}', TOO_DEEP, large, b'{"ts":2,"uid":"b"}', TOO_DEEP, large])


@pytest.mark.parametrize(
    "guard, without, payload",
    [
        ("_is_utf8", lambda text: True, b'{"ts":1,"uid":"a","x":"\xff"}'),
        ("_Guard._large_exponents", lambda self, joined: [], b'{"ts":1,"uid":"a","x":1e400}'),
        ("_STRIDE", 1 << 20, b'{"ts":1,"uid":"a","x":%s}' % (b"9" * 400)),
        ("_may_recurse_deeper_than_the_judge", lambda: False, TOO_DEEP),
    ],
)
def test_without_its_guard_the_extractor_would_take_what_the_judge_rejects(
    guard, without, payload, monkeypatch, deep_recursion
):
    assert_same([payload])
    monkeypatch.setattr(f"uniq_pipeline.extract.{guard}", without)
    assert parse_frames([payload]).uids == ["a"] and judge_frames([payload]).uids == []


def test_without_its_bound_an_integer_past_64_bits_would_be_a_uid(monkeypatch):
    payload = b'{"ts":1,"uid":18446744073709551616}'
    assert_same([payload])
    monkeypatch.setattr(frames, "_LARGEST_INTEGER", 1 << 70)
    assert parse_frames([payload]).uids == ["18446744073709551616"] and judge_frames([payload]).uids == []


@pytest.fixture
def seen_by_the_judge(monkeypatch):
    """Places of the payloads that the extractor left to the judge."""
    seen = []
    judge = frames._verdict
    monkeypatch.setattr(frames, "_verdict", lambda i, *rest: seen.append(i) or judge(i, *rest))
    return seen


def test_ordinary_traffic_is_read_by_the_extractor_alone(seen_by_the_judge):
    for small in (False, True):
        parse_frames(Traffic(TrafficProfile(small=small, bad_share=0, flip_share=0)).between(1.7e9, 1.7e9 + 5))
    assert seen_by_the_judge == []


def test_an_odd_payload_sends_only_itself_to_the_judge(seen_by_the_judge):
    payloads = [b'{"ts":%d,"uid":"%d","x":"\xc3\xa9"}' % (i, i) for i in range(1000)]
    payloads[3] = b'{"ts":1,"uid":"a","x":"\xff"}'
    payloads[500] = b'{"ts":1,"uid":"a","x":-1.25E+400}'
    payloads[777] = None
    payloads[999] = b'{"ts":1,"uid":"a","x":%s}' % (b"9" * 400)
    assert_same(payloads)
    del seen_by_the_judge[:]
    parse_frames(payloads)
    assert seen_by_the_judge == [3, 500, 777, 999]


def test_half_a_character_in_each_of_two_payloads_is_not_a_character():
    assert_same([b'{"ts":1,"uid":"a","x":"\xc3', b'\xa9"}', b'{"ts":1,"uid":"a"}'])


@pytest.mark.parametrize("block_bytes", [1, 20, 64, 300])
def test_the_verdict_does_not_depend_on_the_block(block_bytes, monkeypatch):
    monkeypatch.setattr(extract, "BLOCK_BYTES", block_bytes)
    assert_same([payload for payload in HOSTILE if payload is None or len(payload) < 2000])


def test_no_payloads_and_a_payload_larger_than_a_block():
    assert_same([])
    assert_same([b'{"ts":1,"uid":"a","x":"' + b"y" * extract.BLOCK_BYTES + b'"}', b'{"ts":2,"uid":"b"}'])


@pytest.mark.parametrize("at", range(70))
def test_a_large_exponent_and_a_long_run_are_found_wherever_they_stand(at):
    space = b" " * at
    assert extract.trusted([space + b"[3.5e308]"]) == [extract.DECLINED]
    assert extract.trusted([b'{"x":' + space + b"7" * 200 + b"}"]) == [extract.DECLINED]
    assert extract.trusted([b"{}", space + b"[-3.5E+308]", b"{}"])[1] == extract.DECLINED
    assert extract.trusted([b"[" + b"1" * (at + 1) + b"e308]"]) == [extract.DECLINED]


def test_arrow_and_python_agree_on_what_utf8_is():
    edges = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF]
    edges += [0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF]
    for lead in edges:
        for second in edges:
            for rest in (b"", b"\x80", b"\xbf\x80", b"\x80\xbf\x80", b"a", b"\x80\xc0", b"aaaaaaaaa"):
                for before in (b"", b"aaaaaaa", b"\xc3\xa9"):
                    text = before + bytes([lead, second]) + rest
                    assert extract._is_utf8(text) == _decodes(text), text


def _decodes(text):
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


SPACE = st.sampled_from(["", "", "", " ", "\n\t", "\r\n", "\x0b", "\u00a0"])
SHAPES = st.builds(
    lambda sign, whole, fraction, exponent: f"{sign}{whole}{fraction}{exponent}",
    st.sampled_from(["", "", "-"]),
    st.integers(0, 10**24),
    st.just("") | st.integers(0, 10**24).map(lambda digits: f".{digits:03}"),
    st.just("")
    | st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 2000)),
)
BAD_SHAPES = st.sampled_from([value.decode("latin-1") for value in NUMBERS])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
ESCAPES = st.text(st.sampled_from(list('\\udD8cC0129abef"/nx')), max_size=10).map(lambda text: f'"{text}"')
STRINGS = st.builds(json.dumps, TEXT) | st.builds(lambda text: json.dumps(text, ensure_ascii=False), TEXT) | ESCAPES
WORDS = st.sampled_from(["null", "true", "false", "NaN", '"1767225600"', '"0e1"', "[]", "{}"])
SCALARS = st.integers().map(str) | SHAPES | BAD_SHAPES | STRINGS | WORDS
NAMES = (
    st.sampled_from(
        ['"ts"', '"uid"', '"x"', '"x"', r'"\u0078"', '""', r'"\u0075id"', r'"t\u0073"', '"TS"', '"ts\\u0000"']
    )
    | STRINGS
)


def objects(values):
    return st.lists(st.tuples(NAMES, SPACE, values), max_size=4).map(
        lambda members: "{" + ",".join(f"{name}{space}:{value}" for name, space, value in members) + "}"
    )


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]") | objects(inner),
    max_leaves=8,
)
GOOD_TS = st.integers(0, LATEST_EVENT_S + 1).map(str) | st.floats(0, 4e9).map(repr) | SHAPES | SHAPES.map(json.dumps)
GOOD_UIDS = STRINGS | st.integers(-(2**64), 2**65).map(str)


@st.composite
def frame_texts(draw):
    """A frame's text: the root's own ts and uid among anything, sometimes more than once."""
    members = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    members += [('"ts"', ts) for ts in draw(st.lists(GOOD_TS, min_size=1, max_size=2))]
    members += [('"uid"', uid) for uid in draw(st.lists(GOOD_UIDS, min_size=1, max_size=2))]
    space = draw(SPACE)
    return space + "{" + ",".join(f"{name}{space}:{value}" for name, value in draw(st.permutations(members))) + "}"


@settings(max_examples=100, deadline=None)
@given(st.lists(frame_texts(), min_size=1, max_size=3), st.sampled_from(TsUnit))
def test_generated_frames_get_the_judges_verdict(texts, unit):
    assert_same([text.encode() for text in texts], unit)


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000))
def test_a_float_next_to_a_whole_second_is_floored_as_the_judge_floors_it(second):
    texts = [f"{second}.{digits}" for digits in ("9" * 7, "9" * 15, "9" * 16, "9" * 25, "0" * 20 + "1")]
    texts += [
        f"{second}e0",
        f"{second}.5E-0",
        f"{second}0000000000000000000000000e-25",
        f"0.{second}e{len(str(second))}",
    ]
    assert_same([b'{"ts":%s,"uid":"a"}' % text.encode() for text in texts])


SEEDS = [
    *Traffic(TrafficProfile(small=True, bad_share=0)).between(1.7e9, 1.7e9 + 0.1),
    *Traffic(TrafficProfile(bad_share=0)).between(1.7e9, 1.7e9 + 0.1),
    *(payload for payload in HOSTILE if type(payload) is bytes and len(payload) < 3000),
]
PIECES = st.binary(min_size=1, max_size=3) | st.sampled_from(
    [value for value in NUMBERS + TEXTS + OTHERS if 0 < len(value) < 3000]
    + [b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b'"ts":', b'"uid":', b'"x":1e400,', b'"x":"\xff",']
)


@st.composite
def mutants(draw):
    """A frame with some bytes flipped, inserted, deleted, cut off, or with another frame behind it."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "insert", "insert", "delete", "truncate", "concatenate"]))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[place:place] = draw(PIECES)
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 8))]
        elif kind == "truncate":
            del data[place:]
        elif kind == "concatenate":
            data += draw(st.sampled_from(SEEDS))
    return bytes(data)


@settings(max_examples=200, deadline=None)
@given(st.lists(mutants(), min_size=1, max_size=4), st.sampled_from(TsUnit))
def test_mutated_frames_get_the_judges_verdict(payloads, unit):
    assert_same(payloads, unit)


@settings(max_examples=50, deadline=None)
@given(frame_texts())
def test_what_the_extractor_takes_the_judge_takes(text):
    (payload,) = extract.trusted([text.encode()])
    try:
        root = extract.decode(payload)
    except Exception:
        return
    assert [reject.reason for reject in judge_frames([payload]).rejects if reject.reason.startswith("invalid")] == []
    assert {type(root.ts), type(root.uid)} <= {int, float, str}
