"""Adapters: every habit of research code, its MACs against a count by hand."""

import inspect

import foreign_modules as foreign
import pytest
import torch
import zoo
from foreign_zoo import MODELS, SPECS, build, inputs
from torch import nn

import robustdyn as rd
from robustdyn.adapters import from_probabilities, log_odds
from robustdyn.decision import dilated
from robustdyn.primitives import confidence


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def _exits(logits, threshold=0.5):
    """(B,) the exit at which each sample stops."""
    sure = torch.stack([part.softmax(1).amax(1) >= threshold for part in logits])
    sure[-1] = True
    return sure.int().argmax(0)


def _staged(stages, exits):
    """(B,) the sum of the stages up to the exit of each sample."""
    return torch.tensor(stages).cumsum(0)[exits]


EXIT_STAGES = [196 * 32 + 320, 32 * 24 + 24 * 24 + 240, 24 * 16 + 160]
LATE_STAGES = [196 * 32 + 320, 32 * 24 + 240, 24 * 16 + 160]
FRAME_STAGES = [196 * 16 + 160] * 4
STEM_4 = 4 * 16 * 49  # a 4x4 convolution, stride 4: one input channel, four outputs, 7 x 7


def _mask_tuple(net, x):
    masks = net(x)[1]
    block = 4 * 4 * 9 * 49
    return STEM_4 + block + 2 * 4 * 2 + 1960 + block * sum(masks)


def _meta_dict(net, x):
    kept = net(x, {"masks": []})[1]["masks"][0]["std"][1]
    always = 4 * 9 * 196 + 4 * 9 * 196 + 40  # stem, masker, fc
    near = dilated(kept, 3).sum((1, 2, 3))
    return always + 4 * 8 * 9 * near + 8 * 4 * 9 * kept.sum((1, 2, 3))


def _attribute_gates(net, x):
    net(x)
    one, two = net.one.active.sum(1), net.two.active.sum(1)
    always = STEM_4 + 4 * 6 + 6 * 8 + 80
    return always + 9 * 49 * (4 * one + one * two)


