"""Every kernel once, on small batches of odd sizes: what a memory checker is given to watch.

python -m tests.gpu.every_kernel [--only NAME]

The checker runs kernels some hundred times slower, so nothing is compared here; the tests beside this do that.
"""

import argparse

import torch

from bench.kernel_parts.contest import Sizes
from bench.kernels import measure_cases

SMALL = Sizes(
    hidden=264,
    inner=200,
    heads=8,
    kv_heads=2,
    head_dim=128,
    vocabulary=5003,
    tokens=(3, 33),
    sampled=(3,),
    adapted=((9, 2),),
    decoding=((3, 61), (2, 700)),
    prefill=(61,),
    products=(3, 65),
    weight=(200, 384),
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    chosen = [case for case in measure_cases(SMALL) if parser.parse_args().only in case.kernel]
    for case in chosen:
        case.make().ours()
        torch.cuda.synchronize()
    print(f"{len(chosen)} launches of {len({case.kernel for case in chosen})} kernels")


if __name__ == "__main__":
    main()
