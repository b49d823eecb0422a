"""What GPUs have, as their makers' data sheets say; memory as the driver reports it, which is what there is to fill.

Products per second are those of dense matrices: data sheets that count zeros as done say twice as much.
"""

from dataclasses import dataclass
from typing import Final

from penstock_compress.errors import InvalidPlan

MIB: Final = 1 << 20
GIGA: Final = 10**9
TERA: Final = 10**12


@dataclass(frozen=True, slots=True)
class Gpu:
    """`memory` in bytes, `bandwidth` in bytes a second, products in operations a second (a multiply-add is two).

    `fp8_flops` None: it has no products of e4m3.
    """

    name: str
    memory: int
    bandwidth: float
    bf16_flops: float
    int8_ops: float
    fp8_flops: float | None


def _gpu(name: str, mebibytes: int, gigabytes: float, bf16: float, int8: float, fp8: float | None) -> Gpu:
    return Gpu(name, mebibytes * MIB, gigabytes * GIGA, bf16 * TERA, int8 * TERA, fp8 * TERA if fp8 else None)


# name, MiB, GB/s, then 10^12 operations a second in bf16, int8 and e4m3
_KNOWN: Final = (
    _gpu("B200", 183_359, 8_000, 2_250, 4_500, 4_500),
    _gpu("H200", 143_771, 4_800, 989, 1_979, 1_979),
    _gpu("H100", 81_559, 3_350, 989, 1_979, 1_979),
    _gpu("A100-80GB", 81_920, 2_039, 312, 624, None),
    _gpu("A100-40GB", 40_960, 1_555, 312, 624, None),
    _gpu("L40S", 46_068, 864, 362, 733, 733),
    _gpu("L4", 23_034, 300, 121, 242, 242),
    _gpu("A10", 23_028, 600, 125, 250, None),
    _gpu("RTX-5090", 32_607, 1_792, 209, 838, 419),
    _gpu("RTX-4090", 24_564, 1_008, 165, 661, 330),
    _gpu("RTX-3090", 24_576, 936, 71, 284, None),
)
GPUS: Final = {gpu.name: gpu for gpu in _KNOWN}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case. Raises InvalidPlan, which lists those that are known."""
    found = {known.lower(): gpu for known, gpu in GPUS.items()}.get(name.lower())
    if found is None:
        raise InvalidPlan("gpu", f"must be one of {', '.join(GPUS)}, not {name!r}")
    return found
