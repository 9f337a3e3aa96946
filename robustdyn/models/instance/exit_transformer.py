"""Transformers over patches with an exit after every layer, left when sure or when exits agree."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.exit_calibration import fit_exit_shares, fit_patience
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.models.layers import Stem, conv_bn
from robustdyn.primitives import confidence, early_exits, patience
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

LAYERS = 6
# Of the exits' losses, squares of the paper's: or else the first two agree on 97 % of the images.
PATIENCE_WEIGHTS = tuple(((k + 1) / LAYERS) ** 2 for k in range(LAYERS))


class PatchTokens(nn.Module):
    """Three strided 3x3 convolutions, (B, C, H, W) -> (B, T, D): a token per 8 x 8 pixels.

    Convolutions instead of one cut into patches: Xiao et al. 2021, arXiv:2106.14881.
    """

    def __init__(self, stem: nn.Module, widths: tuple[int, int], dim: int, tokens: int):
        super().__init__()
        self.stem = stem
        self.conv = conv_bn(*widths, stride=2)
        self.patches = nn.Conv2d(widths[1], dim, 3, 2, 1)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(F.relu(self.conv(self.stem(x))))
        return x.flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Self-attention by explicit matrix products, (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, D / heads)
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Layer(nn.Module):
    """The pre-norm transformer layer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class TokenClassifier(nn.Module):
    """Norm, mean over tokens, one linear layer: (B, T, D) -> (B, K)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))


class ExitTransformer(nn.Module):
    """A classifier after every layer; subclasses say when a sample stops."""

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        widths: tuple[int, int] = (32, 64),
        dim: int = 64,
        heads: int = 4,
        layers: int = LAYERS,
    ):
        super().__init__()
        channels, height, width = input_shape
        tokens = -(-height // 8) * -(-width // 8)
        stem = Stem(channels, widths[0], mean, std, stride=2)
        first = PatchTokens(stem, widths, dim, tokens)
        body = [Layer(dim, heads) for _ in range(layers)]
        self.segments = nn.ModuleList([nn.Sequential(first, body[0]), *body[1:]])
        self.classifiers = nn.ModuleList(TokenClassifier(dim, num_classes) for _ in range(layers))


class ConfidenceTransformer(ExitTransformer):
    """Stops at the first exit whose largest probability reaches the exit's threshold."""

    thresholds: Tensor

    def __init__(self, *args, **sizes):
        super().__init__(*args, **sizes)
        self.register_buffer("thresholds", torch.full((len(self.classifiers) - 1,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        return early_exits(x, self.segments, self.classifiers, confidence(self.thresholds))


class PatienceTransformer(ExitTransformer):
    """Stops when the answer has stayed the same `times` times in a row, tested per sample."""

    times: Tensor

    def __init__(self, *args, **sizes):
        super().__init__(*args, **sizes)
        self.register_buffer("times", torch.tensor(1))

    def forward(self, x: Tensor) -> Tensor:
        times = int(self.times)
        return early_exits(x, self.segments, self.classifiers, patience(times), first=times)


_recipe = partial(
    Recipe,
    epochs=8,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    augment="none",
    precision="float32",
)


@register_model(
    family="instance.depth.early_exit",
    paper="Bakhtiarnia et al., Multi-Exit Vision Transformer, 2021, arXiv:2106.15183",
    task="image",
    recipe=_recipe(
        loss=exit_cross_entropies(weights=(1.0,) * LAYERS),
        calibrate=fit_exit_shares(measure="confidence", max_drop=0.004),
    ),
)
def exit_transformer(
    num_classes: int, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
):
    """A transformer over patches with an exit after every layer; exits when confident."""
    return ConfidenceTransformer(num_classes, input_shape, mean, std)


@register_model(
    family="instance.depth.early_exit",
    paper="Zhou et al., BERT Loses Patience (PABEE), 2020, arXiv:2006.04152",
    task="image",
    recipe=_recipe(
        loss=exit_cross_entropies(weights=PATIENCE_WEIGHTS),
        calibrate=fit_patience(max_drop=0.004),
    ),
)
def patience_transformer(
    num_classes: int, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
):
    """A transformer over patches with an exit after every layer; exits when exits agree."""
    return PatienceTransformer(num_classes, input_shape, mean, std)
