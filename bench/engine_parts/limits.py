"""How fast decoding could be here at most: by what memory gives, and by what the matrix products alone take.

python -m bench.engine_parts.limits SHAPE --threads N --batches N ...

A step reads every weight but the embedding once, so tokens per second at batch 1 cannot exceed the speed of reading
memory over the bytes of the weights (scales left aside). From there on products decide: `linears` is a pass through
all of the shape's matrices, Q with K and V and gate with up in one product each, in bfloat16 packed by oneDNN, with
nothing between them. Kernels better than oneDNN's can beat it; memory nothing can.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from penstock_kernels.cpu.memory import lasting
from torch import Tensor

from bench.engine_parts.shapes import HEAD_DIM, SHAPES, Shape

READ_BYTES = 1 << 30  # far beyond any cache
REPEATS = 9
BITS = {"bf16": 16, "int8": 8, "int4": 4}


def limits(shape: Shape, batches: list[int]) -> dict[str, Any]:
    """Tokens per second: of memory at batch 1, by precision; of the products alone, by batch."""
    speed = _memory_speed()
    weights = sum(outputs * inputs for outputs, inputs in _matrices(shape))
    products = _products(shape)
    return {
        "memory_read_gb_per_s": round(speed / 1e9, 1),
        "memory_b1": {kind: round(speed / (weights * bits / 8), 1) for kind, bits in BITS.items()},
        "linears": {str(batch): round(batch / _seconds(partial(products, batch)), 1) for batch in batches},
    }


def _matrices(shape: Shape) -> list[tuple[int, int]]:
    """[outputs, inputs] of every product of a step."""
    heads, keys = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
    layer = [
        (heads + 2 * keys, shape.hidden),
        (shape.hidden, heads),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    ]
    matrices = [*layer * shape.layers, (shape.vocabulary, shape.hidden)]
    norms = (2 * shape.layers + 1) * shape.hidden
    everything = sum(prod(size) for size in shape.tensors().values())
    assert sum(map(prod, matrices)) == everything - norms - shape.vocabulary * shape.hidden, "all but the embedding"
    return matrices


def _products(shape: Shape) -> Callable[[int], None]:
    """A pass over all matrices, for so many rows."""
    packed: list[tuple[Tensor, int]] = [
        (torch.ops.mkldnn._reorder_linear_weight(torch.randn(size).mul_(0.02).bfloat16()), size[1])
        for size in _matrices(shape)
    ]

    def run(rows: int) -> None:
        inputs = {width: torch.randn(rows, width).bfloat16() for _, width in packed}
        for weight, width in packed:
            torch.ops.mkldnn._linear_pointwise(inputs[width], weight, None, "none", [], "")

    return run


def _memory_speed() -> float:
    """Bytes per second of the greatest over memory that no cache holds, on huge pages as weights are."""
    data = lasting(torch.ones(READ_BYTES // 4))
    return READ_BYTES / _seconds(data.amax)


def _seconds(call: Callable[[], object]) -> float:
    """The best of several, for it is a limit."""
    return min(_times(call))


def _times(call: Callable[[], object]) -> list[float]:
    call()  # to warm up
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(limits(SHAPES[args.shape], args.batches)))


if __name__ == "__main__":
    main()
