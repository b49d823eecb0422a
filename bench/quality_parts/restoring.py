"""A checkpoint whose weights are restored to bf16, for the formats that the engine does not serve on this machine."""

import json
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.utils import logging as transformers_logging


def restore(folder: Path, source: Path, target: Path) -> Path:
    """Write to `target` what compressed-tensors makes of `folder`, as a plain checkpoint like `source`.

    Its inputs are not rounded, whatever the format says of them.
    """
    transformers_logging.disable_progress_bar()
    asked = CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the folder's own settings are kept, as they are to be
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=asked)
    tensors, wanted = model.state_dict(), load_file(source / "model.safetensors")
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy2(path, target / path.name)
    plain = {name: tensors[name].to(torch.bfloat16).contiguous() for name in wanted}
    save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
    assert "quantization_config" not in json.loads((target / "config.json").read_text()), "the source is a plain one"
    return target
