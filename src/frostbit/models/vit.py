"""Vision transformers of the ViT and DeiT family, at any size.

Dosovitskiy et al., *An Image is Worth 16x16 Words* (arXiv 2010.11929); Touvron et al., *Training data-efficient image
transformers* (arXiv 2012.12877), without the distillation token. Parameter names and shapes are timm's, with one fused
projection for query, key and value, so its checkpoints load strictly into a model of the same size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.errors import UsageError
from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_

LARGE_PATCHES_FROM = 128
_HEAD_WIDTH = 64  # of all three members
_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cut images into square patches and map each to a token.

    Args:
        in_channels: channels of the images.
        width: entries of a token.
        patch_size: height and width of a patch.
    """

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, H·W / patch_size², width]``, row by row."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention; one linear layer gives query, key and value.

    Args:
        width: entries of a token.
        heads: number of heads, a divisor of ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class MLP(nn.Module):
    """``fc2(GELU(fc1(x)))`` of each token, four times as wide inside.

    Args:
        width: entries of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        width: entries of a token.
        heads: number of heads, a divisor of ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches, a class token and learned positions, ``depth`` blocks, a norm, and one linear layer on the class token.

    Left to its defaults `frostbit.binarize_` makes the linear layers of all blocks binary; patch embedding, class
    token, positions, norms and head stay real. Without ``weight_scale="mean_abs"`` the scores of binary queries and
    keys are so large that the softmax passes hardly any gradient.

    Args:
        name: the model's public name, for messages.
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, a multiple of ``patch_size``.
        in_channels: channels of the images, >= 1.
        width: entries of a token, a multiple of ``heads``.
        depth: number of blocks, >= 1.
        heads: number of attention heads, >= 1; ``None`` for one in 64 entries.
        patch_size: height and width of a patch, >= 1; ``None`` for 16 in images of 128 pixels and more, else 4.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`. Class token and positions
            always are ~ N(0, 0.02²).

    Raises:
        UsageError: a value below its bound, no multiple, or an unknown ``init``.
    """

    #: read by `binarize_`
    binarize_defaults: ClassVar[dict[str, Any]] = {"keep": ("patch_embed.proj", "head")}

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        input_size: int,
        in_channels: int,
        width: int,
        depth: int,
        heads: int | None,
        patch_size: int | None,
        init: str,
    ) -> None:
        super().__init__()
        check_at_least(name, "num_classes", num_classes, 1)
        check_at_least(name, "in_channels", in_channels, 1)
        check_at_least(name, "width", width, 1)
        check_at_least(name, "depth", depth, 1)
        check_at_least(name, "input_size", input_size, 1)
        heads = check_at_least(name, "heads", max(width // _HEAD_WIDTH, 1) if heads is None else heads, 1)
        if patch_size is None:
            patch_size = 16 if input_size >= LARGE_PATCHES_FROM else 4
        check_at_least(name, "patch_size", patch_size, 1)
        for argument, value, factor, divisor in (
            ("width", width, "heads", heads),
            ("input_size", input_size, "patch_size", patch_size),
        ):
            if value % divisor:
                needed = f"{argument} to be a multiple of {factor}={divisor}"
                raise UsageError(f"model {name!r} needs {needed}, found {value}")
        self.input_shape = (in_channels, input_size, input_size)

        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (input_size // patch_size) ** 2, width))
        self.patch_embed = PatchEmbed(in_channels, width, patch_size)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, num_classes)
        initialize_(self, init)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, *input_shape]`` to logits ``[N, num_classes]``.

        Raises:
            UsageError: images of another shape: there is one position for each patch.
        """
        if x.shape[1:] != self.input_shape:
            raise UsageError(f"this transformer takes images of shape {self.input_shape}, found {tuple(x.shape[1:])}")
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def _register(name: str, own_width: int) -> None:
    @MODELS.register(name)
    def build(
        *,
        num_classes: int = 10,
        input_size: int = 32,
        in_channels: int = 3,
        width: int | None = None,
        depth: int = 12,
        heads: int | None = None,
        patch_size: int | None = None,
        init: str = "vit",
    ) -> VisionTransformer:
        return VisionTransformer(
            name,
            num_classes=num_classes,
            input_size=input_size,
            in_channels=in_channels,
            width=own_width if width is None else width,
            depth=depth,
            heads=heads,
            patch_size=patch_size,
            init=init,
        )


for _name, _width in (("vit_tiny", 192), ("vit_small", 384), ("vit_base", 768)):
    _register(_name, _width)
