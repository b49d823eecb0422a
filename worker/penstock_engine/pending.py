"""A step that was launched: what is still to be launched of it, and what the host learns in the end.

    launch    the model runs on every scheduled token
    choose    the next tokens are chosen from its logits, and set out for the host beside what the device computes next
    result    they are there: the one place where the host waits for the device

`choose` may come as late as one likes: when it does, every token before the one to be chosen must be known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock_engine.batch import StepSamples


class Delivery:
    """Tensors on their way to the host; on a CPU they are there.

    On a GPU they travel over a `stream` of their own into pinned memory, so that the next step need not wait for them.
    Where there are none, what was launched before is waited for all the same.
    """

    def __init__(self, tensors: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._tensors = list(tensors)
        if stream is not None:
            self._send(stream)

    def take(self) -> list[Tensor]:
        """The tensors on the host, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors

    def _send(self, stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for at, tensor in enumerate(self._tensors):
                tensor.record_stream(stream)  # or its memory might be another's before it was read
                landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._tensors[at] = landed.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's gap
            self._arrived.record(stream)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was chosen and scored, on its way, and how to read it."""

    delivery: Delivery
    told: Callable[[list[Tensor]], StepSamples]


class Pending:
    """One launched step. Made by `ModelRunner.launch`; `ended` is called when its result is there."""

    def __init__(self, choose: Callable[[], Answer], ended: Callable[[], None]) -> None:
        self._choose: Callable[[], Answer] | None = choose
        self._ended = ended
        self._answer: Answer | None = None

    def choose(self) -> None:
        """Launch the choice of tokens, unless that was done."""
        self._chosen()

    def result(self) -> StepSamples:
        """What came of the step. Raises what went wrong on the device."""
        answer = self._chosen()
        samples = answer.told(answer.delivery.take())
        self._ended()
        return samples

    def _chosen(self) -> Answer:
        if self._answer is None:
            assert self._choose is not None, "what could not be chosen is not asked for again"
            choose, self._choose = self._choose, None  # with it go the logits, before the next step has its own
            self._answer = choose()
        return self._answer
