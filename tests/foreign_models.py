"""The foreign modules as robustdyn models: what a user writes for each habit, under 30 lines.

A plug-in file: registered with `robustdyn register`, or imported in a registry of its own.
"""

import foreign_modules as foreign
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import robustdyn as rd
from robustdyn.adapters import from_probabilities, log_odds
from robustdyn.primitives import confidence

THRESHOLDS = torch.full((3,), 0.5)


@rd.register_model(family="instance.depth.early_exit")
def exit_list():
    """A list of logits, one per exit; whatever runs after a head counts for the next exit."""
    return rd.adapt(
        foreign.ExitList(),
        heads=["heads.0", "heads.1", "heads.2"],
        read=lambda seen: seen.exits(seen.output, confidence(THRESHOLDS)),
    )


@rd.register_model(family="instance.depth.early_exit")
def late_heads():
    """A list of logits whose heads all run at the end, so the stages are named."""
    second, third = "exit0", lambda gates: gates["exit0"].share() * gates["exit1"].share()
    return rd.adapt(
        foreign.LateHeads(),
        regions={"blocks.1": second, "heads.1": second, "blocks.2": third, "heads.2": third},
        read=lambda seen: seen.exits(seen.output, confidence(THRESHOLDS)),
        sparse=lambda net, x: torch.cat([net.infer(sample[None], 0.5) for sample in x]),
    )


@rd.register_model(family="instance.depth.layer_skip.gate")
def mask_tuple():
    """(logits, masks, log-probabilities); cannot take a batch of one."""

    def read(seen):
        logits, masks, scores = seen.output
        for k, (mask, score) in enumerate(zip(masks, scores, strict=True)):
            margin = score[:, 1] - score[:, 0]
            seen.decide(f"block{k + 1}", margin, kind="skip", keep=mask)
        return logits

    return rd.adapt(
        foreign.MaskTuple(),
        read=read,
        regions={"blocks.1": "block1", "blocks.2": "block2"},
        min_batch=2,
    )


@rd.register_model(family="spatial.pixel")
def meta_dict():
    """(logits, meta), with a dict that the caller hands in; boolean masks, one dilated."""

    def read(seen):
        logits, meta = seen.output
        soft, hard = meta["masks"][0]["std"]
        seen.decide("mask", soft, kind="position", keep=hard)
        return logits

    return rd.adapt(
        foreign.MetaDict(),
        call=lambda net, x: net(x, {"masks": []}),
        read=read,
        regions={"conv1": lambda gates: gates["mask"].share(dilate=3), "conv2": "mask"},
    )


@rd.register_model(family="instance.width.channels.gate")
def attribute_gates():
    """Gates left on modules as attributes, thresholded in place; input times output channels."""

    def call(net, x):
        with saved_tensors_hooks(torch.clone, lambda kept: kept):  # for the backward pass
            return net(x)

    def read(seen):
        for name in ("one", "two"):
            layer = getattr(seen.module, name)
            seen.decide(name, log_odds(layer.saliency), kind="channel", keep=layer.active)
        return seen.output

    return rd.adapt(
        foreign.AttributeGates(),
        call=call,
        read=read,
        regions={
            "one.conv": "one",
            "two.conv": lambda gates: gates["one"].share() * gates["two"].share(),
        },
    )


def _hooked(noise):
    layers = ("layers.0", "layers.1")

    def read(seen):
        for name in layers:
            score = seen.calls(f"{name}.gate.score")[0].output
            keep = seen.calls(f"{name}.gate")[0].output
            seen.decide(name, score[:, 1] - score[:, 0], kind="skip", keep=keep)
        return seen.output[0]

    return rd.adapt(
        foreign.HookedGates(noise),
        watch=[f"{name}.{part}" for name in layers for part in ("gate", "gate.score")],
        read=read,
        regions={f"{name}.conv": name for name in layers},
    )


@rd.register_model(family="instance.depth.layer_skip.gate")
def hooked_gates():
    """Gates seen only through hooks on the gate modules."""
    return _hooked(noise=False)


