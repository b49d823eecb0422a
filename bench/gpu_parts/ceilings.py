"""A part: what this device does on large contiguous work, that all other figures are held against."""

from dataclasses import asdict

from bench.gpu_parts.job import Job, job
from bench.kernel_parts.timing import measure_ceilings


def run(job: Job) -> None:
    large = {} if job.on_gpu else {"elements": 1 << 16, "side": 64}
    job.tell("ceilings", "torch", **asdict(measure_ceilings(job.device, **large)))


if __name__ == "__main__":
    run(job())
