"""Cases of rows: samples, tokens, experts and steps, against all rows at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.bench.cases import Case, Draw, Problem, composed, problem
from robustdyn.kernels import (
    combine_experts,
    gather_rows,
    gather_tokens,
    grouped_matmul,
    masked_linear,
    masked_rnn_step,
    route_experts,
    scatter_rows,
    scatter_tokens,
)

SAMPLES, CHANNELS, SIZE = 64, 64, 14
TOKENS, WIDTH, EXPERTS = 2048, 256, 16
IMAGES, LENGTH, DIM = 8, 196, 192
STEPS, HIDDEN = 512, 256
FEATURES, BLOCK = 768, 16


def _sample_skip(active: float, draw: Draw) -> Problem:
    """A block of two convolutions for the kept samples, written in place."""
    x = draw.values(SAMPLES, SIZE, SIZE, CHANNELS).permute(0, 3, 1, 2)
    out = x.clone()  # channels-last as x
    weights = [draw.values(CHANNELS, CHANNELS, 3, 3) / (9 * CHANNELS) ** 0.5 for _ in range(2)]
    first, second = (w.to(memory_format=torch.channels_last) for w in weights)
    rows = draw.mask((SAMPLES,), active).nonzero().flatten()

    def block(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, first, padding=1).relu_(), second, padding=1)

    def sparse() -> Tensor:
        return scatter_rows(block(gather_rows(x, rows)), rows, out, in_place=True)

    return composed("gather_rows", sparse, lambda: block(x), len(rows) / SAMPLES)


def _experts(active: float, draw: Draw) -> Problem:
    """The chosen experts of every token, two layers each, against all of them without mixing."""
    k = max(1, round(active * EXPERTS))
    x = draw.values(TOKENS, WIDTH)
    up, down = (draw.values(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5 for _ in range(2))
    weights, chosen = draw.values(TOKENS, EXPERTS).softmax(1).topk(k, 1)

    def sparse() -> Tensor:
        routes = route_experts(chosen, EXPERTS)
        rows = x.index_select(0, routes.order // k)
        y = grouped_matmul(rows, up, routes.offsets, relu=True)
        y = grouped_matmul(y, down, routes.offsets)
        return combine_experts(y, routes.order, weights)

    def dense() -> Tensor:
        return torch.bmm(torch.bmm(x.expand(EXPERTS, -1, -1), up).relu_(), down)

    return composed("grouped_matmul", sparse, dense, k / EXPERTS)


def _tokens(active: float, draw: Draw) -> Problem:
    """A transformer's MLP for the kept tokens of each image."""
    k = max(1, round(active * LENGTH))
    x = draw.values(IMAGES, LENGTH, DIM)
    up, down = draw.values(4 * DIM, DIM) / DIM**0.5, draw.values(DIM, 4 * DIM) / (4 * DIM) ** 0.5
    keep = draw.values(IMAGES, LENGTH).topk(k, 1).indices.sort(1).values

    def mlp(x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, up)), down)

    def sparse() -> Tensor:
        return scatter_tokens(mlp(gather_tokens(x, keep)), keep, x)

    return composed("gather_tokens", sparse, lambda: mlp(x), k / LENGTH)


def _step(active: float, draw: Draw) -> Problem:
    x, h = draw.values(STEPS, HIDDEN), draw.values(STEPS, HIDDEN)
    w_ih, w_hh = (draw.values(3 * HIDDEN, HIDDEN) / HIDDEN**0.5 for _ in range(2))
    mask = draw.mask((STEPS,), active)

    def dense() -> Tensor:
        return torch.gru_cell(x, h, w_ih, w_hh)

    arguments = (x, [h], mask, w_ih, w_hh)
    return problem(masked_rnn_step, arguments, {}, dense, mask.double().mean().item())


def _linear(active: float, draw: Draw) -> Problem:
    """The kept blocks of a layer's outputs, as each sample chooses them."""
    x, weight = draw.values(SAMPLES, FEATURES), draw.values(FEATURES, FEATURES) / FEATURES**0.5
    kept = draw.mask((SAMPLES, FEATURES // BLOCK), active)
    part = kept.double().mean().item()
    return problem(masked_linear, (x, weight, None, kept), {}, lambda: F.linear(x, weight), part)


ROW_CASES = (
    Case("sample skip", "gather_rows", f"{SAMPLES}x{SIZE}x{SIZE}x{CHANNELS}", _sample_skip),
    Case("experts", "grouped_matmul", f"{TOKENS}x{WIDTH}, {EXPERTS} experts", _experts),
    Case("tokens", "gather_tokens", f"{IMAGES}x{LENGTH}x{DIM}", _tokens),
    Case("linear", "masked_linear", f"{SAMPLES}x{FEATURES}, blocks of {BLOCK}", _linear),
    Case("step", "masked_rnn_step", f"{STEPS}x{HIDDEN}, GRU", _step),
)
