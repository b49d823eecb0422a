"""Which kernels run a model: compiled ones where the machine has what they need, torch elsewhere.

What was chosen, and why not another, is told by `Engine.kernels`: nothing is replaced in silence.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch
from penstock_kernels.cpu import support

from penstock_engine.config import EngineConfig
from penstock_engine.errors import InvalidConfig, ModelUnsupported
from penstock_engine.formats import StoredPart
from penstock_engine.layers.prepack import prepack_linears
from penstock_engine.model_config import ModelConfig
from penstock_engine.models import CausalLM, DecoderLM

BLOCK = 16  # slots that compiled attention takes at a time on a CPU: they must lie in one page
COMPILED_DTYPES = (torch.bfloat16, torch.float32)  # on a CPU
WIDEST_HEAD = 256  # that Triton's attention has tiles for
LEAST_CAPABILITY = (8, 0)  # of a GPU: the first with bfloat16
FP8_CAPABILITY = (8, 9)  # the first with e4m3


def choose_kernels(
    model: CausalLM, config: EngineConfig, *, dtype: torch.dtype, threads: int, device: torch.device | None = None
) -> None:
    """Give a loaded `model` its kernels, and move it to `device` (None: it stays where it lies).

    Raises InvalidConfig where what was asked for cannot run here, ModelUnsupported for weights that cannot.
    """
    obstacle = _obstacle(model, config, dtype)
    stored = isinstance(model, DecoderLM) and bool(_stored_parts(model))
    if stored and config.quantization is not None:
        raise InvalidConfig("quantization", "must be None: the checkpoint has rounded its weights already")
    if isinstance(model, DecoderLM) and not obstacle and config.kernels != "torch":
        model.kernels = _compile(model, config, dtype, threads, device)
        model.pads = False
        return
    if config.kernels == "compiled":
        raise InvalidConfig("kernels", f"cannot be 'compiled' here: {obstacle}; use 'auto' or 'torch'")
    reason = obstacle or "kernels is 'torch'"
    if config.quantization is not None:
        raise InvalidConfig("quantization", f"must be None: it needs compiled kernels, and {reason}")
    if stored:
        raise InvalidConfig("kernels", f"must be compiled for a checkpoint whose weights are rounded, and {reason}")
    if config.kv_dtype != "auto":
        raise InvalidConfig("kv_dtype", f"must be 'auto': K and V in 8 bits need compiled kernels, and {reason}")
    prepacked = prepack_linears(model)
    model.kernels = {"layers": f"torch ({obstacle or 'as asked for'})", "prepacked": str(prepacked)}


def with_stored_kv(config: EngineConfig, model: ModelConfig) -> EngineConfig:
    """`config`, with K and V in the 8 bits that a checkpoint asks for where `kv_dtype` leaves it to that."""
    stored = model.format.kv_dtype if model.format is not None else None
    return replace(config, kv_dtype=stored) if stored is not None and config.kv_dtype == "auto" else config


def loading_device(config: EngineConfig, device: torch.device, *, stored: bool = False) -> torch.device:
    """Where weights are read to. Those that are rounded for a GPU wait in the host's memory for their turn.

    `stored`: the checkpoint has rounded them, and they are brought into a kernel's layout.
    """
    return torch.device("cpu") if stored or config.quantization is not None else device


def _compile(
    model: DecoderLM, config: EngineConfig, dtype: torch.dtype, threads: int, device: torch.device | None
) -> Mapping[str, str]:
    if _on_gpu(config):
        return _use_gpu(model, config, device or next(model.parameters()).device)
    from penstock_engine.layers.cpu import held_bytes, use_cpu_kernels  # where compiled kernels run, and not before

    counts = use_cpu_kernels(model, dtype=dtype, threads=threads, quantization=config.quantization)
    held = ", ".join(f"{kind} {size}" for kind, size in sorted(held_bytes(model).items()))
    return {"layers": "compiled for AVX-512", **_told(counts), "bytes held": held, **_kept(config)}


def _use_gpu(model: DecoderLM, config: EngineConfig, device: torch.device) -> Mapping[str, str]:
    stored = _stored_parts(model)
    _refuse_formats_on_gpu(config, stored)
    from penstock_kernels.gpu.tuning import table_of  # imports Triton, as these do

    from penstock_engine.layers.gpu import use_gpu_kernels
    from penstock_engine.layers.gpu_linear import round_linears

    rounded: Counter[str] = Counter()
    if config.quantization is not None or stored:
        rounded = round_linears(model, config.quantization, device, deterministic=config.deterministic)
        model.to(device)
    counts = use_gpu_kernels(model, deterministic=config.deterministic)
    told = _told(counts + rounded)
    return {"layers": "compiled by Triton", "tiles": table_of(device).source, **told, **_kept(config)}


def _stored_parts(model: DecoderLM) -> list[StoredPart]:
    return [part for _, layer in model.linear_parts() for part in layer.stored]


def _told(counts: Counter[str]) -> dict[str, str]:
    return {kind: str(count) for kind, count in sorted(counts.items())}


def _kept(config: EngineConfig) -> dict[str, str]:
    return {} if config.kv_dtype == "auto" else {"kv": config.kv_dtype}


def _refuse_formats_on_gpu(config: EngineConfig, stored: Sequence[StoredPart]) -> None:
    capability = torch.cuda.get_device_capability(config.device)
    floats = next((part for part in stored if part.floats), None)
    if floats is not None and capability < FP8_CAPABILITY:
        problem = f"{floats.name} is in {floats.format.name}, e4m3, and {config.device} has compute capability"
        problem = f"{problem} {capability[0]}.{capability[1]}"
        raise ModelUnsupported(floats.path, problem, "e4m3 needs 8.9 or more")
    for field, value in (("quantization", config.quantization), ("kv_dtype", config.kv_dtype)):
        if value == "fp8" and capability < FP8_CAPABILITY:
            has = f"{config.device} has compute capability {capability[0]}.{capability[1]}"
            raise InvalidConfig(field, f"cannot be 'fp8' here: {has}, below 8.9; use 'int8'")


def _obstacle(model: CausalLM, config: EngineConfig, dtype: torch.dtype) -> str:
    """What keeps compiled kernels from running, in words; empty if nothing does."""
    if not isinstance(model, DecoderLM):
        return f"{model.config.model_type} runs transformers' own code"
    if _on_gpu(config):
        return _obstacle_on_gpu(model, config)
    if torch.device(config.device).type != "cpu":
        return f"the device is {config.device}"
    if dtype not in COMPILED_DTYPES:
        return f"the dtype is {str(dtype).removeprefix('torch.')}"
    if config.page_size % BLOCK:
        return f"page_size is {config.page_size}, no multiple of {BLOCK}"
    return support.lacking()


def _on_gpu(config: EngineConfig) -> bool:
    return torch.device(config.device).type == "cuda"


def _obstacle_on_gpu(model: DecoderLM, config: EngineConfig) -> str:
    if find_spec("triton") is None:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability(config.device)
    if capability < LEAST_CAPABILITY:
        return f"{config.device} has compute capability {capability[0]}.{capability[1]}, below 8.0"
    if model.config.head_dim > WIDEST_HEAD:
        return f"head_dim is {model.config.head_dim}, more than {WIDEST_HEAD}"
    return ""
