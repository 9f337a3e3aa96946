"""Models with exits: MACs by hand for chosen decisions, and what is special in each mechanism."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.models.instance.branchynet import BranchyNet
from robustdyn.models.instance.cascade import Cascade
from robustdyn.models.instance.exit_transformer import (
    Attention,
    ConfidenceTransformer,
    PatienceTransformer,
)
from robustdyn.models.instance.msdnet import MSDNet
from robustdyn.models.instance.multistage_channels import MultiStageChannels

CLASSES = 3
STATISTICS = {"mean": (0.3,), "std": (0.4,)}
IMAGE = {"num_classes": CLASSES, "in_channels": 1, **STATISTICS}


def conv(inputs, outputs, size, *, kernel=3):
    """MACs of a convolution with an output of size x size."""
    return kernel**2 * inputs * outputs * size**2


def block(inputs, outputs, size):
    """MACs of a basic block; its shortcut is a convolution where the channels change."""
    shortcut = conv(inputs, outputs, size, kernel=1) if inputs != outputs else 0
    return conv(inputs, outputs, size) + conv(outputs, outputs, size) + shortcut


def cascade():
    return Cascade(**IMAGE, sizes=((8,), (8, 16)))


CASCADE = (  # by network, on 8 x 8
    conv(1, 8, 4) + block(8, 8, 4) + 8 * CLASSES,
    conv(1, 8, 4) + block(8, 8, 4) + block(8, 16, 2) + 16 * CLASSES,
)


def branchynet():
    return BranchyNet(**IMAGE, widths=(8, 16, 24))


BRANCHYNET = (  # by segment with its head, on 16 x 16
    conv(1, 8, 8) + block(8, 8, 8) + conv(8, 16, 4) + 16 * CLASSES,
    block(8, 16, 4) + block(16, 16, 4) + conv(16, 32, 2) + 32 * CLASSES,
    block(16, 24, 2) + 24 * CLASSES,
)


def msdnet():
    return MSDNet(**IMAGE, width=8, growth=4, scales=2, layers=2, head_width=8)


def _head(channels):
    return conv(channels, 8, 2) + conv(8, 8, 1) + 8 * CLASSES


MSDNET = (  # on 16 x 16: scales of 8 x 8 and 4 x 4
    conv(1, 8, 8) + conv(8, 16, 4)  # 8, 16 channels
    + conv(8, 4, 8) + conv(16, 4, 4) + conv(8, 4, 4)  # 12, 24
    + _head(24),
    conv(12, 4, 8) + conv(24, 4, 4) + conv(12, 4, 4)  # 16, 32
    + conv(32, 16, 4, kernel=1)  # the finest is dropped: 16
    + conv(16, 8, 4)  # 24
    + _head(24),
    conv(24, 8, 4) + _head(32),
)  # fmt: skip


def multistage():
    return MultiStageChannels(**IMAGE, groups=3, layers=((24, 2), (48, 2)))


MULTISTAGE = tuple(  # on 8 x 8: group g reads the image, then g + 1 groups of 8 channels
    conv(1, 8, 4) + conv(8 * (g + 1), 16, 2) + 16 * (g + 1) * CLASSES for g in range(3)
)

TRANSFORMER_SIZES = {"widths": (8, 8), "dim": 12, "heads": 3, "layers": 4}


def confidence_transformer():
    return ConfidenceTransformer(CLASSES, (1, 16, 16), **STATISTICS, **TRANSFORMER_SIZES)


def patience_transformer():
    return PatienceTransformer(CLASSES, (1, 16, 16), **STATISTICS, **TRANSFORMER_SIZES)


TOKENS, DIM = 4, 12
LAYER = TOKENS * (3 + 1 + 2 + 2) * DIM**2 + 2 * TOKENS**2 * DIM + DIM * CLASSES  # with its exit
TRANSFORMER = (conv(1, 8, 8) + conv(8, 8, 4) + conv(8, DIM, 2) + LAYER, *[LAYER] * 3)

BY_HAND = {
    "cascade": (cascade, 8, CASCADE),
    "branchynet": (branchynet, 16, BRANCHYNET),
    "msdnet": (msdnet, 16, MSDNET),
    "multistage_channels": (multistage, 8, MULTISTAGE),
    "exit_transformer": (confidence_transformer, 16, TRANSFORMER),
}


def built(make):
    """The model in eval mode, with weights that are the same in every call."""
    torch.manual_seed(0)
    return make().eval()


def stopping_at(model, place):
    """The model with thresholds that make every sample stop at one exit."""
    on, stop = (1e-6, 1e6) if isinstance(model, BranchyNet) else (1 - 1e-6, 1e-6)
    model.thresholds.fill_(stop)
    model.thresholds[:place] = on
    return model


@pytest.mark.parametrize("name", BY_HAND)
@torch.no_grad()
def test_macs_by_hand_at_every_exit(name):
    make, size, parts = BY_HAND[name]
    x = torch.rand(2, 1, size, size)
    for place in range(len(parts)):
        with rd.trace() as trace:
            logits = stopping_at(built(make), place)(x)
        assert trace.exits[place].taken.all()
        torch.testing.assert_close(logits, trace.exits[place].logits)
        assert trace.macs().tolist() == [sum(parts[: place + 1])] * 2
        assert trace.max_macs() == sum(parts)


@pytest.mark.parametrize("times", [1, 2])
@torch.no_grad()
def test_macs_by_hand_where_exits_agree(times):
    model = built(patience_transformer)
    model.times.fill_(times)
    for classifier, answer in zip(model.classifiers, [0, 1, 1, 1], strict=True):
        nn.init.zeros_(classifier.linear.weight)
        classifier.linear.bias.copy_(F.one_hot(torch.tensor(answer), CLASSES))
    with rd.trace() as trace:
        model(torch.rand(2, 1, 16, 16))
    assert trace.macs().tolist() == [sum(TRANSFORMER[: times + 2])] * 2
    assert list(trace.decisions) == [f"exit{k}" for k in range(times, 3)]


def test_a_cascade_reuses_nothing():
    model = built(cascade)
    x = torch.rand(2, 1, 8, 8)
    with rd.trace() as trace:
        model(x)
    for exit, network in zip(trace.exits, model.networks, strict=True):
        torch.testing.assert_close(exit.logits, network(x))
    (first,) = torch.autograd.grad(
        trace.exits[1].logits.sum(), [model.networks[0][-1].weight], allow_unused=True
    )
    assert first is None
    assert trace.max_macs() > max(CASCADE)


@torch.no_grad()
def test_a_branch_is_left_by_entropy_not_by_confidence():
    """With the same largest probability, the answer between two classes is the surer one."""
    model = built(branchynet)
    head = model.heads[0][-1]
    nn.init.zeros_(head.weight)
    model.thresholds.fill_(0.8)
    stops = []
    for p in ([0.5, 0.5 - 1e-6, 1e-6], [0.5, 0.25, 0.25]):  # entropies log 2 and 1.5 log 2
        head.bias.copy_(torch.tensor(p).log())
        with rd.trace() as trace:
            model(torch.rand(1, 1, 16, 16))
        stops.append(bool(trace.exits[0].taken))
    assert stops == [True, False]


@torch.no_grad()
def test_dense_layers_keep_what_there_is_and_parts_drop_the_finest_scale():
    model, seen = built(msdnet), []
    x = torch.rand(2, 1, 16, 16)
    for segment in model.segments:
        for layer in segment:
            x = layer(x)
            seen.append(x)
    sizes = [[(*part.shape[1:3],) for part in state] for state in seen]
    assert sizes == [
        [(8, 8), (16, 4)],
        [(12, 8), (24, 4)],
        [(16, 8), (32, 4)],
        [(16, 4)],
        [(24, 4)],
        [(32, 4)],
    ]
    for k in (0, 1, 3, 4):
        for before, after in zip(*seen[k : k + 2], strict=True):
            torch.testing.assert_close(after[:, : before.shape[1]], before)


@torch.no_grad()
def test_classifiers_of_msdnet_read_the_coarsest_scale_alone():
    head = built(msdnet).heads[0]
    fine, coarse = torch.rand(2, 12, 8, 8), torch.rand(2, 24, 4, 4)
    torch.testing.assert_close(head((fine, coarse)), head((2 * fine, coarse)))
    assert not torch.allclose(head((fine, coarse)), head((fine, 2 * coarse)))


@torch.no_grad()
def test_a_group_of_channels_reads_only_groups_up_to_its_own():
    """Weights as one matrix are block lower-triangular: later groups change no earlier stage."""
    x = torch.rand(2, 1, 8, 8)
    for changed in range(3):
        model = built(multistage)
        with rd.trace() as before:
            model(x)
        for parameter in model.stages[changed].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        with rd.trace() as after:
            model(x)
        same = [
            torch.allclose(a.logits, b.logits)
            for a, b in zip(before.exits, after.exits, strict=True)
        ]
        assert same == [stage < changed for stage in range(3)]


@torch.no_grad()
def test_stages_add_channels_and_recompute_none():
    model, state = built(multistage), torch.rand(2, 1, 8, 8)
    states = []
    for stage in model.stages:
        state = stage(state)
        states.append(state)
    assert [[part.shape[1] for part in state] for state in states] == [
        [1, 8, 16],
        [1, 16, 32],
        [1, 24, 48],
    ]
    for before, after in pairwise(states):
        for old, new in zip(before, after, strict=True):
            assert torch.equal(new[:, : old.shape[1]], old)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 * 2  # one per group and layer


@torch.no_grad()
def test_attention_is_scaled_dot_product_attention():
    module, x = Attention(12, 3).eval(), torch.randn(2, 5, 12)
    q, k, v = module.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(module(x), module.out(mixed))


@torch.no_grad()
def test_layers_of_the_transformer_see_all_tokens():
    layer, x = built(confidence_transformer).segments[1], torch.randn(1, TOKENS, DIM)
    other = x.clone()
    other[0, 3] = torch.randn(DIM)
    assert not torch.allclose(layer(x)[0, 0], layer(other)[0, 0])


def test_tokens_follow_the_size_of_the_image():
    for size, tokens in ((28, 16), (32, 16), (16, 4)):
        model = ConfidenceTransformer(CLASSES, (1, size, size), **STATISTICS, **TRANSFORMER_SIZES)
        assert model.segments[0](torch.rand(1, 1, size, size)).shape == (1, tokens, 12)
