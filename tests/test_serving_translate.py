"""The fast engine's own compiler against Python: the same text, run and compiled."""

import ctypes
import math
import struct
import textwrap

import numpy as np
import pytest

from lengthwise.errors import InvariantError
from lengthwise.serving.fast.compiler import cache
from lengthwise.serving.fast.compiler.native import compile_text
from lengthwise.serving.fast.compiler.translate import translate

WORDS = {
    "np": np, "ceil": math.ceil, "floor": math.floor, "rint": round,
    "float_of": lambda bits: struct.unpack("<d", struct.pack("<q", bits))[0],
    "bits_of": lambda value: struct.unpack("<q", struct.pack("<d", value))[0],
    "kernel": lambda f: f, "hot": lambda f: f, "ON": True, "OFF": False, "TEN": 10,
}  # fmt: skip

PROGRAMS = {
    "floor": "return x // 7 * 1000 + x % 7 + (x // -5) * 10 + x % -5",
    "bits": "return (x >> 2) + (x << 3) + (x & 12) + (x | 3) + (x ^ 5)",
    "truth": "return 1 if (x > 3 and x < 9) or not (x != -4 or x == 2) else 0",
    "shortcut": "return 5 if x != 0 and 100 // x > 9 else 6",
    "chain": "return (0 < x <= 5) + 10 * (-5 <= x < 0 < 1)",
    "floats": "y = x / 3 + TEN\nreturn ceil(y) + 7 * rint(y * 2.5) + ceil(-y)",
    "extremes": "return min(x, 4) + 100 * max(x, -2, 1) + ceil(max(0.5, x / 2))",
    "kept": (
        "a, b = x, x + 1\na, b = b, a\nc = d = a - b\nc += 2\nc -= b\n"
        "return a * 100 + c * 10 + d"
    ),
    "loops": (
        "total = 0\nfor i in range(20):\n    if i == x:\n        continue\n    if i > x + 8:\n"
        "        break\n    for j in range(i, 5):\n        total += j\n    total += i\nreturn total"
    ),
    "while": (
        "n = abs_of(x) + 1\nsteps = 0\nwhile True:\n    if n == 1 or steps > 90:\n        break\n"
        "    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    steps += 1\nreturn steps"
    ),
    "constants": (
        "if OFF and missing(x):\n    return 1\nif ON or missing(x):\n    x += TEN\n"
        "if not OFF:\n    x *= 2\nelse:\n    missing(x)\nreturn x if TEN == 10 else missing(x)"
    ),
    "calls": "noted = is_small(x, 6)\nif noted:\n    return half(x) + 1\nreturn half(x - 1)",
    "unsigned": (
        "y = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)\nreturn np.int64(y)"
    ),
    "patterns": "return x + 0x7FFFFFFFFFFFFFFF - 0x7FFFFFFFFFFFFFF0",
    "nan": (
        "y = float_of(0x7FF8000000000000)\nz = x / 4\n"
        "return (1 if y == y else 0) + (2 if y != y else 0) + (4 if y < z else 0)"
        " + (8 if y >= z else 0) + (16 if y else 0) + (32 if not y else 0) + (64 if z else 0)"
        " + (128 if z == 0 else 0) + (256 if z <= 1 else 0) + (512 if z > 1 else 0)"
    ),
    "words": "return bits_of(x / 4) + bits_of(-(x / 3)) // 3 - rint(8 * float_of(bits_of(x / 8)))",
    "folded": (
        "return x * (TEN > 9) + (TEN >= 11) * 1000 + (TEN // 3) * 10000 + (TEN % 4) * 7 + (TEN - 3)"
        " + (-TEN) + (not TEN) + (TEN / 4 == 2.5) * 77 + (TEN != 10) * 5 + (TEN < 10 or OFF) * 3"
        " + (TEN <= 10 and ON) * 11 + (TEN << 2) + (TEN == 10)"
    ),
    "choice": (
        "y = 2 if ON else missing(x)\nz = missing(x) if OFF else 3\nw = x / 2 if x > 0 else x\n"
        "return y * 100 + z * 10 + rint(w * 4)"
    ),
    "ranges": (
        "total = 0\nfor i in range(x, 5):\n    total += i + 1\nfor i in range(x):\n"
        "    for j in range(i - 2, i):\n        if j == 3:\n            break\n"
        "        total += 2 * j\n    if i > 9:\n        break\nreturn total"
    ),
    "bools": "a = x > 3\nb = x < 9\nreturn (a & b) * 10 + (a - b) + (a == b) * 100 + (a | b) * 7",
    "least": (
        "return ceil(min(x / 2, 3.0) * 4) + rint(max(x / 2, x, 1) * 4) * 100 + min(x, 7, -x)"
        " + floor(x / 3) * 10 + floor(-x / 7)"
    ),
    "turns": (
        "n = 0\nwhile OFF:\n    n += 100\nwhile n < x and n < 7:\n    n += 1\n    if n == 2:\n"
        "        continue\n    if n == 5:\n        break\nreturn n"
    ),
    "sums": "y = 1.5\ny += x\ny *= 2\ny -= 0.5\nz: float = -y\nreturn rint(y / 3) + rint(z)",
    "unsigned words": (
        "y = np.uint64(0xFFFFFFFFFFFFFFF0)\nz = np.uint64(x)\n"
        "return (1 if y > z else 0) + rint(np.float64(y) / 1e16) + np.int64(y % np.uint64(7))"
        " + (10000 if z <= np.uint64(5) else 0) + np.int64(z ^ np.uint64(9)) * 3"
        " + np.int64((y - z) >> np.uint64(60)) + np.int64((z | np.uint64(1)) & np.uint64(13))"
    ),
    "both": (
        "y = 0.0\nif x > 2 and (ON or x > 9):\n    y = x * 1.5\n"
        "return rint(y * 10) if y > 4 else -1"
    ),
}  # fmt: skip
HELPERS = """
@hot
def half(n) -> int:
    return n // 2

@kernel
def is_small(n, limit) -> bool:
    if n < 0:
        return is_small(-n, limit) if n < -100 else -n < limit
    return n < limit

@kernel
def abs_of(n) -> int:
    return -n if n < 0 else n
"""


