"""Fuzzes the extractor and the judge of frames against each other: the same bytes, the same verdict and values.

    python bench/fuzz_frames.py [--minutes 5] [--seed 1] [--plain]

Where atheris can be imported (it is no dependency: put it into a virtual environment of its own) its coverage guides
the mutation. It sees the Python of `frames` and `extract`, not what msgspec and orjson are compiled from. Otherwise,
or with --plain, frames of the demo's traffic and the tokens below are mutated and spliced, in batches, which tries
many more inputs.

Prints inputs tried, inputs/s, the accepted share, the share the extractor decided by itself, and deviations. Exits
with 1 and the payload's repr if there is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[1]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\t", b"\n", b"\r", b"\0", b"\x0b", b"\x1f", b"\x7f"),
    *(b'"ts":', b'"uid":', rb'"\u0075id":', rb'"t\u0073":', b'"ts\\u0000":', b'"":', b'"x":', b'"TS":', b'"uid"'),
    *(b'"ts":1,', b'"uid":"a",', b'"uid":42,', b'"ts":null,', b'"x":{"ts":2,"uid":"no"},', b',"ts":"7"', b'"ts":1.5,'),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"nul", b"0", b"-0", b"-0.0", b"00", b"1.", b".5", b"+1", b"--"),
    *(b"e", b"E+", b"e-", b"1e400", b"1E+400", b"1e308", b"1.8e308", b"1e-400", b"0e999", b"e0000308", b"9e99"),
    *(
        b"9" * 19,
        b"1" * 40,
        b"9" * 199,
        b"9" * 200,
        b"9" * 308,
        b"1" * 310,
        b"0" * 300,
        b"9" * 5000,
        b"0." + b"0" * 400,
    ),
    *(b"18446744073709551615", b"18446744073709551616", b"9223372036854775808", b"-9223372036854775809"),
    *(
        b"1767225600",
        b"1767225600.9999999999",
        b'"1767225600"',
        b"253370678399",
        b"253370678400",
        b"4294967295.99999999",
    ),
    *(
        rb"\ud800",
        rb"\udc00",
        rb"\ud83d\ude00",
        rb"\u0000",
        rb"\u12",
        rb"\x41",
        rb"\n",
        rb"\/",
        rb"\"",
        rb"\uD83D\u0041",
    ),
    *(b"\xff", b"\xc3", b"\xa9", b"\xc3\xa9", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80"),
    *(
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"[" * 998,
        b"[" * 1022,
        b"[" * 1030,
        b"]" * 1022,
        b'{"a":' * 1000,
        b"}" * 1000,
    ),
    *(b"/**/", b"//", b"'", b'{"ts":1,"uid":"a"}', b'{"ts":1,"uid":"a","x":1e309}', b'{"ts":1,"uid":"a","x":"\xff"}'),
]
TOKENS += [b"[" * depth + b"]" * depth for depth in (900, 1000, 1022, 1023, 1024, 1100, 4000)]
TOKENS += [b'{"a":' * depth + b"1" + b"}" * depth for depth in (998, 1023, 1024, 2000)]
# Root keys that are read beside ts and uid, in turn: none, what most mutations touch, and one that msgspec refuses.
DIMENSIONS = [(), ("x",), ("TS", "x", "y"), ('"', "x")]
BATCH = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris, even where it can be imported")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    sys.setrecursionlimit(20_000)  # or msgspec's depth would end before the judge's, and nothing be tried of that guard
    try:
        if options.plain:
            raise ImportError
        import atheris
    except ImportError:
        fuzz = Fuzz(options)
        while not fuzz.over():
            fuzz.hold([fuzz.mutant() for _ in range(BATCH)])
        return fuzz.report("own mutation")
    with atheris.instrument_imports(include=["uniq_pipeline.frames", "uniq_pipeline.extract"]):
        import uniq_pipeline.frames  # noqa: F401  so that its branches are counted
    fuzz = Fuzz(options)

    def one_input(data: bytes) -> None:
        fuzz.hold([data, b'{"ts":1,"uid":"a","x":' + data + b"}"])
        if fuzz.over():  # libFuzzer's own end would leave no time for a report
            code = fuzz.report("atheris")
            fuzz.before_the_end()
            sys.stdout.flush()
            os._exit(code)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, max_size)
        fuzz.rng.seed(seed)
        return fuzz.mutated(data if data.strip() else fuzz.rng.choice(fuzz.corpus))[:max_size]

    arguments = [sys.argv[0], f"-seed={options.seed}", "-max_len=8192", "-verbosity=0", "-rss_limit_mb=0"]
    with tempfile.TemporaryDirectory() as seeds:
        for i, payload in enumerate(fuzz.corpus):
            Path(seeds, str(i)).write_bytes(payload)
        atheris.Setup([*arguments, seeds], one_input, custom_mutator=mutate)
        fuzz.before_the_end = lambda: shutil.rmtree(seeds, ignore_errors=True)
        atheris.Fuzz()
    return 0  # not reached: one_input ends the process


class Fuzz:
    """The corpus, what was tried and what deviated."""

    def __init__(self, options: argparse.Namespace) -> None:
        from uniq_pipeline import extract, frames
        from uniq_pipeline.config import TsUnit
        from uniq_pipeline.demo.traffic import Traffic, TrafficProfile

        self._parse, self._judge, self._extract, self._units = (
            frames.parse_frames,
            frames.judge_frames,
            extract,
            [*TsUnit],
        )
        self.rng = Random(options.seed)
        self.corpus = [
            payload
            for small in (False, True)
            for payload in Traffic(TrafficProfile(frames_per_s=300, small=small, bad_share=0.05)).between(
                1.7e9, 1.7e9 + 1
            )
        ]
        self._started = time.monotonic()
        self._end = self._started + options.minutes * 60
        self._tried = self._accepted = self._extracted = self._of_extracted = 0
        self._deviations: list[str] = []
        self.before_the_end = lambda: None

    def over(self) -> bool:
        return bool(self._deviations) or time.monotonic() >= self._end

    def mutant(self) -> bytes:
        """A payload of the corpus, changed."""
        return self.mutated(self.rng.choice(self.corpus))

    def mutated(self, payload: bytes) -> bytes:
        rng, data = self.rng, bytearray(payload)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
            if rng.random() < 0.4:  # a member more, well-formed but for the token: most of these are still frames
                value = rng.choice((b"%s", b"[%s]", b'"%s"', b'{"y":%s}')) % rng.choice(TOKENS)
                at = data.find(b"{", rng.randrange(len(data) + 1)) + 1 or data.find(b"{") + 1
                data[at:at] = rng.choice((b'"x":', b'"x" : ', b'"ts":', b'"uid":')) + value + b","
                continue
            # Between tokens more often than anywhere: what keeps a frame a frame reaches further into both parsers.
            places = [i for i in (rng.randrange(len(data) + 1) for _ in range(12)) if data[i : i + 1] in b',:[]{}"']
            i = rng.choice(places) if places and rng.random() < 0.6 else rng.randrange(len(data) + 1)
            j = min(len(data), i + rng.choice((1, 1, 2, 8, 64, 512)))
            kind = rng.randrange(8)
            if kind == 0 and i < len(data):
                data[i] ^= 1 << rng.randrange(8)
            elif kind == 1 and i < len(data):
                data[i] = rng.randrange(256)
            elif kind == 2:
                del data[i:j]
            elif kind == 3 and rng.random() < 0.2:
                del data[i:]
            elif kind == 4:
                other = rng.choice(self.corpus)
                k = rng.randrange(len(other) + 1)
                data[i:i] = other[k : k + rng.choice((1, 4, 32, 4096))]
            elif kind == 5:
                data[i:i] = data[i:j] * rng.choice((1, 2, 40))
            elif kind == 6:
                data[i:j] = rng.choice(TOKENS)
            else:
                data[i:i] = rng.choice(TOKENS)
        return bytes(data[:200_000])

    def hold(self, payloads: list[bytes]) -> None:
        """Tries them together; what deviates is looked for alone, too."""
        turn = self._tried // len(payloads)
        how = self._units[turn % len(self._units)], DIMENSIONS[turn // len(self._units) % len(DIMENSIONS)]
        extracted, judged = self._parse(payloads, *how), self._judge(payloads, *how)
        self._tried += len(payloads)
        self._accepted += len(judged.index)
        for i in judged.index.tolist():
            # Mutated again is what the extractor read: else what it leaves to the judge takes over the corpus.
            if len(payloads[i]) < 10_000 and self.rng.random() < 0.1:
                (payload,) = self._extract.trusted([payloads[i]])
                if self._decoded(payload):
                    self.corpus[self.rng.randrange(len(self.corpus))] = payload
        if self._tried % (50 * len(payloads)) == 0:  # a sample, as it costs as much again
            self._of_extracted += len(payloads)
            self._extracted += sum(self._decoded(payload) for payload in self._extract.trusted(payloads))
        if _columns(extracted) == _columns(judged):
            return
        alone = [p for p in payloads if _columns(self._parse([p], *how)) != _columns(self._judge([p], *how))]
        self._deviations += [f"{how}: {payload!r}" for payload in alone] or [f"{how}, only together: {payloads!r}"]

    def _decoded(self, payload: bytes) -> bool:
        try:
            self._extract.decode(payload)
        except Exception:
            return False
        return True

    def report(self, how: str) -> int:
        seconds = time.monotonic() - self._started
        print(
            f"{how}: {self._tried:,} inputs in {seconds:.0f} s, {self._tried / seconds:,.0f}/s; "
            f"accepted {self._accepted / max(1, self._tried):.1%}, "
            f"read by the extractor {self._extracted / max(1, self._of_extracted):.1%}; "
            f"deviations {len(self._deviations)}"
        )
        for deviation in self._deviations[:20]:
            print(deviation)
        return 1 if self._deviations else 0


def _columns(parsed) -> tuple:
    return parsed.index.tolist(), parsed.event_s.tolist(), parsed.uids, parsed.values, parsed.rejects


if __name__ == "__main__":
    sys.exit(main())
