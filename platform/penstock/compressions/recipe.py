"""A recipe as it is asked for: what `penstock_compress.Recipe` takes, judged by the same rules without torch."""

import re
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from penstock.strict_model import Strict, wrong_at

SCHEMES: Final = {
    "int8": "int8",
    "int8-weights": None,
    "int4": None,
    "int4-asym": None,
    "int4-channel": None,
    "int3": None,
    "int3-asym": None,
    "fp8-tensor": "fp8",
    "fp8": "fp8",
    "fp8-block": "fp8",
    "mixed": None,
}
"""Each with what the inputs of its layers become; None: they stay, or differ from layer to layer."""
MIXED: Final = "mixed"
GROUPED: Final = frozenset({"int4", "int4-asym", "int3", "int3-asym", MIXED})
CALIBRATED: Final = frozenset({"gptq", "awq", "smoothquant"})


_UNITS: Final = frozenset({"", "b", "kb", "mb", "gb", "tb", "%"})
_SIZE: Final = re.compile(r"^\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>%|[kmgt]?b|)\s*$", re.IGNORECASE)


class RecipeRequest(Strict):
    """How a model is compressed."""

    scheme: Literal[
        "int8", "int8-weights", "int4", "int4-asym", "int4-channel", "int3", "int3-asym",
        "fp8-tensor", "fp8", "fp8-block", "mixed",
    ]  # fmt: skip
    method: Literal["rtn", "gptq", "awq", "smoothquant"] = "rtn"
    group: int = Field(default=128, le=2**20, description="Columns that share a scale, where the scheme has groups")
    searched: bool = Field(default=False, description="Shrink ranges where that loses less")
    damping: float = Field(default=0.01, gt=0, le=1, description="GPTQ: added to the Hessian's diagonal, as a share")
    act_order: bool = Field(default=False, description="GPTQ: columns of large inputs first")
    target_bytes: str | None = Field(
        default=None, max_length=40, description="Of the scheme mixed: the most it may take, as 900kB, 1.2GB or 40%"
    )
    kv: Literal["int8", "fp8"] | None = Field(default=None, description="Cache keys and values in 8 bits")
    samples: int = Field(default=64, ge=1, le=2**20, description="Sequences that calibrate")
    length: int = Field(default=512, ge=1, le=2**20, description="Tokens of each")
    seed: int = Field(default=0, ge=0, lt=2**53, description="Which of them")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.method == "smoothquant" and SCHEMES[self.scheme] != "int8":
            raise wrong_at("method", "smoothquant goes with the scheme int8, whose inputs are rounded too")
        if self.target_bytes is not None and self.scheme != MIXED:
            raise wrong_at("target_bytes", "is what the scheme mixed keeps to; leave it out, or use that")
        if self.scheme == MIXED:
            _judge_size(self.target_bytes)
        if self.act_order and self.method != "gptq":
            raise wrong_at("act_order", "is an order of gptq's columns; leave it out, or use gptq")
        if self.scheme in GROUPED and (self.group < 8 or self.group % 8):
            raise wrong_at("group", f"must be a multiple of 8, not {self.group}")
        return self

    @property
    def calibrated(self) -> bool:
        return self.method in CALIBRATED or self.scheme == MIXED or self.kv is not None

    def arguments(self) -> list[str]:
        """As the command takes it that compresses."""
        return [argument for name, value in self.model_dump().items() for argument in _option(name, value)]


def _judge_size(target: str | None) -> None:
    if target is None:
        raise wrong_at("target_bytes", "must say how large the scheme mixed may be, as in 40% or 900kB")
    match = _SIZE.match(target)
    if match is None or match["unit"].lower() not in _UNITS or float(match["number"]) <= 0:
        raise wrong_at("target_bytes", f"must be like 900kB, 1.2GB, 123456 or 40%, not {target!r}")


def _option(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    return [option, str(value)]
