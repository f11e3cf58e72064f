"""Texts of the demo's frames: templates shaped like web logs, with slots for ts and uid."""

import json
import re
from random import Random
from typing import Any, NamedTuple

TS_FORMS = ("integer",) * 14 + ("float",) * 3 + ("string",) * 3  # 70 / 15 / 15 percent
UID_KEYS = ('"uid"',) * 18 + (r'"\u0075id"', r'"u\u0069d"')
TS_KEYS = ('"ts"',) * 19 + (r'"t\u0073"',)
WORDS = (
    "basket blue börse café checkout crème discount délai fjord garden größe iPhone kettle lamp naïve "
    "piñata rug shoe sofa straße tea win-back Ελλάδα Москва 東京 サイズ 한국 עברית 🛒 🎉 👩‍💻 a/b "
    'C:\\tmp 100% {brace} [bracket] "quoted" \x7f'
).split()
PLACES = ("zürich", "london", "são-paulo", "münchen", "kraków", "東京", "new-york", "القاهرة")
DEVICES = ("X11; Linux x86_64", "iPhone; CPU iPhone OS 19_0", "Windows NT 10.0; Win64; x64", "Android 16")


class Template(NamedTuple):
    """A frame around two slots: whole seconds and uid, in the order `ts_first` says."""

    head: bytes
    middle: bytes
    tail: bytes
    ts_first: bool


def _slots(rng: Random, form: str, leave_out: str, ts_key: str = '"ts"', uid_key: str = '"uid"') -> list[str]:
    """The root's ts and uid members, with `@ts@` and `@uid@` where whole seconds and uid go."""
    values = {"integer": "@ts@", "float": f"@ts@.{rng.randrange(1000):03d}", "string": '"@ts@"'}
    ts = f"{ts_key}:{'null' if leave_out == 'ts' else values[form]}"
    return [ts] if leave_out == "uid" else [ts, f'{uid_key}:"@uid@"']


def _template(members: list[str]) -> Template:
    """Cuts a frame's text at its slots; with one of them left out, `middle` is empty."""
    text = "{" + ",".join(members) + "}"
    pieces = [piece.encode() for piece in re.split("@ts@|@uid@", text)]
    middle = pieces[1] if len(pieces) == 3 else b""
    return Template(pieces[0], middle, pieces[-1], "@uid@" not in text.partition("@ts@")[0])


def small_template(rng: Random, form: str, leave_out: str) -> Template:
    slots = _slots(rng, form, leave_out)
    return _template(slots if rng.random() < 0.5 else slots[::-1])


def full_template(rng: Random, form: str, leave_out: str) -> Template:
    members = [_member(rng, key, value) for key, value in _fields(rng).items()]
    # Repeated keys other than ts and uid are bad manners but legal, and do occur.
    members += [_member(rng, "tags", [rng.choice(WORDS)]) for _ in range(rng.randrange(3))]
    missing = rng.randrange(1_700, 2_300) - sum(len(member.encode()) + 1 for member in members)
    members.append(_member(rng, "note", _text(rng, missing - 70), plain=True))
    rng.shuffle(members)
    for slot in _slots(rng, form, leave_out, rng.choice(TS_KEYS), rng.choice(UID_KEYS)):
        members.insert(rng.randrange(len(members) + 1), slot)
    return _template(members)


def _member(rng: Random, key: str, value: Any, plain: bool = False) -> str:
    separators = rng.choice([(",", ":"), (", ", ": ")])
    text = json.dumps(value, ensure_ascii=not plain and rng.random() < 0.5, separators=separators)
    return f"{json.dumps(key)}{separators[1]}{text}"


def _text(rng: Random, length: int) -> str:
    text = ""
    while len(text.encode()) < length:
        text += rng.choice(WORDS) + " "
    return text


def _fields(rng: Random) -> dict[str, Any]:
    """A web log's other root members, with ts and uid at every place that is not the root."""
    decoy = {"ts": rng.randrange(2**31), "uid": f"{rng.getrandbits(64):016x}"}
    path = f"/{rng.choice(PLACES)}/{rng.choice(WORDS)}?q={rng.choice(WORDS)}&page={rng.randrange(90)}"
    nested: Any = [decoy, None, []]
    for depth in range(rng.randrange(3, 9)):
        nested = {f"level{depth}": nested, "ts": depth}
    fields = {
        "event": rng.choice(["page_view", "click", "search", "add_to_cart", "purchase", "video_progress"]),
        "url": f"https://shop.example.com{path}",
        "referrer": rng.choice([None, 'https://search.example.org/?q="ts":1,"uid":"x"', ""]),
        "user_agent": f"Mozilla/5.0 ({rng.choice(DEVICES)}) Gecko/20100101 Firefox/{rng.randrange(99, 160)}",
        "ip": f"203.0.113.{rng.randrange(256)}",
        "geo": {"city": rng.choice(PLACES), "lat": rng.uniform(-90, 90), "lon": rng.uniform(-180, 180)},
        "device": {"type": rng.choice(["phone", "tablet", "desktop"]), "uid": decoy["uid"], "touch": True},
        "session": {"id": f"{rng.getrandbits(96):024x}", "started": decoy, "referred": False, "ts": None},
        "raw": json.dumps({**decoy, "line": 'said "hi"\n\tC:\\logs'}),
        "items": [
            {"sku": f"{rng.choice(WORDS)}-{n}", "price": rng.randrange(9_999) / 100, "qty": n, **decoy}
            for n in range(1, rng.randrange(2, 5))
        ],
        "tags": rng.sample(WORDS, 3),
        "perf": {"ttfb_ms": rng.random() * 1e3, "cls": rng.random() / 1e7, "errors": 0, "drift": -1.5e-9},
        "ab_tests": {rng.choice(WORDS): rng.choice([True, False, None]) for _ in range(3)},
        "trace": nested,
        "ts_ms": rng.randrange(10**13),
        "UID": "not the user",
        "consent": rng.random() < 0.9,
    }
    optional = ["referrer", "ip", "perf", "ab_tests", "ts_ms", "UID", "consent", "geo"]
    for key in rng.sample(optional, rng.randrange(4)):
        del fields[key]
    return fields
