"""The tokenizer: byte-level BPE that never merges across words, so that document and answer split alike.

Words are runs of letters, digits stand alone, and runs of one mark (spaces, dots, JSON punctuation) may
merge. Every byte is in the vocabulary, so any text comes back exactly.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.invoices.generator import draw_invoice

VOCABULARY_SIZE = 768
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
CONTEXT_LENGTH = 1024

WORDS_DIGITS_MARKS = r"""\p{L}+|\p{N}|["{}:,]+| +|\.+|-+|_+|\*+|~+|\n+|[^\p{L}\p{N}]"""

CHAT_TEMPLATE = """\
{%- macro words_of(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}{%- for part in content -%}{{ part.text | trim }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role in ("system", "developer") -%}{{ "<|system|>" + words_of(message.content) }}
{%- elif message.role == "assistant" -%}{{ "<|assistant|>" + words_of(message.content) + "<|end|>" }}
{%- else -%}{{ "<|user|>" + words_of(message.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|assistant|>" }}{%- endif -%}
"""


def train_tokenizer(documents: int = 20_000, seed: int = 0) -> Tokenizer:
    """Learn the merges from training invoices and their answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS_DIGITS_MARKS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documents(documents, seed), trainer)
    return tokenizer


def _documents(count: int, seed: int) -> Iterator[str]:
    for index in range(count):
        invoice = draw_invoice(seed, index)
        yield invoice.text
        yield invoice.answer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
