"""The two models of an evaluation, opened as they would serve."""

from pathlib import Path
from typing import Final

from penstock_engine import Engine, EngineConfig, EngineError
from penstock_engine.model_config import ModelConfig, read_model_config

from penstock_compress.errors import ModelRefused, ModelsDiffer

RUNNING: Final = 64  # requests in a batch
BUDGET: Final = 1024  # tokens of a step
PAGE: Final = 16
NO_BOUND: Final = 1 << 30


def read_config(folder: Path, field: str) -> ModelConfig:
    """What the engine reads of a folder; `field` is what to call it. Raises ModelRefused."""
    try:
        return read_model_config(folder)
    except EngineError as error:
        raise ModelRefused(field, error.code, str(error)) from None


def check_alike(candidate: Path, against: Path) -> None:
    """Raises ModelsDiffer unless a token's number means the same to both, ModelRefused for what is no model."""
    sizes = [
        read_config(folder, field).vocab_size for folder, field in ((candidate, "candidate"), (against, "against"))
    ]
    if sizes[0] != sizes[1]:
        raise ModelsDiffer(f"{candidate} has {sizes[0]:,} tokens and {against} has {sizes[1]:,}: take one of its kind")
    texts = [_vocabulary(folder) for folder in (candidate, against)]
    if texts[0] != texts[1]:
        raise ModelsDiffer(f"the tokenizers of {candidate} and {against} are not the same: take a model of its kind")


def open_model(folder: Path, field: str, *, longest: int, device: str) -> Engine:
    """An engine for texts of at most `longest` tokens, warmed up. Raises ModelRefused."""
    config = EngineConfig(
        max_running=RUNNING,
        max_waiting=NO_BOUND,
        token_budget=BUDGET,
        page_size=PAGE,
        kv_pages=RUNNING * -(-longest // PAGE),
        max_model_len=longest,
        device=device,
    )
    try:
        engine = Engine.from_folder(folder, config)
        engine.warm_up()
    except EngineError as error:
        raise ModelRefused(field, error.code, str(error)) from None
    return engine


def file_bytes(folder: Path) -> int:
    """Of the weights' files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Token to number; None where the folder has no tokenizer.json."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab() if file.is_file() else None