def _hooked_gates(net, x):
    kept = []
    hooks = [
        layer["gate"].register_forward_hook(lambda *a: kept.append(a[2])) for layer in net.layers
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return STEM_4 + 2 * 8 + 40 + 4 * 4 * 9 * 49 * sum(kept)


def _policy_net(nets, x):
    actions, _ = nets["policy"](x)
    return 49 * 3 + 196 * 16 + 160 + 16 * 16 * actions.sum(1)


def _experts(net, x):
    scores = []
    hook = net.gate.register_forward_hook(lambda *a: scores.append(a[2]))
    net(x)
    hook.remove()
    return 16 * 49 * 8 + 16 * 8 * 3 + 80 + 64 * (scores[0] > 0).sum((1, 2))


def _token_drop(net, x):
    scores = []
    hook = net.score.register_forward_hook(lambda *a: scores.append(a[2]))
    net(x)
    hook.remove()
    alive = (scores[0] > 0).sum((1, 2))
    always = 16 * 49 * 8 + 16 * 8 + 16 * 8 * 24 + 80
    return always + 64 * alive + 2 * 8 * alive**2


def _skipping_cell(net, x):
    steps = x.shape[1]
    kept = torch.round(net(x)[1]).sum(1)
    return 6 * 9 + 6 * steps + (12 + 6) * 18 * kept


def _constant(macs):
    return lambda net, x: torch.full((len(x),), macs)


HAND = {
    "exit_list": lambda net, x: _staged(EXIT_STAGES, _exits(net(x))),
    "late_heads": lambda net, x: _staged(LATE_STAGES, _exits(net(x))),
    "mask_tuple": _mask_tuple,
    "meta_dict": _meta_dict,
    "attribute_gates": _attribute_gates,
    "hooked_gates": _hooked_gates,
    "policy_net": _policy_net,
    "experts": _experts,
    "token_drop": _token_drop,
    "skipping_cell": _skipping_cell,
    "bit_widths": _constant(196 * 16 + 48 + 256 + 160),
    "frame_step": lambda net, x: _staged(FRAME_STAGES, _exits(_frames(net, x))),
}
FULL = {
    "exit_list": sum(EXIT_STAGES),
    "late_heads": sum(LATE_STAGES),
    "mask_tuple": STEM_4 + 3 * 7056 + 16 + 1960,
    "meta_dict": 2 * 7056 + 40 + 2 * 288 * 196,
    "attribute_gates": STEM_4 + 24 + 48 + 80 + 9 * 49 * (24 + 48),
    "hooked_gates": STEM_4 + 16 + 40 + 2 * 7056,
    "policy_net": 147 + 3136 + 160 + 3 * 256,
    "experts": 6272 + 384 + 80 + 64 * 48,
    "token_drop": 6272 + 128 + 3072 + 80 + 64 * 16 + 16 * 256,
    "bit_widths": 3136 + 48 + 256 + 160,
    "frame_step": sum(FRAME_STAGES),
}


def _frames(net, x):
    state, outputs = None, []
    for frame in x.chunk(4, dim=2):
        logits, state = net(frame, state)
        outputs.append(logits)
    return outputs


def test_each_takes_under_30_lines(name):
    assert len(inspect.getsource(SPECS[name].build).splitlines()) < 30


@pytest.mark.parametrize("name", HAND)
@torch.no_grad()
def test_macs_are_those_counted_by_hand(name):
    model, x = build(name), inputs(name, 24)
    with rd.trace() as trace:
        logits = model(x)
    assert logits.shape == (24, 9 if name == "skipping_cell" else 10)
    by_hand = HAND[name](model.module, x)
    assert trace.macs().tolist() == by_hand.double().tolist()
    if name != "bit_widths":
        assert len(set(by_hand.tolist())) > 1, "the gates decide alike for every sample"
    full = FULL.get(name, 6 * 9 + x.shape[1] * (6 + 18 * 18))
    assert trace.max_macs() == pytest.approx(full, rel=1e-12)
    assert (trace.macs() <= trace.max_macs() * (1 + 1e-12)).all()


@torch.no_grad()
def test_a_batch_of_one_costs_what_it_does_in_a_batch(name):
    if name in ("batch_exit", "noisy_gates"):
        pytest.skip("declared batch-coupled or randomised")
    model, x = build(name), inputs(name, 5)
    with rd.trace() as together:
        logits = model(x)
    for k in range(len(x)):
        with rd.trace() as alone:
            single = model(x[k : k + 1])
        assert single.shape == logits[:1].shape
        torch.testing.assert_close(single[0], logits[k], rtol=1e-4, atol=1e-5)
        assert alone.macs().tolist() == [together.macs()[k].item()]
        assert alone.max_macs() == together.max_macs()


def test_every_decision_has_a_gradient_though_the_module_gives_none(name):
    model, x = build(name), inputs(name, 8).requires_grad_()
    with rd.trace() as trace:
        model(x)
    (gradient,) = torch.autograd.grad(trace.expected_macs().sum(), x)
    assert gradient.flatten(1).abs().amax(1).gt(0).all()


def test_the_module_is_left_as_it_was(name):
    model, x = build(name), inputs(name, 4)
    hooks = lambda: [  # noqa: E731
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    with rd.trace():
        model(x)
    assert all(count == (0, 0) for count in hooks())
    with pytest.raises(Exception), rd.trace():  # noqa: B017, PT011
        model(x.flatten(1)[:, :3])
    assert all(count == (0, 0) for count in hooks())
    with rd.trace() as trace:
        model(x)
    assert trace.macs().gt(0).all()


@torch.no_grad()
def test_sparse_execution_is_the_modules_own():
    model, x = build("late_heads"), inputs("late_heads", 12)
    dense = model(x)
    with rd.execution("sparse"), rd.trace() as trace:
        sparse = model(x)
    assert trace.sparse
    torch.testing.assert_close(dense, sparse)
    with pytest.raises(rd.UserError, match="no sparse execution"), rd.execution("sparse"):
        build("exit_list")(inputs("exit_list", 2))


@torch.no_grad()
def test_exits_answer_with_the_logits_of_the_exit_taken():
    model, x = build("exit_list"), inputs("exit_list", 24)
    with rd.trace() as trace:
        logits = model(x)
    outputs = torch.stack(model.module(x))
    exits = _exits(outputs)
    torch.testing.assert_close(logits, outputs[exits, torch.arange(24)])
    taken = torch.stack([exit.taken for exit in trace.exits]).int().argmax(0)
    assert taken.tolist() == exits.tolist()


def test_what_users_get_wrong():
    net = foreign.ExitList()
    with pytest.raises(rd.UserError, match=r"Did you mean 'heads\.0'"):
        rd.adapt(net, heads=["head.0"])
    with pytest.raises(rd.UserError, match="has no module"):
        rd.adapt(net, regions={"trunk": "exit0"})
    with pytest.raises(rd.UserError, match="cannot take a row"):
        rd.adapt(net, regions={"blocks.0": rd.Region("exit0", row=(3,))})
    with pytest.raises(rd.UserError, match="not a function"):
        rd.Region(lambda gates: gates["a"].share(), row=(3,))
    with pytest.raises(rd.UserError, match="cannot be combined with the exits"):
        rd.adapt(net, heads=["heads.0"], regions={"blocks.1": rd.Region("exit0", row=(32,))})
    for outer, inner in (("blocks", "blocks.0"), ("blocks.0", "blocks")):
        regions = {outer: "exit0", inner: rd.Region("exit0", row=(196,))}
        with pytest.raises(rd.UserError, match=r"cannot (be combined|take a row)"):
            rd.adapt(net, regions=regions)
    x = torch.rand(3, 1, 28, 28)
    exits = lambda seen: seen.exits(seen.output, confidence(torch.full((3,), 0.5)))  # noqa: E731
    wrong_name = rd.adapt(net, regions={"blocks.1": "exit_0"}, read=exits)
    with pytest.raises(rd.UserError, match="Did you mean 'exit0'"), rd.trace():
        wrong_name(x)
    unwatched = rd.adapt(net, watch=["heads.0"], read=lambda seen: seen.calls("head.0"))
    with pytest.raises(rd.UserError, match="not watched"):
        unwatched(x)

    def batch_mean(seen):
        seen.decide("gate", seen.output[0].mean(0), kind="skip")

    with pytest.raises(rd.UserError, match="mean over the batch"):
        rd.adapt(net, read=batch_mean)(torch.rand(12, 1, 28, 28))


def test_a_region_that_does_not_run_is_never_a_silent_zero():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = nn.Linear(784, 784), nn.Linear(784, 10)

        def forward(self, x):
            x = x.flatten(1)
            keep = x.mean(1) > 2  # never
            return self.fc(self.block(x) if keep.any() else x), keep

    def read(seen):
        seen.decide("gate", seen.output[1], kind="skip")
        return seen.output[0]

    x = torch.rand(4, 1, 28, 28)
    bound = rd.adapt(Skips(), read=read, regions={"block": "gate"})
    with pytest.raises(rd.UserError, match="'block' did not run"), rd.trace():
        bound(x)
    stated = rd.adapt(Skips(), read=read, regions={"block": rd.Region("gate", row=(784,))})
    with rd.trace() as trace:
        stated(x)
    assert trace.macs().tolist() == [7840.0] * 4
    assert trace.max_macs() == 7840 + 784**2


def test_regions_follow_the_modules_even_inside_other_regions_and_traces():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))

    def read(seen):
        for name in ("outer", "inner"):
            seen.decide(name, seen.output[:, 0] * 0 - 1, kind="skip")
        return seen.output

    model = rd.adapt(net, read=read, regions={"0": "outer", "0.1": "inner"})
    x = torch.rand(3, 4)
    with rd.estimator("sigmoid"), rd.trace() as trace:
        model(x)
    half = torch.sigmoid(torch.tensor(-1.0)).item()
    assert trace.expected_macs().tolist() == pytest.approx([16 * half + 16 * half**2 + 8] * 3)
    gate = rd.decide("mine", torch.full((3,), 1.0), kind="skip")
    with rd.trace() as outer, rd.region(gate.share()), rd.trace() as inner:
        model(x)
    assert outer.max_macs() == inner.max_macs() == 40.0
    assert outer.expected_macs()[0].item() == pytest.approx(
        inner.expected_macs()[0].item() * torch.sigmoid(torch.tensor(1.0)).item()
    )


