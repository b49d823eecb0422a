"""A model held against another on the same text, both as they serve: by the engine's own kernels and layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import exp
from pathlib import Path

from penstock_engine import Engine, EngineError

from penstock_compress.answering import ROUNDS, TOKENS, answers, speeds
from penstock_compress.distances import Side, compare, window_rows, windows
from penstock_compress.errors import EvaluationDataUnusable, EvaluationFailed
from penstock_compress.evaluation_data import EvaluationData
from penstock_compress.evaluation_models import check_alike, file_bytes, open_model, read_config
from penstock_compress.figures import (
    Compared,
    Divergence,
    Evaluation,
    Flips,
    ModelFigures,
    Noise,
    Numbers,
    by_position,
    mean_of,
    share_of,
)
from penstock_compress.telling import Report, silent


def evaluate(
    candidate: Path,
    against: Path,
    data: EvaluationData,
    *,
    device: str = "cpu",
    noise: bool = True,
    progress: Report = silent,
) -> Evaluation:
    """The figures of the checkpoint `candidate` beside those of `against`, on `data`.

    With `noise` the latter is run again, in other batches, and held against itself. Raises CompressError.
    """
    check_alike(candidate, against)
    runs = 2 + noise
    spans = sum(map(len, windows(data.texts, window_rows(read_config(against, "against").vocab_size))))
    steps = Steps(runs * (spans + len(data.questions)) + 2 * (ROUNDS + 1), progress)
    reference = Reference(against, data, device=device, steps=steps)
    return reference.evaluate(candidate, noise=noise, steps=steps)


class Steps:
    """How far an evaluation is; tells each thousandth once."""

    def __init__(self, of: int = 1, progress: Report = silent) -> None:
        self._of, self._progress = of, progress
        self._done, self._told, self._what = 0, 0, ""

    def at(self, what: str) -> None:
        """What is done from now on."""
        self._what = what
        self._progress(self._done, self._of, what)

    def __call__(self) -> None:
        self._done += 1
        if (thousandth := 1000 * self._done // self._of) != self._told:
            self._told = thousandth
            self._progress(self._done, self._of, self._what)


class Reference:
    """The model that others are held against: opened once, and asked once, for any number of candidates."""

    def __init__(self, folder: Path, data: EvaluationData, *, device: str = "cpu", steps: Steps | None = None) -> None:
        """Raises CompressError."""
        steps = steps or Steps()
        self._folder, self._data, self._device = folder, data, device
        self._longest = _longest(data, read_config(folder, "against").max_positions)
        steps.at("loading")
        self._engine = self._open(folder, "against")
        steps.at("answers")
        with _told_as_failed():
            self._right = self._answered(self._engine, steps)

    def evaluate(
        self, candidate: Path, *, noise: bool = False, speed: bool = True, steps: Steps | None = None
    ) -> Evaluation:
        """The figures of `candidate` beside this one's; without `speed`, tokens a second are None.

        Raises CompressError.
        """
        check_alike(candidate, self._folder)
        steps = steps or Steps()
        steps.at("loading")
        engine = self._open(candidate, "candidate")
        with _told_as_failed():
            return self._evaluated(candidate, engine, noise, speed, steps)

    def _evaluated(self, candidate: Path, engine: Engine, noise: bool, speed: bool, steps: Steps) -> Evaluation:
        steps.at("distributions")
        sides = [Side(engine), Side(self._engine, alone=True)] if noise else [Side(engine)]
        found, *itself = compare(self._engine, sides, self._data.texts, steps)
        steps.at("answers")
        right = self._answered(engine, steps)
        floor = [self._noise(each, steps) for each in itself]
        steps.at("speed")
        fast = speeds([engine, self._engine], self._data.texts, steps) if speed else (None, None)
        surprises, own = [each.surprise for each in found], [each.surprise_against for each in found]
        return Evaluation(
            sequences=len(found),
            positions=sum(map(len, surprises)),
            answers=len(right),
            candidate=_figures(candidate, engine, fast[0], surprises, right),
            against=_figures(self._folder, self._engine, fast[1], own, self._right),
            divergence=Divergence.of(found),
            flips=Flips.of(right, self._right) if right else None,
            noise=floor[0] if floor else None,
            by_position=by_position(found),
        )

    def _noise(self, itself: Sequence[Compared], steps: Steps) -> Noise:
        again = self._answered(self._engine, steps, backwards=True)
        return Noise(Divergence.of(itself), Flips.of(again, self._right) if again else None)

    def _answered(self, engine: Engine, steps: Steps, *, backwards: bool = False) -> list[bool]:
        """Which questions it answers rightly."""
        questions = self._data.questions
        said = answers(engine, questions, steps, backwards=backwards)
        return [self._data.is_right(answer, question) for answer, question in zip(said, questions, strict=True)]

    def _open(self, folder: Path, field: str) -> Engine:
        return open_model(folder, field, longest=self._longest, device=self._device)


@contextmanager
def _told_as_failed() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise EvaluationFailed(str(error)) from error


def _longest(data: EvaluationData, context: int) -> int:
    """Tokens that an engine has to take; what is measured of its speed goes a little beyond the data."""
    lengths = [len(text.tokens) for text in data.texts]
    lengths += [len(each.prompt) + each.most_tokens for each in data.questions]
    if not data.texts or max(lengths) > context:
        raise EvaluationDataUnusable(f"should be texts of 2 to {context:,} tokens, which is what the model takes")
    return min(context, max(lengths) + TOKENS)


def _figures(
    folder: Path, engine: Engine, speed: float | None, surprises: Sequence[Numbers], right: Sequence[bool]
) -> ModelFigures:
    return ModelFigures(
        path=str(folder),
        bytes=file_bytes(folder),
        held_bytes=engine.weight_bytes,
        kv_token_bytes=engine.kv_token_bytes,
        tokens_per_second=speed,
        perplexity=mean_of(surprises).through(exp),
        exact_match=share_of(sum(right), len(right)) if right else None,
        kernels=dict(engine.kernels),
    )
