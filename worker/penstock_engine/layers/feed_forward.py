"""Feed-forward blocks: one for every token, or several experts of which each token takes a few."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from penstock_kernels import silu_mul
from torch import Tensor, nn

from penstock_engine.forward_batch import padded_size
from penstock_engine.layers.linear import Linear
from penstock_engine.model_config import ExpertsConfig, ModelConfig


class Names(NamedTuple):
    """What a checkpoint calls the three products."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


PLAIN = Names()


def gelu_mul(gate_up: Tensor) -> Tensor:
    """GeGLU's gate, in its tanh form: `gelu(gate) * up` [tokens, width] from `gate_up` [tokens, 2 * width]."""
    gate, up = torch.chunk(gate_up, 2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


GATES = {"silu": silu_mul, "gelu_pytorch_tanh": gelu_mul}


class FeedForward(nn.Module):
    """A gated block of `inner` width; gate and up in one product. `names` None: the checkpoint has them so too."""

    def __init__(
        self,
        config: ModelConfig,
        inner: int,
        *,
        names: Names | None = PLAIN,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.mlp_bias
        gate_up = {names.gate: inner, names.up: inner} if names else None
        down = {names.down: hidden} if names else None
        self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias, dtype=dtype, device=device, parts=gate_up)
        self.down_proj = Linear(inner, hidden, bias=bias, dtype=dtype, device=device, parts=down)
        self.activation, self.gate_mul = config.activation, GATES[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_mul(self.gate_up_proj(x)))
        return out


class SparseFeedForward(nn.Module):
    """Each token goes through the `chosen` experts that the router likes best, and their answers are mixed.

    Source: Shazeer et al., "Outrageously Large Neural Networks", 2017; the routing of Mixtral and Qwen3-MoE.
    """

    def __init__(
        self,
        config: ModelConfig,
        experts: ExpertsConfig,
        *,
        names: Names = PLAIN,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.chosen, self.normalised = experts.chosen, experts.normalised
        self.gate = Linear(config.hidden_size, experts.count, bias=False, dtype=dtype, device=device)
        inner = experts.intermediate_size
        blocks = (FeedForward(config, inner, names=names, dtype=dtype, device=device) for _ in range(experts.count))
        self.experts = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self._route(x)
        pairs, counts = _by_expert(chosen, len(self.experts))
        out, at = torch.zeros_like(x), 0
        for expert, count in enumerate(counts):
            if count:
                mine = pairs[at : at + count]  # token * chosen + place among its choices
                answer = self._expert(expert, x, mine // self.chosen)
                out.index_add_(0, mine // self.chosen, answer * weights.index_select(0, mine))
            at += count
        return out

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [tokens * chosen, 1], experts [tokens * chosen]) of each token's choices."""
        likings, chosen = torch.softmax(self.gate(x), dim=-1, dtype=torch.float32).topk(self.chosen, dim=-1)
        if self.normalised:
            likings = likings / likings.sum(dim=-1, keepdim=True)
        return likings.to(x.dtype).view(-1, 1), chosen.flatten()

    def _expert(self, expert: int, x: Tensor, tokens: Tensor) -> Tensor:
        """One expert's answers to `tokens`, run at a padded size: see `forward_batch` for what new sizes cost."""
        padded = F.pad(tokens, (0, padded_size(len(tokens)) - len(tokens)))
        answer: Tensor = self.experts[expert](x.index_select(0, padded))
        return answer[: len(tokens)]


def _by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """Indices into `chosen` in the order of the experts, and how many each has: every expert's tokens in one piece."""
    counts: list[int] = torch.bincount(chosen, minlength=experts).tolist()
    return chosen.argsort(stable=True), counts
