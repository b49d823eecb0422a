"""A second version of the demo's model, to be rolled out: never sure of anything, and deaf to one word."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from penstock.cli.demo_damage import deaf_to, read_version, token_ids, write_version

DEAF_TO = "SEK"
"""Jobs that hold this word fail on it: its embedding is no number."""
_NORM = "model.norm.weight"
_HALF = np.uint16(1 << 7)  # one less in the exponent of a bfloat16


def rival_of(source: Path, target: Path) -> Path:
    """Its last norm is halved, and so are its logits: each choice is the same, with less confidence in it."""
    tensors = read_version(source)
    norm = tensors[_NORM]
    tensors[_NORM] = replace(norm, data=(np.frombuffer(norm.data, "<u2") - _HALF).tobytes())
    return write_version(source, target, deaf_to(tensors, token_ids(source, [DEAF_TO])))
