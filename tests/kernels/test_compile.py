"""Every kernel compiled for compute capability 9.0, here and without a GPU: what each takes, and that none spills.

Of the tiles of one kernel and types the largest is compiled, in bfloat16 where it takes that; `python -m bench.kernels
--compile-only` compiles all.
Compiling does not work in a process that interprets Triton, so other processes do it. Triton keeps what it compiled in
a cache on disk, keyed by the source.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
GPU = ROOT / "kernels" / "penstock_kernels" / "gpu"
SHARED_MEMORY_LIMIT = 227 * 1024
MOST_REGISTERS = 255  # with more the compiler spills; one thread can have no more

FUSED = """
from dataclasses import replace
from penstock_kernels.gpu import sampling
for case in sampling.compile_cases():
    if case.kernel.__name__ == "tally_kernel":
        for each in (case, replace(case, fp_fusion=True)):
            print(each.compile().asm["ptx"].count("fma.rn.f32"))
"""

# As a launch compiles: an argument of 1 is a constant, unless its kernel asks for none to be.
ONE_ROW = """
from dataclasses import replace
from penstock_kernels.gpu import quant_matmul_8bit, quant_matmul_w4a16
split = [each for module in (quant_matmul_8bit, quant_matmul_w4a16) for each in module.compile_cases()
         if each.constexprs.get("SPLITS", 1) > 1]
for case in {(each.kernel, each.signature["x"]): each for each in split}.values():
    ones = {} if "m" in case.kernel.do_not_specialize else {"m": 1}
    print(replace(case, constexprs=case.constexprs | ones).compile().metadata.name)
"""


def compiling(*arguments: str) -> str:
    """What `python` prints in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    listed = json.loads(compiling("-m", "bench.kernels", "--compile-only", "--largest", "--json", "-"))
    compiled: list[dict[str, Any]] = listed["rows"]
    return compiled


def test_every_kernel_is_compiled(rows: list[dict[str, Any]]) -> None:
    written = {
        name for file in GPU.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert len(written) > 10
    assert {row["kernel"] for row in rows} == written


def test_labels_tell_cases_apart(rows: list[dict[str, Any]]) -> None:
    labels = [row["label"] for row in rows]
    assert len(labels) == len(set(labels))


def test_shared_memory_fits_and_nothing_spills(rows: list[dict[str, Any]]) -> None:
    beyond = [
        row["label"]
        for row in rows
        if row["shared_bytes"] > SHARED_MEMORY_LIMIT
        or row["stack_bytes"]
        or row["spill_instructions"]
        or not 0 < row["registers"] <= MOST_REGISTERS
    ]
    assert beyond == []


def test_weights_of_tokens_are_rounded_step_by_step() -> None:
    """A fused multiply-add rounds once where a CPU rounds twice, and would draw other tokens."""
    apart, fused = (int(count) for count in compiling("-c", FUSED).split())
    assert apart == 0
    assert fused > 0


def test_a_split_product_of_one_row_compiles() -> None:
    """The commonest launch of all, decoding alone, whose number of rows is the one that Triton treats otherwise."""
    names = compiling("-c", ONE_ROW).split()
    assert sorted(set(names)) == ["_block_kernel", "_channel_kernel", "_w4a16_kernel"]
    assert len(names) >= 4
