"""A part: every kernel by itself, as `bench.kernels` measures it; what decides most comes first."""

import torch

from bench.gpu_parts.job import Job, job
from bench.kernel_parts.contest import Sizes
from bench.kernels import measured_rows

DRY = Sizes(
    device="cpu",
    dtype=torch.float32,
    hidden=64,
    inner=48,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=90,
    tokens=(3,),
    sampled=(1,),
    adapted=((3, 1),),
    decoding=((1, 20),),
    prefill=(5,),
    products=(3,),
    weight=(64, 128),
)


def run(job: Job) -> None:
    for row in measured_rows("", job.device, None if job.on_gpu else DRY):
        if row["kernel"] != "ceilings":
            job.tell("kernel", "penstock", **row)


if __name__ == "__main__":
    run(job())
