"""The decoder that Llama and its relatives share: pre-norm attention and feed-forward blocks on a residual stream."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from penstock_engine.forward_batch import ForwardBatch
from penstock_engine.layers.linear import Embedding, Linear
from penstock_engine.layers.norm import RMSNorm
from penstock_engine.layers.rotary import RotaryEmbedding
from penstock_engine.layers.self_attention import Angles
from penstock_engine.model_config import ModelConfig
from penstock_engine.models.causal_lm import CausalLM

Block = Callable[[int], nn.Module]  # a layer's index to the layer


class DecoderLayer(nn.Module):
    """One block: attention, then feed-forward, each behind a norm that first adds to the residual."""

    def __init__(
        self,
        config: ModelConfig,
        attention: nn.Module,
        feed_forward: nn.Module,
        *,
        norm: type[RMSNorm] = RMSNorm,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.input_layernorm = norm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.self_attn = attention
        self.post_attention_layernorm = norm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)
        self.mlp = feed_forward

    def forward(
        self, x: Tensor, residual: Tensor, angles: tuple[Angles, ...], batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, angles, batch)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm: token ids to hidden states [tokens, hidden]."""

    def __init__(
        self,
        config: ModelConfig,
        block: Block,
        *,
        embedding: type[Embedding],
        norm: type[RMSNorm],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(block(at) for at in range(config.layers))
        self.norm = norm(config.hidden_size, config.norm_eps, dtype=dtype, device=device)

    def forward(self, angles: tuple[Angles, ...], batch: ForwardBatch) -> Tensor:
        x = self.embed_tokens(batch.input_ids)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer(x, residual, angles, batch)
        if batch.sample_at is not None:
            x, residual = x.index_select(0, batch.sample_at), residual.index_select(0, batch.sample_at)
        return self.norm.add(x, residual)[0]


class SoftCap(nn.Module):
    """Presses values into (-cap, cap)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.cap) * self.cap


class DecoderLM(CausalLM):
    """A native model. `block(layer)` builds each layer.

    Modules are named as in the checkpoint; `spelling` maps those parts of a name that a family's checkpoints have
    otherwise.
    """

    def __init__(
        self,
        config: ModelConfig,
        positions: int,
        block: Block,
        *,
        embedding: type[Embedding] = Embedding,
        norm: type[RMSNorm] = RMSNorm,
        spelling: Mapping[str, str] | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config, self.spelling = config, dict(spelling or {})
        self.model = Decoder(config, block, embedding=embedding, norm=norm, dtype=dtype, device=device)
        ropes = [config.rope, *([config.local_rope] if config.local_rope else [])]
        tables = (RotaryEmbedding(rope, config.head_dim, positions, dtype=dtype, device=device) for rope in ropes)
        self.rotary = nn.ModuleList(tables)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
        self.cap = SoftCap(config.logits_softcap) if config.logits_softcap else nn.Identity()
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.logits(self.states(batch))

    def states(self, batch: ForwardBatch) -> Tensor:
        """Normed hidden states of the tokens to be sampled after, [padded sampled, hidden]."""
        angles = tuple(table(batch.positions) for table in self.rotary)
        states: Tensor = self.model(angles, batch)
        return states

    def logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.cap(self.lm_head(states).float())
        return logits

    def checkpoint_views(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, the memory to fill) for every tensor that the checkpoint must hold."""
        for name, module in self.named_modules():
            tied = module is self.lm_head and self.config.tied_embeddings
            if isinstance(module, Linear) and not tied:
                for spelt, view in module.checkpoint_views(name):
                    yield self._spelt(spelt), view
            elif isinstance(module, RMSNorm | Embedding):
                yield self._spelt(f"{name}.weight"), module.weight

    def linear_parts(self) -> Iterator[tuple[str, Linear]]:
        """(name in the checkpoint, the layer that it is a part of) of every matrix that may be stored in fewer bits."""
        for name, module in self.named_modules():
            if isinstance(module, Linear) and module is not self.lm_head:
                for spelt, _ in module.checkpoint_views(name):
                    if spelt.endswith(".weight"):
                        yield self._spelt(spelt).removesuffix(".weight"), module

    def _spelt(self, name: str) -> str:
        for ours, theirs in self.spelling.items():
            name = name.replace(ours, theirs)
        return name
