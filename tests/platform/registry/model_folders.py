"""Model folders for tests: small and whole, with real weights files and a real tokenizer of each kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Invoice No. 42 of the 3rd of May: total 1,234.50 EUR, due in 30 days.",
    "The quick brown fox jumps over the lazy dog; the dog does not mind.",
    "Rechnung für Müller & Söhne, Größe übergroß, naïve café, señor, ½ Stück",
    "请在三十天内付款。 合計は百円です。 Счёт на оплату. 🙂🚀",
    "  two leading spaces, a\ttab, and\na new line",
] * 4
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
    "eos_token_id": 1,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_folder(
    path: Path,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    tokenizer_config: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """A whole model folder. `config` is laid over `CONFIG`, where None removes a key; `seed` changes the weights."""
    path.mkdir(parents=True)
    settings = {key: value for key, value in (CONFIG | (config or {})).items() if value is not None}
    write_json(path / "config.json", settings)
    (tokenizer or byte_level()).save(str(path / "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(path / "tokenizer_config.json", tokens | (tokenizer_config or {}))
    if chat_template is not None:
        (path / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    _write_weights(path, shards, seed)
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_weights(path: Path, shards: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors = {f"layer.{number}": random.random((4, 8)).astype(np.float16) for number in range(2 * shards)}
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return
    places = {name: f"model-{index // 2 + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, path / file)
    write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def byte_level(*, adds_bos: bool = True) -> Tokenizer:
    """As Llama 3, Qwen and GPT-2 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<plain word>", special=False)])
    if adds_bos:
        tokenizer.post_processor = _adds_bos(tokenizer)
    return tokenizer


def byte_fallback(*, strips: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral have it; without the stripped first space, as Gemma has it."""
    learned = _learn_words()
    words = [word for word in learned["vocab"] if word not in SPECIAL and word != "<unk>"]
    vocabulary = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    model = models.BPE(
        vocab={word: number for number, word in enumerate(vocabulary)},
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prepend = [normalizers.Prepend("▁")] if strips else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = _adds_bos(tokenizer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece models that were converted with a Metaspace decoder have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    """Without a decoder."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "</s>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def unstreamable() -> Tokenizer:
    """Whose decoder looks at what comes later."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("a+"), "b")])
    return tokenizer


def _learn_words() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _adds_bos(tokenizer: Tokenizer) -> Any:
    bos = tokenizer.token_to_id("<s>")
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", bos)])
