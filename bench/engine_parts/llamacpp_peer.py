"""A contestant: llama.cpp through llama-cpp-python, on a GGUF file.

Runs in the peers' environment (`make bench-peers`):
PEERS_PYTHON -m bench.engine_parts.llamacpp_peer FILE.gguf --threads N --sequences N --context N

Prefill packs as many prompts as a physical batch of llama.cpp's default size (512 tokens) holds; decoding is one call
per token of all sequences, as its own batched-bench does. The tokens that are fed back are the load's own, not
sampled: sampling would cost llama.cpp time that this does not charge it for.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found,unused-ignore]  # in the peers' environment alone
import numpy as np

from bench.engine_parts.protocol import Load, Measured, Ready, serve

PHYSICAL_BATCH = 512


class LlamaCpp:
    """One model, and one context that every load finds empty."""

    def __init__(self, file: Path, threads: int, sequences: int, context: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {file}"
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context = self._open(threads, sequences, context)
        self._batch = llama_cpp.llama_batch_init(PHYSICAL_BATCH, 0, 1)

    def measure(self, load: Load) -> Measured:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        prompts = load.prompts(self._vocabulary)
        first_tokens: list[int] = []
        prefill_steps: list[float] = []
        together = max(1, PHYSICAL_BATCH // load.prompt)
        for at in range(0, load.batch, together):
            members = range(at, min(at + together, load.batch))
            tokens = [(prompts[each][to], to, each) for each in members for to in range(load.prompt)]
            prefill_steps.append(self._decode(tokens, last=load.prompt - 1))
            first_tokens += [self._likeliest((row + 1) * load.prompt - 1) for row in range(len(members))]
        decode_steps = [self._decode(self._next(load, prompts, to), last=0) for to in range(load.output - 1)]
        return Measured(sum(prefill_steps) + sum(decode_steps), decode_steps, first_tokens)

    def _open(self, threads: int, sequences: int, context_len: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * context_len
        params.n_batch = params.n_ubatch = PHYSICAL_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = sequences
        params.kv_unified = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        assert context, f"llama.cpp cannot open a context of {params.n_ctx} tokens"
        return context

    @staticmethod
    def _next(load: Load, prompts: list[list[int]], to: int) -> list[tuple[int, int, int]]:
        """One token of each sequence: (token, position, sequence)."""
        return [(prompt[to % load.prompt], load.prompt + to, each) for each, prompt in enumerate(prompts)]

    def _decode(self, tokens: list[tuple[int, int, int]], last: int) -> float:
        """Seconds to run `tokens`, with logits wherever a position is `last` or later."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, (token, position, sequence) in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = position >= last
        start = time.perf_counter()
        code = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        assert code == 0, f"llama_decode answers {code}"
        return seconds

    def _likeliest(self, at: int) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, at), (self._vocabulary,))
        return int(logits.argmax())


def start(file: Path, threads: int, sequences: int, context: int) -> Ready:
    measure = LlamaCpp(file, threads, sequences, context).measure
    return Ready(measure, about={"system": llama_cpp.llama_print_system_info().decode()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: start(args.file, args.threads, args.sequences, args.context))


if __name__ == "__main__":
    main()
