"""What an engine will take of its device, reckoned from its folder alone: in the engine's process, before it loads."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from penstock.errors import ModelFolderInvalid
from penstock.registry.safetensors_header import read_header
from penstock_engine import EngineConfig, InvalidConfig
from penstock_engine.errors import ModelCorrupt
from penstock_engine.kernel_choice import with_stored_kv
from penstock_engine.loading import resolve_dtype
from penstock_engine.model_config import ModelConfig, read_model_config
from penstock_engine.sizing import KVShape, context_length, device_of, host_memory

from penstock_worker.messages import Needs

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_ROUNDED_BYTES: Final = {"int8": 1.01, "fp8": 1.01, "int4": 0.53}
"""Of a weight that is rounded while it loads, its scales included."""
_GPU_WORKSPACE: Final = 512 << 20
"""For code, libraries' workspaces and captured graphs: what one step leaves on an H200, rounded up."""
_CPU_HEAD_BYTES: Final = 2  # of each number: the head's 8 bits beside the embeddings, in the layout of its products
_LOGIT_COPIES: Final = 4  # logits, their sorted copy with its indices, and probabilities
_ACTIVATIONS: Final = 4  # of a token's hidden size held at once, beside two of its feed-forward's


def needs_of(folder: Path, config: EngineConfig) -> Needs:
    """Raises ModelLoadError, InvalidConfig."""
    model = read_model_config(folder)
    config = with_stored_kv(config, model)
    dtype, device = resolve_dtype(config.dtype, model, folder), device_of(config)
    shape, length = KVShape.of(model, config, dtype), context_length(config, model)
    pages = -(-length // config.page_size)
    on_gpu = device.type == "cuda"
    head = 0 if on_gpu else _CPU_HEAD_BYTES * model.vocab_size * model.hidden_size
    return Needs(
        device=config.device,
        weights=weights_in(folder, dtype, config) + head,
        workspace=_workspace(model, config, dtype) + (_GPU_WORKSPACE if on_gpu else 0),
        page=shape.page_bytes,
        longest=(pages + 1) * shape.page_bytes,
        most=(2 * config.max_running * pages + 1) * shape.page_bytes,
        kv=None if on_gpu else host_memory(),
        free=torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory(),
    )


def weights_in(folder: Path, dtype: torch.dtype, config: EngineConfig) -> int:
    """Bytes of the folder's tensors where they run: plain ones in `dtype`, rounded ones as they are stored.

    Raises ModelCorrupt.
    """
    return sum(_held(name, tensor, dtype, config) for name, tensor in _tensors(folder))


def available_memory() -> int:
    """Bytes that this machine can still give to processes, caches that it would drop included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InvalidConfig("device", "'cpu' needs /proc/meminfo to tell MemAvailable")


def _tensors(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            yield from read_header(file).items()
        except (ModelFolderInvalid, OSError) as error:
            raise ModelCorrupt(file, str(error), "copy the file again") from error


def _held(name: str, tensor: dict[str, Any], dtype: torch.dtype, config: EngineConfig) -> int:
    start, end = tensor["data_offsets"]
    if tensor["dtype"] not in _FLOATS:
        return int(end - start)
    numbers: int = prod(tensor["shape"])
    rounded = config.quantization is not None and len(tensor["shape"]) == 2 and ".layers." in name
    if rounded and config.quantization is not None:
        return int(numbers * _ROUNDED_BYTES[config.quantization])
    return numbers * dtype.itemsize


def _workspace(model: ModelConfig, config: EngineConfig, dtype: torch.dtype) -> int:
    """Of the largest step: logits of all that run, activations of all its tokens in one layer."""
    logits = config.max_running * model.vocab_size * torch.float32.itemsize * _LOGIT_COPIES
    token = 2 * model.intermediate_size + _ACTIVATIONS * model.hidden_size
    return logits + config.token_budget * token * dtype.itemsize
