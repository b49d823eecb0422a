"""Calibration: a model's blocks, run one after the other over all sequences, with one block in memory at a time.

`transformers`' own modules run, so any model whose blocks are `model.layers` can be calibrated. A first pass in which
every block only notes how it is called tells the embeddings, masks and angles; after it, a block is called with what it
was called with then, and the hidden states that the blocks before it made.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from penstock_compress.errors import SourceUnusable
from penstock_compress.source import Source
from penstock_compress.statistics import InputStatistics


class Blocks:
    """The blocks of `source`. `tokens` int64 [sequences, length] calibrate."""

    def __init__(self, source: Source, tokens: Tensor) -> None:
        self._source, self._tokens = source, tokens
        config = AutoConfig.from_pretrained(source.folder)
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(config, dtype=source.dtype).eval()
        self._body = self._model.get_decoder()
        self._layers: list[nn.Module] = list(self._body.layers)
        self._norm = self._body.norm
        self._calls: list[dict[str, Any]] = []
        self.states: list[Tensor] = []

    def begin(self, states: list[Tensor] | None = None) -> None:
        """Learn how each block is called; `states` are the hidden states where a killed run had come to."""
        self._prepare()
        recorders = [_Recorder(layer) for layer in self._layers]
        self._body.layers, self._body.norm = nn.ModuleList(recorders), nn.Identity()
        embedded = []
        with torch.no_grad():
            for row in self._tokens:
                self._body(input_ids=row[None], use_cache=False)
                embedded.append(recorders[0].hidden)
        self._calls = [recorder.call for recorder in recorders]
        self.states = embedded if states is None else states

    @contextmanager
    def block(self, index: int, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Block `index` with these tensors, for as long as the context lasts."""
        layer = self._layers[index]
        missing = layer.load_state_dict(dict(tensors), strict=False, assign=True)
        if missing.missing_keys or missing.unexpected_keys:
            names = ", ".join([*missing.missing_keys, *missing.unexpected_keys][:4])
            raise SourceUnusable(
                self._source.folder,
                f"has blocks that are not stored as they run ({names}), which only 'rtn' compresses",
            )
        try:
            yield layer
        finally:
            layer.to("meta")

    def observe(self, index: int, layer: nn.Module, names: list[str]) -> dict[str, InputStatistics]:
        """Statistics of the inputs of the linear layers `names`; those that share their inputs share them."""
        inputs: dict[str, InputStatistics] = {}
        latest: list[tuple[Tensor, InputStatistics]] = []

        def noted(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                x = arguments[0]
                if latest and latest[-1][0] is x:
                    inputs.setdefault(name, latest[-1][1])
                    return
                statistics = inputs.setdefault(name, InputStatistics.of_width(x.shape[-1]))
                statistics.add(x)
                latest[:] = [(x, statistics)]

            return note

        hooks = [layer.get_submodule(name).register_forward_pre_hook(noted(name)) for name in names]
        try:
            for _ in self._run(index, layer, self.states):
                pass
        finally:
            for hook in hooks:
                hook.remove()
        return inputs

    def advance(self, index: int, layer: nn.Module, cache: Any = None) -> None:
        """Run the block as it is now; what it makes is what the next one gets. `cache` is told its keys and values."""
        self.states = list(self._run(index, layer, self.states, past_key_values=cache))

    def through(self, index: int, layer: nn.Module, states: list[Tensor]) -> list[Tensor]:
        """What the block makes of `states`, one for each sequence in their order."""
        return list(self._run(index, layer, states))

    def _run(self, index: int, layer: nn.Module, states: list[Tensor], **others: Any) -> Iterator[Tensor]:
        for state in states:
            with torch.no_grad():
                out = layer(state, **{**self._calls[index], **others})
            yield out[0] if isinstance(out, tuple) else out

    def logits(self, state: Tensor) -> Tensor:
        """What follows each position, float32 [positions, vocabulary], from what the last block made of a sequence."""
        if self._body.norm is not self._norm:
            self._prepare_head()
        with torch.no_grad():
            logits: Tensor = self._model(inputs_embeds=state, use_cache=False).logits[0].float()
        return logits

    def _prepare_head(self) -> None:
        """Give memory to what runs after the blocks, and take these out."""
        self._body.norm, self._body.layers = self._norm, nn.ModuleList()
        self._model.load_state_dict(self._source.read(self._source.outside()), strict=False, assign=True)
        self._model.tie_weights()

    def _prepare(self) -> None:
        """Give memory to what runs before the blocks: embeddings and angles."""
        embedding = self._model.get_input_embeddings()
        name = next((name for name in self._source.outside() if name.endswith("embed_tokens.weight")), None)
        if name is None or not hasattr(self._body, "rotary_emb"):
            raise SourceUnusable(self._source.folder, "is not built like Llama, which only 'rtn' compresses")
        weight = self._source.read([name])[name]
        embedding.load_state_dict({"weight": weight}, strict=False, assign=True)
        for part, module in list(self._body.named_children()):
            if part.startswith("rotary_emb"):
                setattr(self._body, part, type(module)(config=self._model.config))
        for buffer, value in list(embedding.named_buffers()):
            if value.is_meta:  # a scale that Gemma multiplies its embeddings by
                setattr(embedding, buffer, torch.tensor(embedding.scalar_embed_scale, dtype=weight.dtype))


class _Recorder(nn.Module):
    """Stands where a block stood, and keeps what it is called with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hidden = torch.empty(0)
        self.call: dict[str, Any] = {}
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden: Tensor, **call: Any) -> Tensor:
        self.hidden, self.call = hidden, call
        return hidden
