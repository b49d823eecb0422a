"""Philox4x32-10: noise as a function of (seed, position), not of what was drawn before.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The same numbers come out on every
device, in any batch and after any resume.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words, held in 64 bits so that products do not overflow

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
PURPOSES = {"token": 0}
Purpose = Literal["token"]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Ten rounds over arrays of counters and keys; four words each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW, (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform_bits(
    seed: NDArray[np.uint64],
    output_index: NDArray[np.int64],
    choice: NDArray[np.integer],
    purpose: Purpose = "token",
) -> NDArray[np.int64]:
    """24 random bits per entry: key = the 64-bit seed, counter = (output index, choice, purpose, 0)."""
    zero = np.zeros(len(seed), np.uint64)
    counter = (output_index.astype(np.uint64), choice.astype(np.uint64), zero + np.uint64(PURPOSES[purpose]), zero)
    first = philox4x32(counter, (seed & _LOW, seed >> _SHIFT))[0]
    return (first >> np.uint64(8)).astype(np.int64)


def uniforms(
    seed: NDArray[np.uint64], output_index: NDArray[np.int64], choice: NDArray[np.integer]
) -> NDArray[np.float32]:
    """The numbers in [0, 1) that the bits of a token's draw stand for."""
    return uniform_bits(seed, output_index, choice).astype(np.float32) * np.float32(2.0**-24)