@rd.register_model(family="instance.depth.layer_skip.gate", randomised=True)
def noisy_gates():
    """The same, with noise left on in eval mode."""
    return _hooked(noise=True)


@rd.register_model(family="instance.depth.layer_skip.policy")
def policy_net():
    """Policy and main network; integer actions, probabilities, .cuda() in the constructors."""
    with rd.without_cuda():
        nets = nn.ModuleDict({"policy": foreign.Policy(3), "net": foreign.PolicyNet(3)})

    def call(nets, x):
        actions, chances = nets["policy"](x)
        return nets["net"](x, actions), chances

    def read(seen):
        probabilities, chances = seen.output
        for k in range(3):
            seen.decide(f"block{k}", log_odds(chances[:, k]), kind="skip")
        return from_probabilities(probabilities)

    regions = {f"net.blocks.{k}": rd.Region(f"block{k}", row=(16,)) for k in range(3)}
    return rd.adapt(nets, call=call, read=read, regions=regions)


@rd.register_model(family="instance.width.experts.hard")
def experts():
    """(logits, balance loss); every expert is called with the rows routed to it, or not at all."""

    def read(seen):
        scores = seen.calls("gate")[0].output  # (B, 16, experts)
        for e in range(3):
            seen.decide(f"expert{e}", scores[..., e], kind="expert")
        return seen.output[0]

    return rd.adapt(
        foreign.Experts(),
        watch=["gate"],
        read=read,
        regions={f"experts.{e}": rd.Region(f"expert{e}", row=(8,)) for e in range(3)},
    )


@rd.register_model(family="spatial.token")
def token_drop():
    """Tokens: linear in the MLP, quadratic in attention."""

    def read(seen):
        seen.decide("alive", seen.calls("score")[0].output[..., 0], kind="token")
        return seen.output

    return rd.adapt(
        foreign.TokenDrop(),
        watch=["score"],
        read=read,
        regions={"mlp": "alive", "attention": lambda gates: gates["alive"].share(power=2)},
    )


@rd.register_model(family="temporal.skip_update", task="sequence")
def skipping_cell():
    """Time steps: one gate entry per call of the cell; log-probabilities."""

    def read(seen):
        log_probabilities, update = seen.output
        seen.decide("update", log_odds(update), kind="step", keep=torch.round(update))
        return log_probabilities

    return rd.adapt(foreign.SkippingCell(), read=read, regions={"cell": "update"})


@rd.register_model(family="instance.depth.bits", static_compute=True)
def bit_widths():
    """One of three exclusive layers per sample: together they never cost more than one."""

    def read(seen):
        logits, onehot, scores = seen.output
        others = torch.stack([scores.roll(-1, 1), scores.roll(-2, 1)]).amax(0)
        seen.decide("bits", scores - others, kind="bits", keep=onehot)
        return logits

    regions = {"layers": lambda gates: gates["bits"].share(maximum=1 / 3)}
    return rd.adapt(foreign.BitWidths(), read=read, regions=regions)


@rd.register_model(family="temporal.video.exit")
def frame_step():
    """One step per call: the adapter owns the loop; one head, called once per frame."""

    def call(net, x):
        state, outputs = None, []
        for frame in x.chunk(4, dim=2):
            logits, state = net(frame, state)
            outputs.append(logits)
        return outputs

    return rd.adapt(
        foreign.FrameStep(),
        call=call,
        heads=["classify"],
        read=lambda seen: seen.exits(seen.output, confidence(torch.full((4,), 0.5))),
    )


@rd.register_model(family="instance.depth.early_exit", batch_coupled=True)
def batch_exit():
    """Half of the batch leaves early, so a sample depends on the others."""

    def read(seen):
        logits, goes_on, margin = seen.output
        seen.decide("goes_on", margin, kind="exit", keep=goes_on)
        return logits

    regions = {"second": "goes_on", "head2": "goes_on"}
    return rd.adapt(foreign.BatchExit(), read=read, regions=regions)
