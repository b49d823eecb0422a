"""Vector code of sixteen 32-bit lanes, written through numba: no compiler is needed where it runs.

A micro-kernel is a Python function that writes LLVM instructions with an `Emitter`; `micro_kernel` makes it callable
from compiled numba functions, which hold the loops and the threads around it. Addresses and counts are 64-bit
integers; a vector is sixteen floats (`F32`), sixteen integers (`I32`), or 64 bytes read as pairs of bfloat16 (`PAIRS`)
or as four 8-bit numbers in each lane (`I32` too).

Instructions used: AVX-512 F, BW, VL, with VNNI (8-bit dot products) and BF16 (bfloat16 dot products).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

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
FLOAT = ir.FloatType()
F32 = ir.VectorType(FLOAT, LANES)
F16 = ir.VectorType(ir.HalfType(), LANES)
I32 = ir.VectorType(INT32, LANES)
HALVES = ir.VectorType(I16, LANES)
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
BF16 = ir.VectorType(_BFloat(), LANES)
OCTETS = ir.VectorType(I8, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)

LOG2_E = 1.44269504088896340736
LN_2_HIGH, LN_2_LOW = (
    0.693359375,
    -2.12194440e-4,
)  # their sum is ln 2; the first is short, so products with it are exact
# exp(r) on [-ln 2 / 2, ln 2 / 2], highest power first; relative error below 2e-7 (minimax, as in the Cephes library).
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
EXP_LOWEST, EXP_HIGHEST = -87.0, 88.0


class Emitter:
    """Writes instructions at the end of one block; every method answers the value that the instruction gives."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._b = builder

    # Numbers and addresses

    def constant(self, value: int) -> Value:
        return ir.Constant(I64, value)

    def add(self, *terms: Value | int) -> Value:
        first, *rest = (self.constant(term) if isinstance(term, int) else term for term in terms)
        for term in rest:
            first = self._b.add(first, term)
        return first

    def mul(self, a: Value, b: Value | int) -> Value:
        return self._b.mul(a, self.constant(b) if isinstance(b, int) else b)

    def sub(self, a: Value, b: Value | int) -> Value:
        return self._b.sub(a, self.constant(b) if isinstance(b, int) else b)

    def steps(self, count: Value, width: int) -> Value:
        """How many runs of `width` hold `count`."""
        return self._b.udiv(self.add(count, width - 1), self.constant(width))

    def less(self, a: Value, b: Value | int) -> Value:
        return self._b.icmp_signed("<", a, self.constant(b) if isinstance(b, int) else b)

    # Control flow

    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """`carried = body(index, carried)` for each index below `count`, which is at least 1."""
        b = self._b
        before, block = b.block, b.append_basic_block("loop")
        after = b.append_basic_block("done")
        b.branch(block)
        b.position_at_end(block)
        index, held = b.phi(I64), [b.phi(each.type) for each in carried]
        given = list(body(index, held))
        following = b.add(index, self.constant(1))
        index.add_incoming(self.constant(0), before)
        index.add_incoming(following, b.block)
        for phi, first, again in zip(held, carried, given, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(again, b.block)
        b.cbranch(b.icmp_signed("<", following, count), block, after)
        b.position_at_end(after)
        return given

    def when(self, condition: Value, body: Callable[[], None]) -> None:
        with self._b.if_then(condition):
            body()

    def switch(self, value: Value, cases: Mapping[int, Callable[[], None]]) -> None:
        """Run the case that `value` names; none other may come."""
        b = self._b
        after, unknown = b.append_basic_block("chosen"), b.append_basic_block("never")
        choice = b.switch(value, unknown)
        for number, body in cases.items():
            block = b.append_basic_block(f"case{number}")
            choice.add_case(self.constant(number), block)
            b.position_at_end(block)
            body()
            b.branch(after)
        b.position_at_end(unknown)
        b.unreachable()
        b.position_at_end(after)

    # Memory

    def load(self, address: Value, kind: ir.Type = F32, *, align: int = 4) -> Value:
        value = self._b.load(self._b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def load_first(self, address: Value, lanes: Value, kind: ir.Type = F32) -> Value:
        """The first `lanes` elements of a vector of `kind`, zeros after them; nothing beyond them is touched."""
        suffix, bits = {F32: ("v16f32", 32), HALVES: ("v16i16", 16), PAIRS: ("v32bf16", 16)}[kind]
        pointer = self._b.inttoptr(address, kind.as_pointer())
        mask = self.below(lanes, kind.count)
        load = self._declare(f"llvm.masked.load.{suffix}.p0", kind, [pointer.type, INT32, mask.type, kind])
        zeros = ir.Constant(kind, None)
        return self._b.call(load, [pointer, ir.Constant(INT32, bits // 8), mask, zeros])

    def load_halves(self, address: Value, lanes: Value) -> Value:
        """As `load_first`, of sixteen 16-bit numbers, as bfloat16."""
        return self._b.bitcast(self.load_first(address, lanes, HALVES), BF16)

    def load_first_bf16(self, address: Value, lanes: Value) -> Value:
        """As `load_first`, of bfloat16, as floats."""
        return self.widen(self.load_first(address, lanes, HALVES))

    def load_integers(self, address: Value, *, align: int = 4) -> Value:
        return self.load(address, I32, align=align)

    def load_bf16(self, address: Value) -> Value:
        """Sixteen bfloat16 as floats: the upper halves of their bits."""
        return self.widen(self.load(address, HALVES, align=2))

    def widen(self, halves: Value) -> Value:
        wide = self._b.zext(halves, I32)
        return self._b.bitcast(self._b.shl(wide, self.splat_int(16)), F32)

    def load_f16(self, address: Value) -> Value:
        return self._b.fpext(self.load(address, F16, align=2), F32)

    def load_word(self, address: Value) -> Value:
        """One 32-bit word in every lane."""
        return self._spread(self.load(address, INT32), I32)

    def load_number(self, address: Value) -> Value:
        """One float in every lane."""
        return self._spread(self.load(address, FLOAT), F32)

    def store(self, address: Value, value: Value, *, align: int = 4) -> None:
        self._b.store(value, self._b.inttoptr(address, value.type.as_pointer())).align = align

    def store_first(self, address: Value, value: Value, lanes: Value) -> None:
        """Only the first `lanes` of a vector of floats, bfloat16 or bytes; none if that is not above 0."""
        kind = value.type
        suffix, align = {F32: ("v16f32", 4), BF16: ("v16bf16", 2), OCTETS: ("v16i8", 1)}[kind]
        pointer = self._b.inttoptr(address, kind.as_pointer())
        store = self._declare(f"llvm.masked.store.{suffix}.p0", ir.VoidType(), [kind, pointer.type, INT32, MASK])
        self._b.call(store, [value, pointer, ir.Constant(INT32, align), self.below(lanes)])

    def prefetch(self, address: Value) -> None:
        """Ask for the 64 bytes there ahead of their time; an address that is nobody's is no fault."""
        pointer = self._b.inttoptr(address, ir.IntType(8).as_pointer())
        fetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        read, to_every_cache, data = 0, 3, 1
        self._b.call(fetch, [pointer, *(ir.Constant(INT32, each) for each in (read, to_every_cache, data))])

    # Vectors

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

    def plus(self, a: Value, b: Value) -> Value:
        return self._b.add(a, b) if a.type == I32 else self._b.fadd(a, b)

    def negated(self, a: Value) -> Value:
        return self._b.fneg(a)

    def minus(self, a: Value, b: Value) -> Value:
        return self._b.sub(a, b) if a.type == I32 else self._b.fsub(a, b)

    def times(self, a: Value, b: Value) -> Value:
        return self._b.fmul(a, b)

    def over(self, a: Value, b: Value) -> Value:
        return self._b.fdiv(a, b)

    def low_nibbles(self, vector: Value) -> Value:
        return self._b.and_(vector, self.splat_int(0x0F0F0F0F))

    def high_nibbles(self, vector: Value) -> Value:
        return self.low_nibbles(self._b.lshr(vector, self.splat_int(4)))

    def as_float(self, words: Value) -> Value:
        """The same bits read as floats."""
        return self._b.bitcast(words, F32)

    def to_float(self, integers: Value) -> Value:
        return self._b.sitofp(integers, F32)

    def to_bytes(self, floats: Value) -> Value:
        """The low bytes of whole numbers, sixteen of them."""
        return self._b.trunc(self._b.fptosi(floats, I32), OCTETS)

    def to_bf16(self, floats: Value) -> Value:
        """Rounded to nearest even."""
        narrow = self._declare("llvm.x86.avx512bf16.cvtneps2bf16.512", BF16, [F32])
        return self._b.call(narrow, [floats])

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


def micro_kernel(arguments: type[Any]) -> Callable[[Callable[[Emitter, Any], None]], Any]:
    """Make `write(emitter, arguments)` callable from numba, with one integer for each field of a NamedTuple."""
    signature = types.void(*[types.int64] * len(arguments._fields))

    def decorate(write: Callable[[Emitter, Any], None]) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> Any:
            write(Emitter(builder), arguments(*values))
            return context.get_dummy_value()

        def typed(_context: Any, *_given: Any) -> Any:
            return signature, generate

        # Numba asks for named parameters.
        names = ("context", *arguments._fields)
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return decorate
