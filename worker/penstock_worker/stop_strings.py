"""Finding stop strings in text that comes in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string; what may begin one is held back until it is known.

        pushed:   H e l l o , | S T | O P   and on      stop string: STOP
        let out:  H e l l o , |     |                   held: ST, then matched

    The stop string that is complete first wins, however the text is cut into pieces; of two that end
    together, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """More text; returns what may be sent. Nothing may be sent any more once `matched`."""
        if self.matched or not self._stops:
            return "" if self.matched else text
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            return buffer[: min(found)[1]]
        kept = max(_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - kept :]
        return buffer[: len(buffer) - kept]

    def flush(self) -> str:
        """The end of the text: what was held back began no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
