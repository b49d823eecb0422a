"""The tiles that a tuner may choose in place of what is written in code, by kernel and class of shapes.

A class is what one choice is good for. Each candidate here was compiled for compute capability 9.0 without spilling a
register, within the shared memory that one program may have there; the modules of the kernels list them among their
`compile_cases`, so `python -m bench.kernels --compile-only` shows what each takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from penstock_kernels.gpu.attention_tiles import Tiles
from penstock_kernels.gpu.attention_variants import Variant
from penstock_kernels.gpu.split_k import Tile

EXTEND, DECODE = "extend_attention", "decode_attention"
W4A16, INT8, FP8, FP8_BLOCKS = "w4a16", "int8", "fp8", "fp8_blocks"
FUSED = "rows up to which weights are dequantized in registers"


@dataclass(frozen=True, slots=True)
class Limit:
    """A number of rows up to which one way is taken, and beyond it another."""

    rows: int


Choice = Tiles | Tile | Limit


def attention_class(layer: Variant) -> str:
    """What decides how a layer's attention is best cut."""
    return f"dim {max(64, layer.dim_pad)}, {8 * layer.dtype.itemsize} bits" + ", plain" * layer.plain


def rows_class(tile: Tile) -> str:
    """Products of as many rows as this tile has, or fewer, down to those of the next smaller one."""
    return f"{tile.rows} rows"


def _tiles(*sizes: tuple[int, int, int, int]) -> tuple[Tiles, ...]:
    return tuple(Tiles(*size) for size in sizes)


def _tile(rows: int, *sizes: tuple[int, int, int, int]) -> tuple[Tile, ...]:
    """Of `rows`: (columns, depth, warps, stages) of each."""
    return tuple(Tile(rows, *size) for size in sizes)


# Of e4m3, whose depth is that of a block, in one scheme as in the other: (columns, depth, warps, stages), by rows.
_E4M3 = {
    16: (
        *((32, 128, 4, 5), (64, 128, 4, 4), (64, 128, 4, 6), (64, 128, 8, 5)),
        *((128, 128, 4, 4), (128, 128, 4, 5)),
    ),
    64: ((64, 128, 4, 3), (64, 128, 4, 5), (128, 128, 4, 3), (128, 128, 4, 4), (128, 128, 8, 4)),
    128: ((64, 128, 4, 4), (64, 128, 8, 4), (128, 128, 8, 3)),
}
CANDIDATES: Mapping[tuple[str, str], tuple[Choice, ...]] = MappingProxyType(
    {
        (EXTEND, "dim 64, 16 bits, plain"): _tiles((128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3)),
        (EXTEND, "dim 128, 16 bits, plain"): _tiles(
            (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (128, 32, 8, 3)
        ),
        (EXTEND, "dim 128, 16 bits"): _tiles((128, 64, 8, 2), (128, 32, 8, 3)),
        (EXTEND, "dim 256, 16 bits"): _tiles((128, 32, 8, 3), (64, 32, 8, 3)),
        (DECODE, "dim 128, 16 bits, plain"): _tiles(
            *((16, 128, 4, 2), (16, 128, 4, 3), (16, 128, 8, 3), (16, 64, 4, 2), (16, 64, 4, 4)),
            *((16, 64, 2, 3), (16, 64, 8, 3), (16, 32, 4, 4), (16, 32, 4, 5)),
        ),
        (DECODE, "dim 128, 16 bits"): _tiles(
            (16, 128, 8, 3), (16, 64, 4, 2), (16, 64, 4, 4), (16, 64, 8, 3), (16, 32, 4, 4)
        ),
        (DECODE, "dim 64, 16 bits, plain"): _tiles(
            (16, 128, 4, 2), (16, 128, 4, 4), (16, 64, 4, 3), (16, 64, 4, 4), (16, 64, 2, 4), (16, 256, 8, 2)
        ),
        (DECODE, "dim 256, 16 bits"): _tiles((16, 64, 8, 2), (16, 32, 4, 2), (16, 32, 4, 4), (16, 32, 8, 3)),
        (W4A16, "16 rows"): _tile(
            *(16, (64, 128, 4, 4), (64, 128, 4, 5), (64, 128, 2, 5)),
            *((128, 128, 4, 3), (128, 128, 4, 5), (128, 128, 8, 4)),
        ),
        (W4A16, "32 rows"): _tile(32, (64, 128, 4, 4), (128, 128, 4, 3), (128, 128, 4, 5)),
        (W4A16, "64 rows"): _tile(64, (64, 128, 4, 4), (128, 128, 8, 2), (128, 128, 8, 4)),
        (W4A16, "128 rows"): _tile(128, (64, 128, 4, 3), (64, 128, 8, 3), (128, 128, 8, 2), (128, 128, 8, 4)),
        (INT8, "16 rows"): _tile(
            *(16, (32, 256, 4, 4), (64, 128, 4, 5), (64, 256, 4, 3)),
            *((128, 128, 4, 4), (128, 256, 4, 3)),
        ),
        (INT8, "64 rows"): _tile(64, (64, 128, 4, 4), (64, 256, 4, 4), (128, 128, 4, 4), (128, 128, 8, 4)),
        (INT8, "128 rows"): _tile(128, (64, 128, 4, 4), (128, 128, 4, 3), (128, 128, 8, 3)),
        (INT8, "256 rows"): _tile(256, (128, 64, 8, 4), (128, 128, 8, 3)),
        **{
            (kernel, f"{rows} rows"): _tile(rows, *sizes)
            for kernel in (FP8, FP8_BLOCKS)
            for rows, sizes in _E4M3.items()
        },
        (W4A16, FUSED): (Limit(64), Limit(128), Limit(512), Limit(1024)),
    }
)


def attention_candidates(kernel: str, layer: Variant, in_code: Tiles) -> list[Tiles]:
    """`in_code`, which is the table's for `layer`, and what may take its place."""
    others = CANDIDATES.get((kernel, attention_class(layer)), ())
    return [in_code, *(each for each in others if isinstance(each, Tiles))]


def rows_candidates(kernel: str, in_code: Tile) -> list[Tile]:
    """`in_code`, which is one of the kernel's tiles, and what may take its place."""
    others = CANDIDATES.get((kernel, rows_class(in_code)), ())
    return [in_code, *(each for each in others if isinstance(each, Tile))]
