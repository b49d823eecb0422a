"""Text to calibrate by, as sequences of tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from penstock_compress.errors import CalibrationUnusable


def read_tokens(model: Path, text: Path, *, samples: int, length: int, seed: int) -> Tensor:
    """`samples` sequences of `length` tokens from the file `text`, int64 [samples, length], drawn by `seed`.

    A `.jsonl` file has on each line `{"text": ...}`, or `{"messages": [...]}`, which the model's chat template renders;
    any other file is one text. Texts are joined, each ended by the model's end of text where it has one, and cut.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [token for one in _texts(text, tokenizer) for token in _encoded(tokenizer, one)]
    windows = len(ids) // length
    if windows < samples:
        raise CalibrationUnusable(
            f"{text} has {len(ids):,} tokens, which make {windows} sequences of {length}; {samples} are asked for: "
            "give more text, or ask for fewer or shorter ones"
        )
    cut = torch.tensor(ids[: windows * length]).view(windows, length)
    return cut[torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:samples]]


def _encoded(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _texts(path: Path, tokenizer: Any) -> Iterator[str]:
    try:
        if path.suffix != ".jsonl":
            yield path.read_text()
            return
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, path, number, tokenizer)
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationUnusable(f"{path} cannot be read ({error})") from None


def _text_of(line: str, path: Path, number: int, tokenizer: Any) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict) and isinstance(said.get("text"), str):
        return str(said["text"])
    if isinstance(said, dict) and isinstance(said.get("messages"), list):
        return str(tokenizer.apply_chat_template(said["messages"], tokenize=False))
    raise CalibrationUnusable(f'{path}, line {number}: should be a JSON object with "text" or "messages"')
