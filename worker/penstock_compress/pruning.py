"""A model with less of everything: feed-forward channels, attention heads, whole blocks.

What goes is what calibration says matters least:

    channels  mean x² |w|²: what a channel of the feed-forward part adds to the block's output
    heads     mean |W x|² of a group of heads that share K and V; a group goes as one, since its K and V do
    blocks    1 - mean cos(what goes in, what comes out). Source: Men et al., "ShortGPT: Layers in Large Language Models
              are More Redundant Than You Expect", 2024 (arXiv 2403.03853)

What stays takes over what it can of what goes: the columns left are fitted anew to the old outputs, by least squares
over the calibration's inputs. The checkpoint that comes of it is an ordinary one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig

from penstock_compress.blocks import Blocks
from penstock_compress.compressing import OUTSIDE, Outcome
from penstock_compress.errors import CalibrationUnusable, InvalidRecipe, SourceUnusable
from penstock_compress.grids import SMALLEST
from penstock_compress.learning import outcome_of
from penstock_compress.source import Source
from penstock_compress.statistics import InputStatistics, output_error
from penstock_compress.target import Target, finished
from penstock_compress.telling import Report, silent
from penstock_compress.training import digest_of

DAMPING: Final = 0.01  # of the inputs' mean square: how much what stays resists being fitted anew
EVEN: Final = 16  # feed-forward channels are kept in multiples of it, where the source has such a multiple
HEADS_OUT, CHANNELS_OUT = "self_attn.o_proj", "mlp.down_proj"
BUILT_LIKE_LLAMA: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")


@dataclass(frozen=True, slots=True)
class Cut:
    """How much is kept: shares of feed-forward channels and of heads, and how many blocks (None: all)."""

    keep_ffn: float = 1.0
    keep_heads: float = 1.0
    keep_layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("keep_ffn", "keep_heads"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidRecipe(name, f"must be a share above 0 and at most 1, not {getattr(self, name)}")
        if self.keep_layers is not None and self.keep_layers < 1:
            raise InvalidRecipe("keep_layers", f"must be at least 1, not {self.keep_layers}")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes that a cut changes. `per_group` query heads share one head of K and V."""

    layers: int
    groups: int
    per_group: int
    head_dim: int
    channels: int

    @classmethod
    def of(cls, source: Source) -> "Shape":
        """Raises SourceUnusable where the model is not built like Llama."""
        kind, said = source.config.get("model_type"), AutoConfig.from_pretrained(source.folder)
        if kind not in BUILT_LIKE_LLAMA:
            raise SourceUnusable(source.folder, f"is a {kind} model; pruning takes {', '.join(BUILT_LIKE_LLAMA)}")
        heads, groups = said.num_attention_heads, said.num_key_value_heads
        head_dim = getattr(said, "head_dim", None) or said.hidden_size // heads
        return cls(source.blocks, groups, heads // groups, head_dim, said.intermediate_size)

    def after(self, cut: Cut) -> "Shape":
        """The sizes that are left. Raises InvalidRecipe where they cannot be."""
        groups, layers = self.groups * cut.keep_heads, cut.keep_layers or self.layers
        if groups < 1 or abs(groups - round(groups)) > 1e-6:
            can = ", ".join(f"{count / self.groups:.4g}" for count in range(1, self.groups + 1))
            raise InvalidRecipe(
                "keep_heads",
                f"heads go in {self.groups} groups that share K and V, so it can be {can}; not {cut.keep_heads}",
            )
        if layers > self.layers:
            raise InvalidRecipe("keep_layers", f"must be at most {self.layers}, which there are; not {layers}")
        even = EVEN if self.channels % EVEN == 0 else 1
        channels = round(self.channels * cut.keep_ffn / even) * even
        if channels < 1:
            raise InvalidRecipe("keep_ffn", f"leaves none of {self.channels} channels, which go by {even}")
        return Shape(layers, round(groups), self.per_group, self.head_dim, channels)


def prune(source: Path, target: Path, cut: Cut, tokens: Tensor, report: Report = silent) -> Outcome:
    """Write what `cut` leaves of the model at `source` to the folder `target`, which is not there yet.

    `tokens` int64 [samples, length] say what matters. A run that was killed is gone on with by the same call. Memory:
    one block beyond the embeddings, and the hidden states of the calibration. Raises CompressError.
    """
    if tokens.dim() != 2:
        raise CalibrationUnusable("pruning needs calibration tokens, as int64 [samples, length]")
    opened = Source(source)
    before = Shape.of(opened)
    after = before.after(cut)
    told = {"recipe": {"method": "prune", **asdict(cut)}, "source_sha256": opened.digest, "source_bytes": opened.bytes}
    identity = digest_of(told, tokens.tolist())
    if not finished(target, identity):
        run = _Run(opened, Target(target, identity), before, after, tokens)
        kept = run.through(report)
        run.target.finish(source, {**opened.config, **_sizes(opened, after, kept)}, {**told, "kept_layers": kept})
    return outcome_of(target, opened)


def _sizes(source: Source, after: Shape, kept: list[int]) -> dict[str, Any]:
    """What config.json says otherwise. Which blocks look how far back is told one by one: a pattern would shift."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": after.layers,
        "num_attention_heads": after.groups * after.per_group,
        "num_key_value_heads": after.groups,
        "head_dim": after.head_dim,
        "intermediate_size": after.channels,
    }
    kinds = getattr(AutoConfig.from_pretrained(source.folder), "layer_types", None)
    return sizes | ({} if kinds is None else {"layer_types": [kinds[index] for index in kept]})


class _Run:
    """One model on its way through one cut."""

    def __init__(self, source: Source, target: Target, before: Shape, after: Shape, tokens: Tensor) -> None:
        self.source, self.target, self.before, self.after = source, target, before, after
        self.blocks = Blocks(source, tokens)
        self.narrows = (before.groups, before.channels) != (after.groups, after.channels)

    def through(self, report: Report) -> list[int]:
        """Write every part; the blocks that are kept, by their places in the source."""
        looked = self.source.blocks if self.after.layers < self.before.layers else 0
        total = looked + self.after.layers + 1
        kept = (
            self._kept(lambda done, _, what: report(done, total, what)) if looked else list(range(self.before.layers))
        )
        if OUTSIDE not in self.target.done:
            self.target.write(OUTSIDE, self.source.read(self.source.outside()), [])
        first = len(self.target.done) - 1
        if self.narrows and first < len(kept):
            self.blocks.begin(self.target.states(first) if first else None)
        report(looked + first + 1, total, f"block {first}")
        for place in range(first, len(kept)):
            self._block(place, kept[place])
            report(looked + place + 2, total, f"block {place}")
        return kept

    def _kept(self, report: Report) -> list[int]:
        """The blocks that change their inputs most, in their order."""
        self.blocks.begin()
        changes = []
        for index in range(self.source.blocks):
            before = self.blocks.states
            with self.blocks.block(index, self.source.block(index)) as layer:
                self.blocks.advance(index, layer)
            changes.append(influence(before, self.blocks.states))
            report(index + 1, self.source.blocks, f"influence of block {index}")
        order = sorted(range(len(changes)), key=lambda index: -changes[index])
        return sorted(order[: self.after.layers])

    def _block(self, place: int, index: int) -> None:
        """Write block `index` of the source as block `place`."""
        tensors = self.source.block(index)
        told: list[dict[str, Any]] = []
        if self.narrows:
            tensors, told = self._narrowed(index, tensors)
            self.target.keep_states(place + 1, self.blocks.states)
        prefix = self.source.prefix(place)
        named = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
        self.target.write(f"block-{place:04}", named, [{**each, "name": prefix + each["name"]} for each in told])
        self.target.drop_states(place)

    def _narrowed(self, index: int, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        with self.blocks.block(index, tensors) as layer:
            inputs = self.blocks.observe(index, layer, [HEADS_OUT, CHANNELS_OUT])
            cuts = [self._heads(tensors, inputs[HEADS_OUT]), self._channels(tensors, inputs[CHANNELS_OUT])]
            whole = dict(tensors)
            for columns, fitted in cuts:
                whole[columns.name] = columns.spread(fitted)
            layer.load_state_dict(whole, assign=True)
            self.blocks.advance(index, layer)
        told = [columns.told(tensors[columns.name], fitted, inputs[columns.layer]) for columns, fitted in cuts]
        for columns, fitted in cuts:
            tensors = columns.cut(tensors) | {columns.name: fitted}
        return tensors, told

    def _heads(self, tensors: dict[str, Tensor], inputs: InputStatistics) -> tuple["_Columns", Tensor]:
        width = self.before.per_group * self.before.head_dim
        weight = tensors[f"{HEADS_OUT}.weight"].float()
        kept = strongest(_group_sizes(weight, inputs.mean_hessian, width), self.after.groups)
        queries, keys = _runs(kept, width), _runs(kept, self.before.head_dim)
        made, shared = self.before.groups * width, self.before.groups * self.before.head_dim
        rows = {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": keys,
            "self_attn.qkv_proj": torch.cat([queries, made + keys, made + shared + keys]),
        }
        return _Columns.fitted(HEADS_OUT, tensors, queries, rows, inputs)

    def _channels(self, tensors: dict[str, Tensor], inputs: InputStatistics) -> tuple["_Columns", Tensor]:
        weight = tensors[f"{CHANNELS_OUT}.weight"].float()
        kept = strongest(inputs.mean_hessian.diagonal() * weight.pow(2).sum(0), self.after.channels)
        both = torch.cat([kept, self.before.channels + kept])
        rows = {"mlp.gate_proj": kept, "mlp.up_proj": kept, "mlp.gate_up_proj": both}
        return _Columns.fitted(CHANNELS_OUT, tensors, kept, rows, inputs)


@dataclass(frozen=True)
class _Columns:
    """The columns `kept` [k] of linear layer `layer`, of `width`, and the `rows` that make them in other layers."""

    layer: str
    width: int
    kept: Tensor
    rows: dict[str, Tensor]

    @classmethod
    def fitted(
        cls, layer: str, tensors: dict[str, Tensor], kept: Tensor, rows: dict[str, Tensor], inputs: InputStatistics
    ) -> tuple["_Columns", Tensor]:
        weight = tensors[f"{layer}.weight"]
        fitted = refit(weight.float(), inputs.mean_hessian, kept).to(weight.dtype)
        return cls(layer, weight.shape[1], kept, rows), fitted

    @property
    def name(self) -> str:
        return f"{self.layer}.weight"

    def spread(self, fitted: Tensor) -> Tensor:
        """`fitted` at its places among columns of zeros: the old shape, and what the narrow block computes."""
        whole = fitted.new_zeros(len(fitted), self.width)
        whole[:, self.kept] = fitted
        return whole

    def cut(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` of a block with no more than the rows that are left."""
        return {
            name: tensor[self.rows[name.rpartition(".")[0]]] if name.rpartition(".")[0] in self.rows else tensor
            for name, tensor in tensors.items()
        }

    def told(self, weight: Tensor, fitted: Tensor, inputs: InputStatistics) -> dict[str, Any]:
        hessian = inputs.mean_hessian
        lost = output_error(self.spread(fitted).float() - weight.float(), hessian)
        size = max(output_error(weight.float(), hessian), SMALLEST)
        return {"name": self.layer, "columns": len(self.kept), "of": self.width, "output_error": lost / size}


def influence(before: list[Tensor], after: list[Tensor]) -> float:
    """How much a block changes its inputs: 1 - the mean cosine of hidden states [..., K] before and after it."""
    cosines = [
        functional.cosine_similarity(one.float(), other.float(), dim=-1)
        for one, other in zip(before, after, strict=True)
    ]
    return 1 - float(torch.cat([cosine.flatten() for cosine in cosines]).mean())


def strongest(sizes: Tensor, count: int) -> Tensor:
    """The places of the `count` largest of `sizes`, ascending; of equal ones the first."""
    return torch.argsort(sizes, descending=True, stable=True)[:count].sort().values


def refit(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """The columns `kept` [k] of `weight` [N, K], moved so that they make up for those that go: float32 [N, k].

    Least squares over inputs of mean x xᵀ `hessian` [K, K], held to the old columns by a share of the inputs' size.
    """
    gone = torch.ones(len(hessian), dtype=torch.bool)
    gone[kept] = False
    own = hessian[kept][:, kept].clone()
    own.diagonal().add_(DAMPING * own.diagonal().mean() + SMALLEST)
    missing = weight[:, gone] @ hessian[gone][:, kept]
    moved: Tensor = torch.linalg.solve(own, missing.T).T
    return weight[:, kept] + moved


def _group_sizes(weight: Tensor, hessian: Tensor, width: int) -> Tensor:
    """The mean square of what each group of `width` columns adds to the outputs [groups]."""
    runs = [slice(begin, begin + width) for begin in range(0, weight.shape[1], width)]
    return torch.tensor([output_error(weight[:, run], hessian[run, run]) for run in runs])


def _runs(kept: Tensor, width: int) -> Tensor:
    """The places that belong to runs of `width`: [2, 5], 3 is [6, 7, 8, 15, 16, 17]."""
    return (kept[:, None] * width + torch.arange(width)).flatten()