def text_of(body):
    return f"{HELPERS}\n@kernel\ndef entry(x) -> int:\n{textwrap.indent(body, '    ')}\n"


def compiled(body, stem, monkeypatch):
    monkeypatch.setattr(cache, "write", lambda *_: None)
    constants = {name: WORDS[name] for name in ("ON", "OFF", "TEN")}
    stem = stem.replace(" ", "_")
    module = translate(text_of(body), ("entry",), constants, stem)
    address = compile_text(stem, str(module), ("entry",))["entry"]
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_compiled_does_what_python_does(name, monkeypatch):
    known = dict(WORDS)
    exec(text_of(PROGRAMS[name]), known)
    machine = compiled(PROGRAMS[name], name, monkeypatch)
    with np.errstate(over="ignore"):
        for x in [*range(0 if name.startswith("unsigned") else -20, 40), 2**40 + 1]:
            assert machine(x) == int(known["entry"](x)), x


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return [x][0]", r"entry: '\[x\]' is no expression that it may use"),
        ("return missing(x)", r"'missing\(x\)' calls what is not there"),
        ("y = 1\ny = 0.5\nreturn y", "'y' makes int of float"),
        ("return 1 if x > 0 else 0.5", "makes int of float"),
        ("with x:\n    pass\nreturn x", "is no statement that it may use"),
        ("for i in x:\n    pass\nreturn x", "goes through what is no range"),
        ("for i in range(0, x, 2):\n    pass\nreturn x", "steps"),
        ("x.y = 1\nreturn x", "is no place in memory"),
        ("return x[0]", "is no place in memory"),
        ("a, b = x\nreturn a", "takes apart what is no tuple"),
        ("return ~x", "is no operation that it may use"),
        ("return x / 2 % 2", "is no operation on float"),
        ("return x @ x", "is no operation on int"),
        ("return y", "'y' has no value here"),
        ("return np.uint64(x) + x", "mixes uint and int"),
        ("return half(n=x)", "names its arguments"),
    ],
)
def test_anything_else_is_refused_with_its_line(body, why):
    with pytest.raises(InvariantError, match=why):
        translate(text_of(body), ("entry",), {}, "refused")


def test_constants_from_2_to_the_63_on_are_bit_patterns(monkeypatch):
    for word in (2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1):
        body = f"return np.int64(np.uint64({word}) >> np.uint64(1)) + x"
        assert compiled(body, f"word_{word}", monkeypatch)(0) == word >> 1


def test_numbers_that_stand_in_the_text_are_known_and_what_returns_is_promised():
    text = "A, B = 3, -4\nC = A * 100 + B\n@kernel\ndef entry(x) -> int:\n    return C + A * x\n"
    module = translate(text, ("entry",), {}, "promised")
    address = compile_text("promised", str(module), ("entry",))["entry"]
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(5) == 296 + 15
    with pytest.raises(InvariantError, match="returns str"):
        translate("@kernel\ndef entry(x) -> str:\n    return x\n", ("entry",), {}, "w")
