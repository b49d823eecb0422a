"""The layers over Triton's kernels say what `transformers` says: interpreted here, on CPU tensors in float32."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import penstock_engine.engine as engine_module
import pytest
import torch
import torch.nn.functional as F
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request, forward_batch
from penstock_engine.forward_batch import TokenPlaces
from penstock_engine.kernel_choice import choose_kernels
from penstock_engine.layers import gpu
from penstock_engine.models import CausalLM
from penstock_engine.models.gemma import GemmaNorm
from penstock_kernels.gpu.activations import silu_mul
from penstock_kernels.gpu.fused_qkv import norm_rotary_store
from penstock_kernels.gpu.rms_norm import rms_norm
from penstock_kernels.gpu.rows import take_rows
from torch import Tensor

from tests.engine.driving import greedy, parity, run_all
from tests.engine.parity_table import LOGPROB_TOLERANCE
from tests.engine.tiny import SCORES, VOCABULARY, TinyModel, random_prompt

LAYERS = 2
WINDOW = 11
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
GEMMA2 = {**SLIDING, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma3": ("gemma3", {**SLIDING, "query_pre_attn_scalar": 24}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "sliding_window": WINDOW}),
    "phi3-partial-rotary": ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
}
# Triton's interpreter is numpy, which says that exp(90) is infinite, as a sigmoid on a GPU finds without a word.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
SCORED = random_prompt(20, seed=3)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines choose as they would on an H200, for a model that lies on the CPU."""

    def chosen(model: CausalLM, config: EngineConfig, **given: Any) -> None:
        choose_kernels(model, replace(config, device="cuda"), **given)

    monkeypatch.setattr(engine_module, "choose_kernels", chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def make(models: Any) -> Callable[[str], TinyModel]:
    def tiny(name: str) -> TinyModel:
        kind, overrides = CASES[name]
        model: TinyModel = models(kind, num_hidden_layers=LAYERS, **overrides)
        return model

    return tiny


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel of attention ran."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> None:
        right = getattr(gpu, name)

        def run(*given: Any, **named: Any) -> None:
            counts[name] += 1
            right(*given, **named)

        monkeypatch.setattr(gpu, name, run)

    counted("decode_attention")
    counted("extend_attention")
    return counts


def score_error(model: TinyModel) -> float:
    """The largest difference of a log probability from the reference's, over one prefill."""
    ours = Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=4)).score(SCORED)
    theirs = model.logprobs(SCORED)[range(len(SCORED) - 1), SCORED[1:]]
    return float((torch.tensor(ours) - theirs).abs().max())


