"""The model that the house ships, on the invoices that it is shown with."""

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.samples import draw_samples
from examples.invoices.scoring import MAX_ANSWER_TOKENS, prompt_ids
from tests.engine.driving import run_all

GREEDY = SamplingParams(temperature=0, max_tokens=MAX_ANSWER_TOKENS, logprobs=5)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    return [Request(str(at), prompt_ids(tokenizer, each), GREEDY) for at, each in enumerate(draw_samples()[:8])]


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def test_greedy_tokens_equal_generate(requests: list[Request], reference: PreTrainedModel) -> None:
    engine = Engine.from_folder(MODEL_FOLDER, EngineConfig(dtype="float32", token_budget=64))
    run = run_all(engine, requests)
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        with torch.inference_mode():
            out = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False
            )
        assert run.tokens(request.id) == out[0, len(request.prompt_ids) :].tolist()
        assert run.finish_reason(request.id) == "stop"


def test_bfloat16_leaves_the_reference_only_for_a_candidate_of_its(
    requests: list[Request], reference: PreTrainedModel
) -> None:
    """At the first divergence from float32 each side's token is among the other's first five."""
    engine = Engine.from_folder(MODEL_FOLDER, EngineConfig(dtype="bfloat16"))
    run = run_all(engine, requests)
    for request in requests:
        with torch.inference_mode():
            logits = reference(torch.tensor([[*request.prompt_ids, *run.tokens(request.id)]])).logits[0]
        for delta, row in zip(run.deltas[request.id], logits[len(request.prompt_ids) - 1 : -1], strict=True):
            if delta.token_id != int(row.argmax()):
                assert delta.token_id in row.topk(5).indices.tolist()
                assert int(row.argmax()) in [token for token, _ in delta.top_logprobs]
                break
