"""Kernels compiled ahead of time for a GPU that need not be there, and what the compiler used for them.

Each module of this package exports `compile_cases()`: the dtypes and configurations that the engine launches.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

SM90 = 90
SHARED_MEMORY_LIMIT = 227 * 1024  # bytes that one program may have on compute capability 9.0

_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+)")


@dataclass(frozen=True, slots=True)
class CompileCase:
    """One kernel for one set of argument types and compile-time constants.

    `signature` gives every argument that is not in `constexprs` its Triton type ("*fp16", "i32", "fp32"), in the
    kernel's order. Pointers are taken to be 16-byte aligned, as torch allocates them; `divisible` names the integers
    that are multiples of 16, which is what lets the compiler use wide loads.
    """

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    label: str
    divisible: tuple[str, ...] = ()
    fp_fusion: bool = True  # False: each product and sum rounds by itself, as on a CPU

    def source(self) -> ASTSource:
        """What `triton.compile` takes."""
        names = self.kernel.arg_names
        types = {name: "constexpr" if name in self.constexprs else self.signature[name] for name in names}
        aligned = [name for name, kind in types.items() if kind.startswith("*") or name in self.divisible]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        return ASTSource(self.kernel, types, dict(self.constexprs), attributes)

    def compile(self, capability: int = SM90) -> CompiledKernel:
        """Machine code for compute capability `capability`; not possible in a process that interprets Triton."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}
        return triton.compile(self.source(), target=GPUTarget("cuda", capability, 32), options=options)


class Resources(NamedTuple):
    """What one compiled kernel takes: of each program, and of each of its threads."""

    shared_bytes: int
    registers: int
    stack_bytes: int  # per thread, in local memory
    spill_instructions: int  # loads and stores of local memory in the machine code


def resources(compiled: CompiledKernel) -> Resources:
    """Read off the machine code by `cuobjdump`, which travels with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _USAGE.search(_cuobjdump("-res-usage", cubin))
        code = _cuobjdump("-sass", cubin)
    if usage is None:
        raise RuntimeError(f"cuobjdump names no resource usage for {compiled.metadata.name}")
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Resources(compiled.metadata.shared, int(usage["registers"]), int(usage["stack"]), spills)


def _cuobjdump(option: str, cubin: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([str(tool), option, str(cubin)], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def pointer(dtype: object) -> str:
    """Triton's name for a pointer to elements of a torch dtype."""
    return "*" + _TYPES[str(dtype).removeprefix("torch.")]


_TYPES: Mapping[str, str] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8e4nv",
    "int8": "i8",
    "uint8": "u8",
    "int32": "i32",
    "int64": "i64",
}
