"""What the engine is held to on its bench shape, and the ratios that the rows give."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from bench.engine_parts.decode import Row

Measure = Literal["tokens_per_s", "decode_tokens_per_s"]


@dataclass(frozen=True)
class Ratio:
    """One contestant's figure over another's, at one batch."""

    key: str
    ours: str
    theirs: str
    batch: int
    measure: Measure


@dataclass(frozen=True)
class Target:
    """`key` is to be at least, or at most, `bound`."""

    key: str
    at: Literal["least", "most"]
    bound: float

    def met(self, value: float | None) -> bool | None:
        """None where nothing was measured."""
        if value is None:
            return None
        return value >= self.bound if self.at == "least" else value <= self.bound


BATCHES = (1, 8, 32)
OWN, GENERATE, GENERATE_BATCH = "penstock bf16", "transformers generate", "transformers generate_batch"

# Against transformers with the prefill; against llama.cpp decoding alone, for that is what its users measure.
RATIOS = (
    *(Ratio(f"ratio_generate_b{at}", OWN, GENERATE, at, "tokens_per_s") for at in BATCHES),
    *(Ratio(f"ratio_generate_batch_b{at}", OWN, GENERATE_BATCH, at, "tokens_per_s") for at in BATCHES),
    Ratio("ratio_generate_int8_b32", "penstock int8", GENERATE, 32, "tokens_per_s"),
    *(Ratio(f"ratio_llamacpp_b{at}", OWN, "llama.cpp bf16", at, "decode_tokens_per_s") for at in BATCHES),
    *(
        Ratio(f"ratio_llamacpp_int8_b{at}", "penstock int8", "llama.cpp q8_0", at, "decode_tokens_per_s")
        for at in BATCHES
    ),
    *(
        Ratio(f"ratio_llamacpp_int4_b{at}", "penstock int4", "llama.cpp q4_0", at, "decode_tokens_per_s")
        for at in BATCHES
    ),
)

TARGETS = (
    Target("ratio_generate_b32", "least", 2.0),
    Target("ratio_generate_int8_b32", "least", 3.0),
    Target("ratio_llamacpp_b1", "least", 0.95),
    Target("ratio_llamacpp_b8", "least", 1.2),
    Target("ratio_llamacpp_b32", "least", 1.8),
    Target("ratio_llamacpp_int8_b32", "least", 3.0),
    Target("ratio_llamacpp_int4_b1", "least", 0.95),
    Target("ratio_static", "least", 1.8),
    Target("latency_over_static", "most", 1.0),
    Target("ratio_request", "least", 5.0),
    Target("latency_over_request", "most", 1.0),
    Target("prefix_computed_over_optimal", "most", 1.04),
    Target("kv_waste", "most", 0.04),
    Target("overhead_share", "most", 0.10),
)

# Of formats beside bfloat16, on the bench shape: see `schemes`.
SCHEME_TARGETS = (Target("ratio_int4_b1", "least", 2.5), Target("ratio_int8_b32", "least", 1.5))


def speed_ratios(rows: Iterable[Row]) -> dict[str, float | None]:
    """Every ratio, of the medians that the table shows; None where either side was not measured."""
    found = {(row.contestant, row.batch): row for row in rows}

    def figure(contestant: str, ratio: Ratio) -> float | None:
        row = found.get((contestant, ratio.batch))
        return None if row is None else getattr(row, ratio.measure)

    return {each.key: over(figure(each.ours, each), figure(each.theirs, each)) for each in RATIOS}


def over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else round(ours / theirs, 3)


def verdicts(values: Mapping[str, float | None], targets: Iterable[Target] = TARGETS) -> list[dict[str, object]]:
    """Each target beside what was measured."""
    return [{**asdict(each), "value": values.get(each.key), "met": each.met(values.get(each.key))} for each in targets]
