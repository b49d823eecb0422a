"""The header of a safetensors file, read without its tensors and without torch.

The format: 8 bytes of little-endian length, a JSON object of that length, then the tensors' bytes to the end.
Source: https://github.com/huggingface/safetensors#format
"""

import json
from pathlib import Path
from typing import Any, Final

from penstock.errors import ModelFolderInvalid

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name to `{"dtype", "shape", "data_offsets"}`. Raises `ModelFolderInvalid` when the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 0 < length <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise _broken(path, f"its header should take {length} bytes, but the file has {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _broken(path, f"its header is not what the format asks for ({error!r})") from error
    expected = _LENGTH_BYTES + length + end
    if size != expected:
        raise _broken(path, f"its header asks for {expected} bytes, but the file has {size}")
    return dict(header)


def _broken(path: Path, why: str) -> ModelFolderInvalid:
    return ModelFolderInvalid(f"{path} is cut off or corrupt: {why}; copy or download it again", file=path.name)
