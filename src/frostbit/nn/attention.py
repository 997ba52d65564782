"""Multi-head attention with binary projections."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.nn.functional import Dense, quantized_map
from frostbit.nn.layers import BinaryLayer, Linear
from frostbit.quantizers import Quantizer


class MultiheadAttention(BinaryLayer, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose q, k, v projections are binary; ``out_proj`` is a binary `Linear`.

    Query, key and value share one input quantizer. Scores and softmax stay real. Parameter names are torch's:
    ``in_proj_weight`` (or ``q_proj_weight``, ``k_proj_weight``, ``v_proj_weight`` for differing widths).
    """

    def set_binary(self, **binary: Any) -> None:
        """Set the binary side of the projections; ``out_proj`` is set only where it is not binary yet."""
        super().set_binary(**binary)
        self.projection_quantizers = nn.ModuleDict().train(self.training)
        if not self._qkv_same_embed_dim and self.weight_quantizer is not None:
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                self.projection_quantizers[name] = copy.deepcopy(self.weight_quantizer)
            self.weight_quantizer = None
        if not isinstance(self.out_proj, BinaryLayer):
            # it reads another tensor: a quantizer of its own
            Linear.from_float(self.out_proj, **binary | {"input_quantizer": copy.deepcopy(self.input_quantizer)})

    def latents(self) -> Iterator[tuple[str, nn.Parameter, Quantizer]]:
        """Yield the fused projection, or the three separate ones."""
        if self.weight_quantizer is not None:
            yield "in_proj_weight", self.get_parameter("in_proj_weight"), self.weight_quantizer
        for name, quantizer in self.projection_quantizers.items():
            assert isinstance(quantizer, Quantizer)
            yield name, self.get_parameter(name), quantizer

    def _project(self, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Return q, k, v, each ``[batch, tokens, embed]``."""
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))

        def scaled(w: Tensor) -> Tensor | None:
            return None if self.weight_scale is None else w.detach().abs().mean(1, keepdim=True)

        if not self._qkv_same_embed_dim:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
            found = [quantizer for _, _, quantizer in self.latents()]
            quantizers: list[Quantizer | None] = [*found] if found else [None, None, None]
            return [
                quantized_map(Dense(), x, w, b, self.input_quantizer, q, scaled(w), self.accumulator(w.shape[1], q))
                for x, w, b, q in zip(inputs, weights, biases, quantizers, strict=True)
            ]
        weight, quantizer, scale = self.in_proj_weight, self.weight_quantizer, scaled(self.in_proj_weight)
        accumulator = self.accumulator(self.embed_dim)
        if inputs[0] is inputs[1] is inputs[2]:
            both = self.input_quantizer, quantizer
            fused = quantized_map(Dense(), inputs[0], weight, self.in_proj_bias, *both, scale, accumulator)
            return list(fused.chunk(3, -1))
        # One quantizer (and one mask) covers the fused weight, so quantize it once and map the parts as real.
        quantized = weight if quantizer is None else quantizer(weight, scale)
        scales = [None] * 3 if scale is None else list(scale.chunk(3))
        return [
            quantized_map(Dense(), x, w, b, self.input_quantizer, None, s, accumulator)
            for x, w, b, s in zip(inputs, quantized.chunk(3), biases, scales, strict=True)
        ]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and returns as in `torch.nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask and needs it, found attn_mask=None")
        same = query is key is value
        batched = query.dim() == 3

        def to_batch_first(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else (x if self.batch_first else x.transpose(0, 1))

        first = to_batch_first(query)
        q, k, v = self._project((first, first, first) if same else (first, to_batch_first(key), to_batch_first(value)))
        batch, length = q.shape[:2]
        mask = self._merge_masks(attn_mask, key_padding_mask, batch, q)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(batch, 1, -1)], 1)
        if self.add_zero_attn:
            zero = k.new_zeros(batch, 1, k.shape[-1])
            k, v = torch.cat([k, zero], 1), torch.cat([v, zero], 1)
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, self.dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        y = self.out_proj(y.transpose(1, 2).reshape(batch, length, self.embed_dim))
        if not batched:
            return y.squeeze(0), weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, batch: int, like: Tensor
    ) -> Tensor | None:
        """Return one additive mask, broadcast to ``[batch, heads, queries, keys]``, or ``None``."""

        def additive(mask: Tensor) -> Tensor:
            if mask.dtype != torch.bool:
                return mask.to(like.dtype)
            return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))

        merged = None
        if attn_mask is not None:
            merged = additive(attn_mask)
            merged = merged[None, None] if merged.dim() == 2 else merged.unflatten(0, (batch, self.num_heads))
        if key_padding_mask is not None:
            padding = additive(key_padding_mask.reshape(batch, 1, 1, -1))
            merged = padding if merged is None else merged + padding
        return merged
