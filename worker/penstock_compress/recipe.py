"""What is to be made of a model, and how: checked when it is made, told in the checkpoint that comes of it."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from penstock_compress.errors import InvalidRecipe
from penstock_compress.grids import Grid

Method = Literal["rtn", "gptq", "awq", "smoothquant"]
Activations = Literal["int8", "fp8"]
METHODS: Final = ("rtn", "gptq", "awq", "smoothquant")
CALIBRATED: Final = ("gptq", "awq", "smoothquant")
MIXED: Final = "mixed"
"""The scheme that gives each part of the model one of several: the least loss that `target_bytes` buy."""
KEPT: Final = ("lm_head", "gate", "router", "shared_expert_gate", "embed_tokens")

FINEST: Final = "int4"  # of what `mixed` chooses from, one that has groups
_UNITS: Final = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_SIZE: Final = re.compile(r"^\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>%|[kmgt]?b|)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A named grid of weights, and what the inputs become as the model runs (None: they stay)."""

    grid: Grid
    activations: Activations | None
    meaning: str


SCHEMES: Final = {
    "int8": Scheme(Grid(8), "int8", "8 bits, a scale for an output; inputs in 8 bits, a scale for a token"),
    "int8-weights": Scheme(Grid(8), None, "8 bits, a scale for an output; inputs as they are"),
    "int4": Scheme(Grid(4, scope="group"), None, "4 bits, a scale for a group"),
    "int4-asym": Scheme(Grid(4, symmetric=False, scope="group"), None, "4 bits, a scale and a zero for a group"),
    "int4-channel": Scheme(Grid(4), None, "4 bits, a scale for an output"),
    "int3": Scheme(Grid(3, scope="group"), None, "3 bits, a scale for a group"),
    "int3-asym": Scheme(Grid(3, symmetric=False, scope="group"), None, "3 bits, a scale and a zero for a group"),
    "fp8-tensor": Scheme(Grid(8, "float", scope="tensor"), "fp8", "e4m3, one scale; inputs in e4m3"),
    "fp8": Scheme(Grid(8, "float"), "fp8", "e4m3, a scale for an output; inputs in e4m3, a scale for a token"),
    "fp8-block": Scheme(Grid(8, "float", scope="block"), "fp8", "e4m3, a scale for 128 x 128; inputs in e4m3"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is compressed.

    `group` columns share a scale where the scheme has groups. `searched`: ranges are shrunk where that loses less.
    `damping` and `act_order` are GPTQ's. `target_bytes`, as 900kB, 1.2GB or 40% of the source, is the most that the
    scheme `mixed` may take. With `kv`, int8 or fp8, keys and values are cached in 8 bits. `samples` sequences of
    `length` tokens calibrate, drawn by `seed`.
    """

    scheme: str
    method: Method = "rtn"
    group: int = 128
    searched: bool = False
    damping: float = 0.01
    act_order: bool = False
    target_bytes: str | None = None
    kv: Activations | None = None
    samples: int = 64
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in (*SCHEMES, MIXED):
            raise InvalidRecipe("scheme", f"must be one of {', '.join((*SCHEMES, MIXED))}, not {self.scheme!r}")
        if self.method not in METHODS:
            raise InvalidRecipe("method", f"must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.kv not in ("int8", "fp8", None):
            raise InvalidRecipe("kv", f"must be int8 or fp8, or be left out, not {self.kv!r}")
        if self.method == "smoothquant" and self.activations != "int8":
            raise InvalidRecipe("method", "smoothquant goes with the scheme int8, whose inputs are rounded too")
        if self.target_bytes is not None and self.scheme != MIXED:
            raise InvalidRecipe("target_bytes", f"is what the scheme {MIXED} keeps to; leave it out, or use that")
        if self.scheme == MIXED:
            if self.target_bytes is None:
                raise InvalidRecipe("target_bytes", f"must say how large the scheme {MIXED} may be, as in 40% or 900kB")
            bytes_of(self.target_bytes, 0)
        if self.act_order and self.method != "gptq":
            raise InvalidRecipe("act_order", "is an order of gptq's columns; leave it out, or use gptq")
        if not 0 < self.damping <= 1:
            raise InvalidRecipe("damping", f"must be above 0 and at most 1, not {self.damping}")
        for name in ("samples", "length"):
            if getattr(self, name) < 1:
                raise InvalidRecipe(name, f"must be at least 1, not {getattr(self, name)}")
        _ = self.of(FINEST).grid if self.scheme == MIXED else self.grid  # which refuses a group that cannot be

    def of(self, scheme: str) -> "Recipe":
        """The same with a scheme of its own, for one of the parts of `mixed`."""
        return replace(self, scheme=scheme, target_bytes=None)

    @property
    def grid(self) -> Grid:
        """What all layers are rounded to; `mixed` has no one grid."""
        grid = SCHEMES[self.scheme].grid
        return Grid(grid.bits, grid.kind, grid.symmetric, grid.scope, self.group, grid.block, self.searched)

    @property
    def activations(self) -> Activations | None:
        """What inputs are rounded to; None: they stay."""
        return None if self.scheme == MIXED else SCHEMES[self.scheme].activations

    @property
    def calibrated(self) -> bool:
        """Whether it needs text."""
        return self.method in CALIBRATED or self.scheme == MIXED or self.kv is not None

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, and no more: parameters that the method does not use are left out."""
        told = asdict(self)
        for name in ("target_bytes", "kv"):
            if told[name] is None:
                del told[name]
        if self.scheme != MIXED and self.grid.scope != "group":
            del told["group"]
        if self.method != "gptq":
            del told["damping"], told["act_order"]
        if not self.calibrated:
            del told["samples"], told["length"], told["seed"]
        return told

    @property
    def digest(self) -> str:
        """SHA-256 of it, hexadecimal."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def bytes_of(target: str, source_bytes: int) -> int:
    """The number of bytes that "900kB", "1.2GB", "123456" or "40%" (of `source_bytes`) says. Raises InvalidRecipe."""
    match = _SIZE.match(target)
    unit = None if match is None else match["unit"].lower()
    number = 0.0 if match is None else float(match["number"])
    if unit is None or (unit not in _UNITS and unit != "%") or number <= 0:
        raise InvalidRecipe("target_bytes", f"must be like 900kB, 1.2GB, 123456 or 40%, not {target!r}")
    return int(source_bytes * number / 100) if unit == "%" else int(number * _UNITS[unit])
