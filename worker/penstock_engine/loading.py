"""From a Hugging Face folder to a model that is ready to run.

Weights are memory-mapped and copied tensor by tensor into place, so loading needs little more memory than the model.
Every tensor must fit: one that is missing, unexpected or of another shape is an error that names it, because a model
that loads with a hole answers nonsense with confidence.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock_engine.errors import ModelCorrupt, ModelNotFound, ModelUnsupported
from penstock_engine.model_config import ModelConfig, read_json
from penstock_engine.models import MODELS, CausalLM, DecoderLM
from penstock_engine.rounded_layers import RoundedLayers

Progress = Callable[[str, int, int], None]  # (stage, done, total)

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    positions: int,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> CausalLM:
    """Build `config`'s model and fill it from `folder`. Raises ModelLoadError."""
    build = MODELS.get(config.model_type)
    if build is None:
        return _load_bridged(folder, config, dtype, device, progress or _silent)
    model = build(config, positions, dtype, device)
    _fill(model, folder, progress or _silent)
    return model.eval()


def _load_bridged(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, progress: Progress
) -> CausalLM:
    """A model of transformers. Imported here: native models start without transformers' seconds of import."""
    from penstock_engine.models.bridge import open_bridged
    from penstock_engine.models.bridge_check import check_bridged

    model = open_bridged(folder, config, dtype, device)
    check_bridged(model, folder, dtype, device)
    progress("weights", 1, 1)
    return model


def resolve_dtype(name: str, config: ModelConfig, folder: Path) -> torch.dtype:
    """The computing type; `auto` is the checkpoint's own."""
    wanted = config.dtype if name == "auto" else name
    if wanted not in FLOATS:
        raise ModelUnsupported(folder / "config.json", f"dtype is {wanted!r}", f"use one of {', '.join(FLOATS)}")
    return FLOATS[wanted]


def _fill(model: DecoderLM, folder: Path, progress: Progress) -> None:
    views = dict(model.checkpoint_views())
    total = len(views)
    rounded = RoundedLayers(model)
    last: Path = folder
    for last, name, tensor in _tensors(folder):
        if rounded.takes(last, name, tensor):
            continue
        view = views.pop(name, None)
        if view is None:
            _refuse_unexpected(last, name, model)
            continue
        _copy(view, tensor, last, name)
        progress("weights", total - len(views), total)
    for name in rounded.hand_over(last):
        views.pop(f"{name}.weight", None)
        progress("weights", total - len(views), total)
    if views:
        raise ModelCorrupt(last, f"lacks the tensor {min(views)!r} ({len(views)} in all)", "copy the folder again")


def _refuse_unexpected(path: Path, name: str, model: DecoderLM) -> None:
    """A tensor that we would ignore may carry part of the answer. A tied head saved twice, and the angles, do not."""
    known = name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and model.config.tied_embeddings)
    if not known:
        kind = model.config.model_type
        raise ModelUnsupported(path, f"tensor {name!r} has no place in a {kind} model", "serve an unmodified one")


def _copy(view: Tensor, tensor: Tensor, path: Path, name: str) -> None:
    if tensor.shape != view.shape:
        raise ModelCorrupt(
            path,
            f"tensor {name!r} is {list(tensor.shape)}",
            f"by config.json it must be {list(view.shape)}",
        )
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelUnsupported(path, f"tensor {name!r} is {tensor.dtype}", "by config.json it is a plain one")
    view.copy_(tensor)


def _tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of every weights file, memory-mapped, with the file it is from."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield path, name, file.get_tensor(name)
        except (SafetensorError, OSError) as cause:
            raise ModelCorrupt(path, f"not a whole safetensors file ({cause})", "copy the file again") from cause


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    if not (folder / SINGLE).exists():
        raise ModelNotFound(folder / SINGLE, "no such file", f"a model folder has {SINGLE} or {INDEX}")
    return [folder / SINGLE]


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelCorrupt(index, "has no weight_map", "copy the file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelCorrupt(index, f"names a shard outside the folder: {name!r}", "shards lie beside the index")
        if not (index.parent / name).is_file():
            raise ModelNotFound(index.parent / name, "no such file", f"{INDEX} names it")
    return [index.parent / name for name in names]


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
