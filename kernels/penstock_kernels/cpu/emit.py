"""Vector code of sixteen 32-bit lanes, written through numba: no compiler is needed where it runs.

A micro-kernel is a Python function that writes LLVM instructions with an `Emitter`; `micro_kernel` makes it callable
from compiled numba functions, which hold the loops and the threads around it. Addresses and counts are 64-bit
integers; a vector is sixteen floats (`F32`), sixteen integers (`I32`), or 64 bytes read as pairs of bfloat16 (`PAIRS`)
or as four 8-bit numbers in each lane (`I32` too).

Instructions used: AVX-512 F, BW, VL, with VNNI (8-bit dot products), BF16 (bfloat16 dot products) and VBMI (tables of
bytes).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock_kernels.cpu.kinds import (
    BF16,
    CODES,
    F16,
    F32,
    FLOAT,
    HALVES,
    I32,
    I64,
    INT32,
    OCTETS,
    PAIRS,
    Value,
)
from penstock_kernels.cpu.vectors import Vectors

FIRST = {  # vectors of which a part can be loaded: their names in LLVM, and bits of an element
    F32: ("v16f32", 32),
    HALVES: ("v16i16", 16),
    PAIRS: ("v32bf16", 16),
    OCTETS: ("v16i8", 8),
    CODES: ("v64i8", 8),
}
# And of which a part can be stored: their names, and bytes of an element.
STORED_FIRST = {F32: ("v16f32", 4), BF16: ("v16bf16", 2), PAIRS: ("v32bf16", 2), OCTETS: ("v16i8", 1)}


class Emitter(Vectors):
    """Addresses, control flow and memory, around the arithmetic on vectors."""

    # Numbers and addresses

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

    def load_first(self, address: Value, lanes: Value, kind: ir.Type = F32, *, rest: Value | None = None) -> Value:
        """The first `lanes` elements of a vector of `kind`, after them those of `rest` (None: zeros); nothing beyond
        them is touched."""
        suffix, bits = FIRST[kind]
        pointer = self._b.inttoptr(address, kind.as_pointer())
        mask = self.below(lanes, kind.count)
        load = self._declare(f"llvm.masked.load.{suffix}.p0", kind, [pointer.type, INT32, mask.type, kind])
        filler = ir.Constant(kind, None) if rest is None else rest
        return self._b.call(load, [pointer, ir.Constant(INT32, bits // 8), mask, filler])

    def load_halves(self, address: Value, lanes: Value) -> Value:
        """As `load_first`, of sixteen 16-bit numbers, as bfloat16."""
        return self._b.bitcast(self.load_first(address, lanes, HALVES), BF16)

    def load_first_bf16(self, address: Value, lanes: Value) -> Value:
        """As `load_first`, of bfloat16, as floats."""
        return self.widen(self.load_first(address, lanes, HALVES))

    def load_octets(self, address: Value) -> Value:
        """Sixteen bytes."""
        return self.load(address, OCTETS, align=1)

    def load_integers(self, address: Value, *, align: int = 4) -> Value:
        return self.load(address, I32, align=align)

    def load_bf16(self, address: Value) -> Value:
        """Sixteen bfloat16 as floats: the upper halves of their bits."""
        return self.widen(self.load(address, HALVES, align=2))

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
        suffix, align = STORED_FIRST[kind]
        pointer, mask = self._b.inttoptr(address, kind.as_pointer()), self.below(lanes, kind.count)
        store = self._declare(f"llvm.masked.store.{suffix}.p0", ir.VoidType(), [kind, pointer.type, INT32, mask.type])
        self._b.call(store, [value, pointer, ir.Constant(INT32, align), mask])

    def prefetch(self, address: Value) -> None:
        """Ask for the 64 bytes there ahead of their time; an address that is nobody's is no fault."""
        pointer = self._b.inttoptr(address, ir.IntType(8).as_pointer())
        fetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        read, to_every_cache, data = 0, 3, 1
        self._b.call(fetch, [pointer, *(ir.Constant(INT32, each) for each in (read, to_every_cache, data))])


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
