"""What two real engines tell of one answer: a version against itself is noise, a damaged copy of it is not."""

import shutil
from pathlib import Path

import pytest
import torch
from penstock.jobs.journal import PromptToken
from penstock.rollouts.scoring import Scored, compare
from penstock_engine import Engine, EngineConfig
from penstock_worker.engine_requests import request_from, scores_of
from penstock_worker.messages import Sampling, Submit
from penstock_worker.running import prompt_tokens
from safetensors.torch import load_file, save_file

from tests.engine.tiny import TinyModel, make_tiny, random_prompt

PROMPT, ANSWER = 24, 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("champion"), "llama")


def damaged(model: TinyModel, folder: Path, noise: float) -> Path:
    """A copy whose weights are off by so much of their spread."""
    shutil.copytree(model.folder, folder)
    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(3)
    weights = load_file(path)
    for name, weight in weights.items():
        if weight.dim() > 1:
            weights[name] = weight + noise * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def told_by(folder: Path, tokens: list[int], beside: int = 0) -> tuple[PromptToken, ...]:
    """What a worker journals of such a score, with so many other requests in the engine."""
    engine = Engine.from_folder(folder, EngineConfig(dtype="float32", max_running=8))
    scored = Submit(
        "shadow", tokens, [], Sampling(logprobs=None, prompt_logprobs=20), "", 0, "shadow", scored_from=PROMPT
    )
    others = [
        Submit(f"real-{nth}", random_prompt(9 + nth, seed=nth), [], Sampling(max_tokens=4), "", 0, "interactive")
        for nth in range(beside)
    ]
    for submit in [*others, scored]:
        engine.submit(request_from(submit))
    found = []
    while engine.has_work:
        found += [scores_of(each) for each in engine.step().prompt_logprobs]
    (scores,) = found
    return prompt_tokens(tokens, scores)


@pytest.fixture(scope="module")
def answer(model: TinyModel) -> list[int]:
    """Prompt and answer, as the champion writes them greedily."""
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32"))
    prompt = random_prompt(PROMPT, seed=1)
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    engine.submit(request_from(Submit("job", prompt, [], sampling, "", 0, "interactive")))
    written: list[int] = []
    while engine.has_work:
        written += [delta.token_id for delta in engine.step().deltas]
    return prompt + written


def scored(model: TinyModel, candidate: Path, tokens: list[int], beside: int = 0) -> Scored:
    return compare(told_by(model.folder, tokens), told_by(candidate, tokens, beside), tokens[PROMPT:])


def test_a_version_against_itself_is_noise(model: TinyModel, answer: list[int]) -> None:
    same = scored(model, model.folder, answer, beside=5)
    assert same.tokens == ANSWER
    assert 0 <= same.mean_kld < 1e-5
    assert (same.disagreement, same.parting, same.mean_rank) == (0, None, 1)
    assert abs(same.logprob_difference) < 1e-5


def test_a_damaged_copy_is_told_apart_by_how_much_it_is_damaged(
    model: TinyModel, answer: list[int], tmp_path: Path
) -> None:
    little = scored(model, damaged(model, tmp_path / "little", 0.02), answer)
    much = scored(model, damaged(model, tmp_path / "much", 0.5), answer)
    assert 1e-5 < little.mean_kld < 0.1 * much.mean_kld
    assert much.disagreement > little.disagreement
    assert much.parting is not None
    assert much.parting.reference[0].token_id == answer[PROMPT + much.parting.position], "its own greedy choice"
    assert much.parting.candidate[0].token_id != much.parting.reference[0].token_id
    assert much.logprob_difference < 0
