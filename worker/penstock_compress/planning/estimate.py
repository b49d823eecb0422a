"""From a model, a GPU and a load to what fits and how fast it may be.

    memory of the GPU
    | CONTEXT | weights | largest step | graphs, MARGIN | K and V ......... | 1 - memory_share of what is left |

Speed is a roofline: a step takes as long as its bytes or its products do, whichever is longer, at the shares of the
GPU's bandwidth and products that good engines reach. gpt-fast and SGLang have published 165 and 158 tokens a second of
an 8-billion model in bf16 on an H100, 74% and 71% of its bandwidth. These are estimates: a benchmark on the GPU is
what settles them.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch
from penstock_engine.config import EngineConfig, KVDType, Quantization
from penstock_engine.profiling import GRAPH_BYTES, MARGIN

from penstock_compress.errors import InvalidPlan
from penstock_compress.planning.gpus import MIB, Gpu
from penstock_compress.planning.inventory import Inventory

ENGINE: Final = EngineConfig()
CONTEXT: Final = 600 * MIB  # CUDA's own, and the libraries': an allowance
GRAPHS: Final = 40  # recorded steps: an allowance for the rows and lengths that there are
STEP_SECONDS: Final = 0.0005  # of a step besides its bytes and products: launches, sampling, the host; an allowance
MILLION: Final = 1_000_000
HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Workload:
    """`concurrency` requests at once, each of `context` tokens of which `output` are generated; `price` for an hour."""

    context: int
    concurrency: int
    output: int
    price: float | None = None
    bandwidth_share: float = 0.70
    products_share: float = 0.55
    memory_share: float = ENGINE.memory_share
    token_budget: int = 2048

    def __post_init__(self) -> None:
        for field in ("concurrency", "output", "token_budget"):
            _require(getattr(self, field) >= 1, field, "must be at least 1")
        _require(self.context > self.output, "context", f"must leave a prompt beside {self.output} tokens of output")
        _require(self.price is None or self.price > 0, "price", "must be above 0")
        for field in ("bandwidth_share", "products_share", "memory_share"):
            _require(0 < getattr(self, field) <= 1, field, "must be above 0 and at most 1")

    @property
    def prompt(self) -> int:
        return self.context - self.output


@dataclass(frozen=True, slots=True)
class Estimate:
    """One way to hold the model. Bytes, tokens a second, and `price`'s currency for a million tokens.

    `weights` and `kv` say in what they are held. `places` are requests of the whole context that K and V have room for;
    `longest` is the context that as many as were asked for may have. Speeds are those of `running` requests at once,
    and None where not one fits.
    """

    weights: str
    kv: str
    weight_bytes: int
    kv_bytes_for_token: int
    step_bytes: int
    room: int
    places: int
    longest: int
    running: int
    tokens_per_second: float | None = None
    tokens_per_second_each: float | None = None
    first_token_seconds: float | None = None
    price_of_output: float | None = None
    price_of_all: float | None = None

    @property
    def fits(self) -> bool:
        """Whether at least one request of the whole context does."""
        return self.places > 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All ways to hold a model on a GPU under a load."""

    model: Inventory
    gpu: Gpu
    load: Workload

    def estimates(self) -> list[Estimate]:
        """One for each choice of weights and of K and V that engine and GPU have, largest first.

        Raises InvalidPlan where the load's context is longer than the model's.
        """
        longest = self.model.config.max_positions
        _require(self.load.context <= longest, "context", f"must be at most the model's {longest} tokens")
        return [self._estimate(quantization, kv) for quantization in self._roundings() for kv in self._kv_dtypes()]

    def _roundings(self) -> list[Quantization | None]:
        if self.model.stored is not None or not self.model.roundable:
            return [None]
        eight: list[Quantization | None] = ["int8", "fp8"] if self.gpu.fp8_flops else ["int8"]
        return [None, *eight, "int4"]

    def _kv_dtypes(self) -> list[KVDType]:
        return ["auto", "int8"] if self.model.roundable else ["auto"]

    def _estimate(self, quantization: Quantization | None, kv_dtype: KVDType) -> Estimate:
        model, load = self.model, self.load
        shape = model.kv_shape(ENGINE.page_size, kv_dtype)
        weights = model.weights(quantization)
        step = model.step_bytes(max(load.token_budget, load.concurrency), load.concurrency)
        left = self.gpu.memory - CONTEXT - weights - step - GRAPHS * GRAPH_BYTES - MARGIN
        room = max(0, int(left * load.memory_share))
        pages = max(0, room // shape.page_bytes - 1)  # besides the null page
        places = pages // ceil(load.context / shape.page_size)
        running = min(places, load.concurrency)
        return Estimate(
            weights="as stored" if model.stored is not None else quantization or _name(model.dtype),
            kv=_name(shape.dtype),
            weight_bytes=weights,
            kv_bytes_for_token=shape.page_bytes // shape.page_size,
            step_bytes=step,
            room=room,
            places=places,
            longest=min(pages // load.concurrency * shape.page_size, model.config.max_positions),
            running=running,
            **(self._speeds(quantization, shape.page_bytes / shape.page_size, running) if running else {}),
        )

    def _speeds(self, quantization: Quantization | None, kv_bytes: float, running: int) -> dict[str, float | None]:
        """Each request's share of the device: its prompt's products, and its part in each step that decodes."""
        load = self.load
        step = self._decode_seconds(quantization, kv_bytes, running)
        prefill = self._prefill_seconds(quantization)
        request = prefill + load.output * step / running
        jobs = 1 / request
        cost = None if load.price is None else load.price / HOUR / jobs * MILLION
        return {
            "tokens_per_second": load.output * jobs,
            "tokens_per_second_each": load.output * jobs / running,
            "first_token_seconds": prefill,
            "price_of_output": None if cost is None else cost / load.output,
            "price_of_all": None if cost is None else cost / load.context,
        }

    def _decode_seconds(self, quantization: Quantization | None, kv_bytes: float, running: int) -> float:
        """A step in which each of `running` requests, half through its output on the average, gets a token."""
        held = running * (self.load.prompt + self.load.output / 2) * kv_bytes
        moved = self.model.read_by_step(quantization, running) + held
        multiplied = running * 2 * (self.model.numbers_for_token + self.model.head_numbers)
        return max(moved / self._bandwidth, multiplied / self._products(quantization)) + STEP_SECONDS

    def _prefill_seconds(self, quantization: Quantization | None) -> float:
        """A prompt by itself: its matrices, and attention over half of it on the average."""
        model, prompt = self.model.config, self.load.prompt
        attention = 2 * 2 * model.layers * model.heads * model.head_dim * prompt * prompt / 2
        products = 2 * prompt * self.model.numbers_for_token / self._products(quantization)
        steps = ceil(prompt / self.load.token_budget)
        read = steps * self.model.read_by_step(quantization, min(prompt, self.load.token_budget)) / self._bandwidth
        return max(products + attention / self._products(None), read) + steps * STEP_SECONDS

    @property
    def _bandwidth(self) -> float:
        return self.gpu.bandwidth * self.load.bandwidth_share

    def _products(self, quantization: Quantization | None) -> float:
        """Operations a second; 4-bit weights are multiplied in bf16, as is what is stored in ways that are not said."""
        peaks = {"int8": self.gpu.int8_ops, "fp8": self.gpu.fp8_flops}
        peak = peaks.get(quantization or "") or self.gpu.bf16_flops
        return peak * self.load.products_share


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise InvalidPlan(field, remedy)
