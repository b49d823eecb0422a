"""The platform's tax: tokens in a second through REST, over those of the engine alone on the same prompts."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.registry.tokenizer import ModelTokenizer

from bench.engine_parts.shapes import SHAPES
from bench.engine_parts.shapes import write as write_shape
from bench.platform_parts.clients import Caller, at_once, timed
from bench.platform_parts.house import DEMO_MODEL, REAL_WORKER, ROOT, House, job_body, until
from bench.platform_parts.submits import SAMPLE

BENCH_SHAPE: Final = "llama-0.5b"
_CLIENTS: Final = 8
_LOOK_SECONDS: Final = 0.25  # the clock is the database's, so nothing is measured by when it is looked


@dataclass(frozen=True)
class Load:
    """So many jobs at once of so many output tokens, on an engine with so many slots."""

    jobs: int
    output: int
    slots: int
    rounds: int
    prompt_characters: int = 200


@dataclass(frozen=True)
class Tax:
    """Tokens in a second, medians over the rounds, in which engine and platform took turns."""

    load: Load
    engine_tokens_per_second: float
    rest_tokens_per_second: float
    rest_over_engine: float
    engine_rounds: list[float]
    rest_rounds: list[float]


def measure_tax(house: House, folder: Path, load: Load) -> Tax:
    """Both have the model loaded; while one works the other waits."""
    tokenizer = ModelTokenizer.from_folder(folder)
    engine_rounds, rest_rounds = [], []
    with house.front(), house.worker(*REAL_WORKER, worker_slots=load.slots), _engine(folder, load.slots) as ask:
        for number in range(-1, load.rounds):  # the first warms up
            prompts = [_prompt(number, at, load) for at in range(load.jobs)]
            ids = [tokenizer.encode_input({"prompt": prompt}) for prompt in prompts]
            engine_rounds.append(ask({"prompts": ids, "output": load.output}))
            rest_rounds.append(_through_rest(house, prompts, load))
    tokens = load.jobs * load.output
    alone, rest = ([tokens / seconds for seconds in rounds[1:]] for rounds in (engine_rounds, rest_rounds))
    ours, theirs = statistics.median(rest), statistics.median(alone)
    return Tax(
        load,
        round(theirs, 1),
        round(ours, 1),
        round(ours / theirs, 3),
        [round(one, 1) for one in alone],
        [round(one, 1) for one in rest],
    )


def _through_rest(house: House, prompts: list[str], load: Load) -> float:
    """Seconds from the first submit to the last job's end."""
    house.forget_jobs()

    def some(caller: Caller, number: int) -> list[float]:
        bodies = [job_body(prompt, load.output, ignore_eos=True) for prompt in prompts[number::_CLIENTS]]
        return [timed(caller.submit, body) for body in bodies]

    at_once(house, _CLIENTS, some)
    until(lambda: house.count("queued", "running") == 0, "the jobs' end", pause=_LOOK_SECONDS)
    assert house.count("succeeded") == load.jobs, "not every job succeeded"
    return house.seconds_of_jobs()[0]


def _prompt(number: int, at: int, load: Load) -> str:
    """Different from its first character on, so that no prefix is cached on either side."""
    return f"{number * load.jobs + at:07} {SAMPLE}"[: load.prompt_characters]


@contextmanager
def _engine(folder: Path, slots: int) -> Iterator[Any]:
    """A process with the engine alone; gives what asks it for the seconds of a load."""
    command = [sys.executable, "-m", "bench.platform_parts.engine_alone", str(folder), "--slots", str(slots)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, questions = process.stdout, process.stdin
        assert json.loads(answers.readline()) == {"ready": True}

        def ask(load: dict[str, Any]) -> float:
            print(json.dumps(load), file=questions, flush=True)
            return float(json.loads(answers.readline())["seconds"])

        try:
            yield ask
        finally:
            questions.close()


def shape_folder(cache: Path, shape: str = BENCH_SHAPE) -> Path:
    """A model of the engine bench's shape with a tokenizer that has a text for each of its tokens."""
    weights, folder = cache / shape, cache / f"{shape}-with-text"
    if not weights.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_shape(SHAPES[shape], weights)
    folder.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            os.link(weights / name, folder / name)
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"Ġword{token}": token for token in range(len(vocabulary), SHAPES[shape].vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
