"""Arrays reach the device side by side, at places that the same shapes find again."""

import numpy as np
import pytest
import torch
from penstock_engine.staging import ALIGNMENT, Array, send, send_into, staged_bytes


def arrays(rows: int) -> list[Array]:
    draw = np.random.default_rng(rows)
    return [
        draw.integers(-9, 9, rows),
        draw.random(rows, np.float32),
        draw.integers(0, 9, (rows, 5), np.int32)[:, ::2],
        np.zeros(0, np.int64),
        draw.random(1, np.float32),
    ]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_all_arrive_as_they_were(rows: int) -> None:
    sent = arrays(rows)
    landed = torch.full((staged_bytes(sent) + 64,), 255, dtype=torch.uint8)
    for tensor, array in zip(send_into(landed, sent), sent, strict=True):
        assert (tensor.shape, tensor.numpy().dtype) == (array.shape, array.dtype)
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.data_ptr() % ALIGNMENT == landed.data_ptr() % ALIGNMENT
    assert bool((landed[staged_bytes(sent) :] == 255).all())


def test_what_is_sent_again_lies_where_it_lay() -> None:
    landed = torch.zeros(staged_bytes(arrays(3)), dtype=torch.uint8)
    first = send_into(landed, arrays(3))
    changed = [each + 1 for each in arrays(3)]
    for kept, now, array in zip(first, send_into(landed, changed), changed, strict=True):
        assert kept.data_ptr() == now.data_ptr()
        assert np.array_equal(kept.numpy(), array)


def test_buffers_too_small_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        send_into(torch.zeros(8, dtype=torch.uint8), arrays(3))


def test_a_cpu_takes_them_as_they_lie() -> None:
    array = np.arange(5)
    (tensor,) = send([array], torch.device("cpu"))
    assert tensor.data_ptr() == array.ctypes.data