def test_a_mask_in_place_of_a_score_counts_but_has_no_gradient():
    net = foreign.HookedGates(noise=False)

    def read(seen):
        seen.decide("gate", seen.calls("layers.0.gate")[0].output, kind="skip")
        return seen.output[0]

    watched = ["layers.0.gate"]
    model = rd.adapt(net, watch=watched, read=read, regions={"layers.0.conv": "gate"})
    x = torch.rand(6, 1, 28, 28, requires_grad=True)
    with rd.trace() as trace:
        model(x)
    gate = trace.decisions["gate"]
    assert gate.kept.tolist() == net.layers[0]["gate"](net.stem(x).relu()).bool().tolist()
    assert not gate.margin.requires_grad


def test_outputs_of_every_form():
    p = torch.tensor([[0.25, 0.75], [0.0, 1.0]])
    torch.testing.assert_close(from_probabilities(p).softmax(1), p)
    assert log_odds(torch.tensor([0.0, 0.5, 1.0])).isfinite().all()
    assert log_odds(torch.tensor(0.5)) == 0


def test_without_cuda_leaves_everything_on_the_cpu():
    with rd.without_cuda():
        net = nn.Linear(2, 2, device="cuda").cuda().to("cuda")
        other = torch.zeros(3, device=torch.device("cuda:1")).to(device="cuda")
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert other.device.type == "cpu"


def test_adapters_do_not_change_our_own_models():
    ours = zoo.model("sdn_resnet")
    x, _ = zoo.samples("sdn_resnet", 6)
    adapted = rd.adapt(ours)
    with rd.trace() as bare:
        logits = ours(x)
    with rd.trace() as through:
        torch.testing.assert_close(adapted(x), logits)
    assert through.macs().tolist() == bare.macs().tolist()
