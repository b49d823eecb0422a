"""EleutherAI's evaluation harness against the running house: its figures are those of `transformers` itself."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.platform.openai_api.conftest import House

TEXTS: Final = (
    "Acme Ltd\nInvoice no.: 8651\nTotal:",
    "Foxglove Trading LLC\nBill\nBalance due: PLN",
    "Globex\nInvoice 12 of 3 May 2024\nAmount payable:",
    "Hooli GmbH\nRechnung\nDatum:",
)
CHOICES: Final = (" 12.50 EUR", " 3,965.06", " Invoice", " the")
LENGTH: Final = 8


class Oracle:
    """The model as `transformers` runs it, in float32, one sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def loglikelihood(self, context: str, continuation: str) -> float:
        """Of the continuation after the context, split into tokens as the harness splits them."""
        begun = len(self.tokenizer(context, add_special_tokens=False).input_ids)
        ids = self.tokenizer(context + continuation, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logprobs = self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[place - 1, ids[place]]) for place in range(begun, len(ids)))

    def greedy(self, context: str) -> str:
        """The likeliest text after it, to the end of the line."""
        ids = self.tokenizer(context, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = self._model.generate(ids, max_new_tokens=LENGTH, do_sample=False)
        text: str = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return text.split("\n")[0]


@pytest.fixture(scope="module")
def oracle(model_folder: Path) -> Oracle:
    return Oracle(model_folder)


@pytest.fixture(scope="module")
def evaluated(house: House, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness reports of both tasks, with a sample for each document."""
    folder = tmp_path_factory.mktemp("lm_eval")
    _write_tasks(folder, oracle)
    arguments = {
        "model": "tiny",
        "base_url": f"{house.url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(house.folder),
        "max_length": 512,
        "max_retries": 1,
    }
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = ["run", "--model", "local-completions", "--model_args", given, "--tasks", "line_choice,line_text"]
    command += [
        "--batch_size",
        "4",
        "--include_path",
        str(folder),
        "--output_path",
        str(folder / "out"),
        "--log_samples",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    environment = os.environ | offline | {"OPENAI_API_KEY": house.key}
    ran = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command], env=environment, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return _read(folder / "out")


def _write_tasks(folder: Path, oracle: Oracle) -> None:
    """Each task's right answers are those of the model for some lines and other ones for the rest."""
    choices = [{"line": text, "choices": CHOICES, "right": number % 3} for number, text in enumerate(TEXTS)]
    said = [oracle.greedy(text) for text in TEXTS]
    texts = [
        {"line": text, "answer": said[number] if number % 2 else "nothing of it"} for number, text in enumerate(TEXTS)
    ]
    common = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{line}}", "target_delimiter": ""}
    tasks: dict[str, tuple[Sequence[Any], dict[str, Any]]] = {
        "line_choice": (
            choices,
            {
                "output_type": "multiple_choice",
                "doc_to_choice": "choices",
                "doc_to_target": "right",
                "metric_list": [{"metric": "acc"}],
            },
        ),
        "line_text": (
            texts,
            {
                "output_type": "generate_until",
                "doc_to_target": "answer",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": LENGTH, "temperature": 0},
                "metric_list": [{"metric": "exact_match"}],
            },
        ),
    }
    for name, (documents, task) in tasks.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        kwargs = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | common | kwargs | task))


def _read(folder: Path) -> dict[str, Any]:
    (results,) = folder.rglob("results_*.json")
    report: dict[str, Any] = json.loads(results.read_text())
    samples = {}
    for name in ("line_choice", "line_text"):
        (path,) = folder.rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return {"results": report["results"], "samples": samples}


def test_likelihoods_and_accuracy_are_those_of_transformers(evaluated: dict[str, Any], oracle: Oracle) -> None:
    right = 0
    samples = evaluated["samples"]["line_choice"]
    assert len(samples) == len(TEXTS)
    for sample in samples:
        wanted = [oracle.loglikelihood(sample["doc"]["line"], choice) for choice in CHOICES]
        told = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert told == pytest.approx(wanted, abs=1e-3)
        right += wanted.index(max(wanted)) == sample["doc"]["right"]
    assert evaluated["results"]["line_choice"]["acc,none"] == right / len(TEXTS)


def test_texts_and_accuracy_are_those_of_transformers(evaluated: dict[str, Any], oracle: Oracle) -> None:
    for sample in evaluated["samples"]["line_text"]:
        assert sample["filtered_resps"] == [oracle.greedy(sample["doc"]["line"])]
    assert evaluated["results"]["line_text"]["exact_match,none"] == 0.5
