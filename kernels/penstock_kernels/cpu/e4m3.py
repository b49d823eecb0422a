"""Floats of 8 bits in registers: e4m3, a sign, four bits of exponent, three behind the point.

    code    s eeee mmm    2^(e - 7) * 1.mmm; where e is 0, 2^-6 * 0.mmm; s1111111 is NaN

All of them are bfloat16 numbers too. The two bytes of each of the 128 magnitudes come out of tables that registers hold
whole.
"""

import struct
from collections.abc import Sequence

from llvmlite import ir

from penstock_kernels.cpu.emit import Emitter
from penstock_kernels.cpu.kinds import BYTES, CODES, PAIRS, Value

LARGEST = 448.0
BIAS = 127 - 7  # between the exponents
BEHIND = 3  # bits behind the point
LEAST_NORMAL, STEP_BELOW = 2.0**-6, 2.0**-9
F32_SHIFT = 23 - BEHIND
MAGNITUDES = 128


def _bf16_bits(code: int) -> int:
    exponent, fraction = divmod(code, 1 << BEHIND)
    number = (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * STEP_BELOW
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    return bits >> 16


LOWER = tuple(_bf16_bits(code) & 0xFF for code in range(MAGNITUDES))
UPPER = tuple(_bf16_bits(code) >> 8 for code in range(MAGNITUDES))


def decode(e: Emitter, codes: Value, *places: Sequence[int]) -> list[Value]:
    """Of 64 codes those at each 32 `places`, as bfloat16."""
    lower, upper = (e.looked_up(_table(half[:BYTES]), _table(half[BYTES:]), codes) for half in (LOWER, UPPER))
    signed = e.joined(upper, e.only(codes, 0x80))
    return [
        e.as_kind(e.merged(lower, signed, [at for place in each for at in (place, BYTES + place)]), PAIRS)
        for each in places
    ]


def _table(entries: Sequence[int]) -> Value:
    return ir.Constant(CODES, list(entries))


def round_to(e: Emitter, floats: Value) -> Value:
    """Floats of magnitudes up to 448 to the nearest e4m3, ties to even; still as floats."""
    bits = e.as_integer(floats)
    odd = e.only(e.right(bits, F32_SHIFT), 1)
    half = e.plus(odd, e.splat_int((1 << (F32_SHIFT - 1)) - 1))
    normal = e.as_float(e.only(e.plus(bits, half), -1 << F32_SHIFT))
    small = e.times(e.round(e.times(floats, e.splat(1 / STEP_BELOW))), e.splat(STEP_BELOW))
    return e.choose(e.is_below(e.magnitude(floats), e.splat(LEAST_NORMAL)), small, normal)


def code_of(e: Emitter, rounded: Value) -> Value:
    """The codes, 0 to 255 in 32 bits, of what `round_to` gives."""
    bits, magnitude = e.as_integer(rounded), e.magnitude(rounded)
    normal = e.minus(e.right(e.as_integer(magnitude), F32_SHIFT), e.splat_int(BIAS << BEHIND))
    small = e.truncated(e.times(magnitude, e.splat(1 / STEP_BELOW)))
    found = e.choose(e.is_below(magnitude, e.splat(LEAST_NORMAL)), small, normal)
    return e.joined(found, e.only(e.right(bits, 24), 0x80))
