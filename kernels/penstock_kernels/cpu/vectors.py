"""Arithmetic on vectors: what `emit` writes between loads and stores."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from penstock_kernels.cpu.kinds import (
    BF16,
    CODES,
    F16,
    F32,
    FLOAT,
    I16,
    I32,
    I64,
    INT32,
    LANES,
    OCTETS,
    PAIRS,
    Value,
)

LOG2_E = 1.44269504088896340736
LN_2_HIGH, LN_2_LOW = (
    0.693359375,
    -2.12194440e-4,
)  # their sum is ln 2; the first is short, so products with it are exact
# exp(r) on [-ln 2 / 2, ln 2 / 2], highest power first; relative error below 2e-7 (minimax, as in the Cephes library).
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
EXP_LOWEST, EXP_HIGHEST = -87.0, 88.0


class Vectors:
    """Writes instructions at the end of one block; every method answers the value that the instruction gives."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._b = builder

    def constant(self, value: int) -> Value:
        return ir.Constant(I64, value)

    def less(self, a: Value, b: Value | int) -> Value:
        return self._b.icmp_signed("<", a, self.constant(b) if isinstance(b, int) else b)

    def widen(self, halves: Value) -> Value:
        wide = self._b.zext(halves, I32)
        return self._b.bitcast(self._b.shl(wide, self.splat_int(16)), F32)

    def splat(self, number: float) -> Value:
        return ir.Constant(F32, [float(number)] * LANES)

    def splat_int(self, number: int) -> Value:
        return ir.Constant(I32, [number] * LANES)

    def roots(self, vector: Value) -> Value:
        return self._b.call(self._declare("llvm.sqrt.v16f32", F32, [F32]), [vector])

    def either(self, condition: Value, a: Value, b: Value) -> Value:
        """a where the one condition holds, else b; both are computed."""
        return self._b.select(condition, a, b)

    def first(self, vector: Value) -> Value:
        """Lane 0."""
        return self._b.extract_element(vector, ir.Constant(INT32, 0))

    def to_integer(self, number: Value) -> Value:
        return self._b.fptosi(number, INT32)

    def spread(self, number: Value) -> Value:
        """A float in every lane."""
        return self._spread(number, F32)

    def pairs(self, vector: Value) -> Value:
        """The same 64 bytes as pairs of bfloat16."""
        return self._b.bitcast(vector, PAIRS)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self._b.call(self._declare("llvm.fma.v16f32", F32, [F32, F32, F32]), [a, b, c])

    def dot_bf16(self, total: Value, a: Value, b: Value) -> Value:
        """In each lane, total + a0 * b0 + a1 * b1 over its pair."""
        dot = self._declare("llvm.x86.avx512bf16.dpbf16ps.512", F32, [F32, PAIRS, PAIRS])
        return self._b.call(dot, [total, a, b])

    def dot_u8s8(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """In each lane, total + the sum of four products of unsigned by signed 8-bit numbers; exact."""
        dot = self._declare("llvm.x86.avx512.vpdpbusd.512", I32, [I32, I32, I32])
        return self._b.call(dot, [total, unsigned, signed])

    def dot_s16(self, total: Value, a: Value, b: Value) -> Value:
        """In each lane, total + a0 * b0 + a1 * b1 of signed 16-bit numbers; exact."""
        dot = self._declare("llvm.x86.avx512.vpdpwssd.512", I32, [I32, I32, I32])
        return self._b.call(dot, [total, a, b])

    def plus(self, a: Value, b: Value) -> Value:
        return self._b.add(a, b) if _whole(a) else self._b.fadd(a, b)

    def negated(self, a: Value) -> Value:
        return self._b.fneg(a)

    def minus(self, a: Value, b: Value) -> Value:
        return self._b.sub(a, b) if _whole(a) else self._b.fsub(a, b)

    def times(self, a: Value, b: Value) -> Value:
        return self._b.fmul(a, b)

    def over(self, a: Value, b: Value) -> Value:
        return self._b.fdiv(a, b)

    def low_nibbles(self, vector: Value) -> Value:
        return self._b.and_(vector, self.splat_int(0x0F0F0F0F))

    def high_nibbles(self, vector: Value) -> Value:
        return self.low_nibbles(self._b.lshr(vector, self.splat_int(4)))

    def left(self, numbers: Value, bits: int) -> Value:
        """Whole numbers, shifted."""
        return self._b.shl(numbers, like(numbers, bits))

    def right(self, numbers: Value, bits: int) -> Value:
        return self._b.lshr(numbers, like(numbers, bits))

    def only(self, numbers: Value, bits: int) -> Value:
        """Those `bits` of whole numbers."""
        return self._b.and_(numbers, like(numbers, bits))

    def joined(self, a: Value, b: Value) -> Value:
        """All bits of both."""
        return self._b.or_(a, b)

    def is_below(self, a: Value, b: Value) -> Value:
        """The mask of the lanes in which a < b: floats, or whole numbers without a sign."""
        return self._b.icmp_unsigned("<", a, b) if _whole(a) else self._b.fcmp_ordered("<", a, b)

    def at_least(self, a: Value, b: Value) -> Value:
        """The mask of the lanes in which a >= b; of floats, so none where either is NaN."""
        return self._b.fcmp_ordered(">=", a, b)

    def both(self, a: Value, b: Value) -> Value:
        """The mask of the lanes that both have."""
        return self._b.and_(a, b)

    def count(self, mask: Value) -> Value:
        """How many lanes a mask has."""
        bits = self._b.bitcast(mask, I16)
        return self._b.zext(self._b.call(self._declare("llvm.ctpop.i16", I16, [I16]), [bits]), I64)

    def gathered(self, vector: Value, mask: Value) -> Value:
        """The lanes of `mask`, side by side from lane 0 on; zeros after them."""
        name = "v16i32" if _whole(vector) else "v16f32"
        kind = vector.type
        gather = self._declare(f"llvm.x86.avx512.mask.compress.{name}", kind, [kind, kind, mask.type])
        return self._b.call(gather, [vector, ir.Constant(kind, None), mask])

    def numbered(self, first: Value) -> Value:
        """Whole numbers of 32 bits from `first` on, one in each lane."""
        return self._b.add(self._spread(self._b.trunc(first, INT32), I32), ir.Constant(I32, list(range(LANES))))

    def looked_up(self, first: Value, second: Value, places: Value) -> Value:
        """In each of 64 bytes, the entry of a table of 128, `first` and `second`, that its lowest seven bits name."""
        permute = self._declare("llvm.x86.avx512.vpermi2var.qi.512", CODES, [CODES, CODES, CODES])
        return self._b.call(permute, [first, places, second])

    def merged(self, a: Value, b: Value, places: Sequence[int]) -> Value:
        """The elements at `places`, of which those of `b` come after those of `a`."""
        return self._b.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(places)), list(places)))

    def as_kind(self, vector: Value, kind: ir.Type) -> Value:
        """The same bits."""
        return self._b.bitcast(vector, kind)

    def unsigned(self, octets: Value) -> Value:
        """Bytes as 32-bit numbers from 0 to 255."""
        return self._b.zext(octets, I32)

    def signed(self, octets: Value) -> Value:
        """Bytes as 32-bit numbers from -128 to 127."""
        return self._b.sext(octets, I32)

    def as_integer(self, floats: Value) -> Value:
        """The same bits read as whole numbers."""
        return self._b.bitcast(floats, I32)

    def truncated(self, floats: Value) -> Value:
        """Whole numbers of floats that are."""
        return self._b.fptosi(floats, I32)

    def octets(self, numbers: Value) -> Value:
        """The low bytes of 32-bit numbers."""
        return self._b.trunc(numbers, OCTETS)

    def as_float(self, words: Value) -> Value:
        """The same bits read as floats."""
        return self._b.bitcast(words, F32)

    def to_float(self, integers: Value) -> Value:
        return self._b.sitofp(integers, F32)

    def to_bytes(self, floats: Value) -> Value:
        """The low bytes of whole numbers, sixteen of them."""
        return self.octets(self.truncated(floats))

    def to_bf16(self, floats: Value) -> Value:
        """Rounded to nearest even."""
        narrow = self._declare("llvm.x86.avx512bf16.cvtneps2bf16.512", BF16, [F32])
        return self._b.call(narrow, [floats])

    def to_f16(self, floats: Value) -> Value:
        """Rounded to nearest even; infinite beyond 65,504."""
        return self._b.fptrunc(floats, F16)

    def from_f16(self, halves: Value) -> Value:
        return self._b.fpext(halves, F32)

    def longer(self, half: Value) -> Value:
        """One number of 16 bits as a float."""
        return self._b.fpext(half, FLOAT)

    def greater(self, a: Value, b: Value) -> Value:
        """The greater of each lane."""
        return self._b.call(self._declare("llvm.maxnum.v16f32", F32, [F32, F32]), [a, b])

    def lesser(self, a: Value, b: Value) -> Value:
        return self._b.call(self._declare("llvm.minnum.v16f32", F32, [F32, F32]), [a, b])

    def magnitude(self, a: Value) -> Value:
        return self._b.call(self._declare("llvm.fabs.v16f32", F32, [F32]), [a])

    def round(self, a: Value) -> Value:
        """To the nearest whole number, ties to even."""
        return self._b.call(self._declare("llvm.rint.v16f32", F32, [F32]), [a])

    def below(self, count: Value, lanes: int = LANES) -> Value:
        """The mask of the lanes whose number is below `count`."""
        kind = ir.VectorType(INT32, lanes)
        clipped = self._b.select(self.less(count, lanes), count, self.constant(lanes))
        return self._b.icmp_signed(
            "<", ir.Constant(kind, list(range(lanes))), self._spread(self._b.trunc(clipped, INT32), kind)
        )

    def choose(self, mask: Value, a: Value, b: Value) -> Value:
        return self._b.select(mask, a, b)

    def total(self, vector: Value) -> Value:
        """The sum of all lanes, by halves: lane i with lane i + 8, then + 4, 2, 1."""
        return self._reduced(vector, self.plus)

    def greatest(self, vector: Value) -> Value:
        """The greatest of all lanes."""
        return self._reduced(vector, self.greater)

    def _reduced(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        for width in (8, 4, 2, 1):
            lanes = [(lane + width) % LANES for lane in range(LANES)]
            vector = combine(vector, self._b.shuffle_vector(vector, vector, ir.Constant(I32, lanes)))
        return self.first(vector)

    def totals(self, vectors: Sequence[Value]) -> Value:
        """The sums of sixteen vectors, one in each lane: halves are added while the sixteen merge into one."""
        vectors = list(vectors)
        width = LANES // 2
        while len(vectors) > 1:
            half = len(vectors) // 2
            merged = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [self._merge(a, b, width) for a, b in merged]
            width //= 2
        return vectors[0]

    def _merge(self, a: Value, b: Value, width: int) -> Value:
        """Runs of `width` lanes: from each pair of runs, the sum of a's two, then the sum of b's two."""
        first = [lane + (LANES if lane & width else 0) - (lane & width) for lane in range(LANES)]
        kept = self._b.shuffle_vector(a, b, ir.Constant(I32, first))
        other = self._b.shuffle_vector(a, b, ir.Constant(I32, [lane + width for lane in first]))
        return self.plus(kept, other)

    # Functions

    def exp(self, x: Value) -> Value:
        """e ** x with relative error below 3e-7; x is brought into [-87, 88], but NaN stays NaN."""
        unordered = self._b.fcmp_unordered("uno", x, x)
        given, x = x, self.lesser(self.greater(x, self.splat(EXP_LOWEST)), self.splat(EXP_HIGHEST))
        power = self.round(self.times(x, self.splat(LOG2_E)))
        rest = self.fma(power, self.splat(-LN_2_HIGH), x)
        rest = self.fma(power, self.splat(-LN_2_LOW), rest)
        value = self.splat(EXP_POLYNOMIAL[0])
        for coefficient in EXP_POLYNOMIAL[1:]:
            value = self.fma(value, rest, self.splat(coefficient))
        value = self.plus(self.fma(value, self.times(rest, rest), rest), self.splat(1.0))
        exponent = self._b.shl(self._b.fptosi(power, I32), self.splat_int(23))
        scaled = self._b.bitcast(self._b.add(self._b.bitcast(value, I32), exponent), F32)
        return self.choose(unordered, given, scaled)

    def sigmoid(self, x: Value) -> Value:
        one = self.splat(1.0)
        return self.over(one, self.plus(one, self.exp(self.negated(x))))

    def tanh(self, x: Value) -> Value:
        return self.fma(self.splat(2.0), self.sigmoid(self.plus(x, x)), self.splat(-1.0))

    def _spread(self, scalar: Value, kind: ir.VectorType) -> Value:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self._b.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self._b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, kind.count), [0] * kind.count))

    def _declare(self, name: str, gives: ir.Type, takes: list[ir.Type]) -> ir.Function:
        module = self._b.module
        known = module.globals.get(name)
        return known if known is not None else ir.Function(module, ir.FunctionType(gives, takes), name)


def like(numbers: Value, value: int) -> Value:
    """`value` in every lane of the type of `numbers`."""
    return ir.Constant(numbers.type, [value] * numbers.type.count)


def _whole(numbers: Value) -> bool:
    return isinstance(numbers.type.element, ir.IntType)
