"""A step that failed, tried again in ever smaller parts, until those at fault stand alone.

    [ a b c d ] fails ──> [ a b ] runs, is committed
                          [ c d ] fails ──> [ c ] runs, is committed
                                            [ d ] fails: d is at fault

Where memory was what lacked, one request's tokens are divided as well: what is not run now runs in the next step.
Nothing but the model is tried; an error in committing is a bug, and is not caught.
"""

from collections.abc import Callable

import torch

from penstock_engine.batch import ScheduleBatch, StepSamples
from penstock_engine.request import Generation
from penstock_engine.scheduler import Scheduler


def search(batch: ScheduleBatch, run: Callable[[ScheduleBatch], StepSamples], scheduler: Scheduler) -> None:
    """Find who makes `batch` fail, once its tokens are to be run again: they end, the others' are committed."""

    def commit(part: ScheduleBatch, samples: StepSamples) -> None:
        scheduler.launched(part)
        scheduler.commit(part, samples)
        batch.absorb(part)

    def blame(generation: Generation, cause: Exception) -> None:
        code = "out_of_memory" if lacks_memory(cause) else "forward_failed"
        problem = f"the model fails on it alone with {type(cause).__name__}: {cause}"
        scheduler.fail(generation, batch, code, problem)

    isolate(batch, run=run, commit=commit, blame=blame)


def isolate(
    batch: ScheduleBatch,
    *,
    run: Callable[[ScheduleBatch], StepSamples],
    commit: Callable[[ScheduleBatch, StepSamples], None],
    blame: Callable[[Generation, Exception], None],
) -> None:
    """Run and commit `batch` part by part, the whole of it first: some faults do not come back."""
    parts = [batch]
    while parts:
        part = _still_there(parts.pop())
        if not part.generations:
            continue
        try:
            samples = run(part)
        except Exception as cause:
            smaller = _divided(part, cause)
            parts += smaller
            if not smaller:
                blame(part.generations[0], cause)
        else:
            commit(part, samples)


def lacks_memory(cause: Exception) -> bool:
    """Whether `cause` is an allocation that failed; on a CPU torch says so in words alone."""
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)


def _still_there(part: ScheduleBatch) -> ScheduleBatch:
    """Without choices that went with another of their request."""
    return _part(part, [pair for pair in zip(part.generations, part.extend_lens, strict=True) if pair[0].row >= 0])


def _divided(part: ScheduleBatch, cause: Exception) -> list[ScheduleBatch]:
    """Two halves, the first one last; one half of a lone run, if memory lacks; or nothing."""
    pairs = list(zip(part.generations, part.extend_lens, strict=True))
    if len(pairs) > 1:
        middle = len(pairs) // 2
        return [_part(part, pairs[middle:]), _part(part, pairs[:middle])]
    (generation, extend_len) = pairs[0]
    return [_part(part, [(generation, extend_len // 2)])] if extend_len > 1 and lacks_memory(cause) else []


def _part(whole: ScheduleBatch, pairs: list[tuple[Generation, int]]) -> ScheduleBatch:
    part = ScheduleBatch(sum(extend_len for _, extend_len in pairs))
    leaders = {generation for generation, _ in pairs}
    part.twins = [(twin, leader) for twin, leader in whole.twins if twin.row >= 0 and leader in leaders]
    for generation, extend_len in pairs:
        part.add(generation, extend_len)
    part.copies = [copy for generation, _ in pairs if (copy := generation.pending_copy)]
    return part
