"""Types of the vector code: see `emit`."""

from typing import Any, TypeAlias

from llvmlite import ir

LANES = 16
BYTES = 64  # of a vector

Value: TypeAlias = Any  # an instruction's answer: llvmlite ships no types


class _BFloat(ir.Type):  # llvmlite names every float type but this one
    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


I8, I16, INT32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
F32 = ir.VectorType(FLOAT, LANES)
F16 = ir.VectorType(HALF, LANES)
I32 = ir.VectorType(INT32, LANES)
HALVES = ir.VectorType(I16, LANES)
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
BF16 = ir.VectorType(_BFloat(), LANES)
OCTETS = ir.VectorType(I8, LANES)
CODES = ir.VectorType(I8, BYTES)
MASK = ir.VectorType(ir.IntType(1), LANES)