@pytest.mark.usefixtures("on_a_gpu")
class TestParity:
    @pytest.mark.parametrize("name", CASES)
    def test_tokens_and_logprobs_equal_transformers(
        self, make: Callable[[str], TinyModel], launched: Counter[str], name: str
    ) -> None:
        """Two prompts in chunks, the second with a cached prefix, mixed with decoding; then decoding alone."""
        model = make(name)
        config = EngineConfig(dtype="float32", token_budget=12, max_running=3, kv_pages=12)
        engine = Engine.from_folder(model.folder, config)
        stem = random_prompt(19, seed=19)
        requests = [Request("a", stem, greedy(4)), Request("b", [*stem[:17], 5, 6], greedy(3))]
        run = run_all(engine, [*requests, Request("c", [8], greedy(5))])
        assert run.failed == []
        found = parity(model, requests, run)

        assert (found.wrong, found.tokens) == (0, 7)
        assert found.worst_logprob < LOGPROB_TOLERANCE
        assert engine.stats().tokens_cached >= 16
        assert any(counts.decoding and counts.tokens > counts.requests for counts in run.steps), "no mixed step"
        assert min(launched["decode_attention"], launched["extend_attention"]) >= LAYERS
        assert launched.total() == LAYERS * len([counts for counts in run.steps if counts.requests])

    def test_the_lane_of_fixed_bits_has_one_kernel(
        self, make: Callable[[str], TinyModel], launched: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The engine's own trial passes, once no product's sums have an order: torch and numpy each have several."""
        linear, matmul = F.linear, np.matmul

        def exact_linear(x: Tensor, weight: Tensor, _: None) -> Tensor:
            return linear(x.double(), weight.double()).float()

        def exact_matmul(a: Any, b: Any, dtype: Any) -> Any:
            return matmul(a, b, dtype=np.float64).astype(dtype)

        monkeypatch.setattr(F, "linear", exact_linear)
        monkeypatch.setattr(np, "matmul", exact_matmul)
        config = EngineConfig(dtype="float32", kv_pages=12, deterministic=True)
        Engine.from_folder(make("llama").folder, config)
        assert launched["extend_attention"] >= 5 * LAYERS
        assert launched["decode_attention"] == 0


def instead(name: str, **other: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """The kernel `name` is told `other` instead of some of its named arguments: a value, or a function of it."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(gpu, name)

        def told(*given: Any, **named: Any) -> Any:
            changed = {key: wrong(named[key]) if callable(wrong) else wrong for key, wrong in other.items()}
            return right(*given, **{**named, **changed})

        monkeypatch.setattr(gpu, name, told)

    return mutate


def runs(wrong: Callable[[forward_batch.Runs], forward_batch.Runs]) -> Callable[[pytest.MonkeyPatch], None]:
    right = forward_batch._runs_of
    return lambda monkeypatch: monkeypatch.setattr(forward_batch, "_runs_of", lambda *given: wrong(right(*given)))


def stored(wrong: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    """`wrong` changes (positions, cos, sin, pool, slots)."""
    right = norm_rotary_store
    return lambda monkeypatch: monkeypatch.setattr(
        gpu, "norm_rotary_store", lambda qkv, *given, **named: right(qkv, *wrong(*given), **named)
    )


def one_rotary_table(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu.PoolAttention.__init__

    def init(attention: Any, *given: Any, **named: Any) -> None:
        right(attention, *given, **named)
        attention.rope = 0

    monkeypatch.setattr(gpu.PoolAttention, "__init__", init)


def hidden_rows_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(table: Tensor, indices: Tensor, *scale: float) -> Tensor:
        return take_rows(table, indices if len(table) == VOCABULARY else indices.roll(1), *scale)

    monkeypatch.setattr(gpu, "take_rows", turned)


def no_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(x: Tensor, residual: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        return rms_norm(x, *given, **named), residual

    monkeypatch.setattr(gpu, "rms_norm_residual", alone)


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a slot off by one": (
        "llama",
        stored(lambda positions, cos, sin, pool, slots: (positions, cos, sin, pool, slots ^ 1)),
    ),
    "positions": ("llama", stored(lambda positions, *others: (positions + (positions > 0), *others))),
    "cosines for sines": ("llama", stored(lambda positions, cos, sin, *others: (positions, sin, cos, *others))),
    "no head norms": ("gemma3", instead("norm_rotary_store", norms=None)),
    "the other rotary table": ("gemma3", one_rotary_table),
    "norms without the one": ("gemma3", lambda monkeypatch: monkeypatch.setitem(gpu.PLUS_ONE, GemmaNorm, False)),
    "embeddings not scaled": (
        "gemma3",
        lambda monkeypatch: monkeypatch.setattr(gpu, "take_rows", lambda table, at, *_: table.index_select(0, at)),
    ),
    "the other gate": ("gemma3", lambda monkeypatch: monkeypatch.setitem(gpu.GATES, "gelu_pytorch_tanh", silu_mul)),
    "a window one too wide": ("gemma3", instead("extend_attention", window=lambda window: window and window + 1)),
    "no soft cap": ("gemma2", instead("extend_attention", softcap=None)),
    "another scale": ("gemma2", instead("extend_attention", scale=0.25)),
    "pages in another order": ("llama", runs(lambda right: right._replace(page_table=right.page_table.flip(1)))),
    "logits of another row": ("llama", hidden_rows_turned),
    "no residual": ("llama", no_residual),
    "a context one short": ("llama", runs(lambda right: right._replace(context_lens=right.context_lens - 1))),
}


@pytest.mark.usefixtures("on_a_gpu")
class TestTheCheckItself:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
    def test_a_prefill_is_right(self, make: Callable[[str], TinyModel], name: str) -> None:
        assert score_error(make(name)) < LOGPROB_TOLERANCE

    @pytest.mark.parametrize("name", MUTANTS)
    def test_wrong_wiring_shows(
        self, make: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        kind, mutate = MUTANTS[name]
        mutate(monkeypatch)
        assert score_error(make(kind)) > 100 * LOGPROB_TOLERANCE


class TestWhatIsChosen:
    def chosen(self, model: TinyModel, **settings: Any) -> dict[str, str]:
        return Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=4, **settings)).kernels

    def test_they_run_unless_torch_is_asked_for(self, on_a_gpu: None, make: Callable[[str], TinyModel]) -> None:
        model = make("llama")
        counts = {"Linear": str(4 * LAYERS + 1), "PoolAttention": str(LAYERS)}
        assert (
            self.chosen(model)
            == self.chosen(model, kernels="compiled")
            == {"layers": "compiled by Triton", "tiles": "in code", "scores": SCORES, **counts}
        )
        assert self.chosen(model, kernels="torch")["layers"] == "torch (as asked for)"

    def test_what_they_lack_is_named(
        self, on_a_gpu: None, make: Callable[[str], TinyModel], models: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide = models("llama", num_hidden_layers=1, head_dim=272)
        assert "head_dim is 272" in self.chosen(wide)["layers"]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "compute capability 7.5" in self.chosen(make("llama"))["layers"]
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(InvalidConfig, match="triton is not installed") as caught:
            self.chosen(make("llama"), kernels="compiled")
        assert caught.value.field == "kernels"

    def test_a_machine_without_triton_runs_the_others(self, make: Callable[[str], TinyModel]) -> None:
        code = (
            "import sys; sys.modules['triton'] = None\n"
            "from penstock_engine import Engine, EngineConfig\n"
            f"Engine.from_folder({str(make('llama').folder)!r}, EngineConfig(kernels='torch'))\n"
            "print('penstock_kernels.gpu' in sys.modules)\n"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == "False\n"


def test_runs_are_told_by_their_rows() -> None:
    pages = torch.arange(1, 13, dtype=torch.int32).view(3, 4).numpy()
    rows, positions = (torch.tensor(each).numpy() for each in ([2, 2, 2, 0, 1], [5, 6, 7, 33, 15]))
    found = forward_batch._runs_of(TokenPlaces(pages, rows, positions, positions, 272), 16, torch.device("cpu"))
    assert found.page_table.tolist() == [[9, 10, 11], [1, 2, 3], [5, 6, 7]]
    assert (found.query_starts.tolist(), found.context_lens.tolist()) == ([0, 3, 4, 5], [8, 34, 16])
    assert (found.max_query_len, found.max_context_len) == (3, 34)
    assert {each.dtype for each in found[:3]} == {torch.int32}
