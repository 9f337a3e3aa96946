"""Tiny modules with one gate of every kind, also of kinds that no registered model has.

Each maps x (B, 1, 4, 4) to logits (B, 3). All gates open or load up as the left half of the image
gets brighter than the right half, so a test knows what an attack must find.
"""

import torch
from torch import Tensor, nn

import robustdyn as rd
from robustdyn.decision import Share
from robustdyn.trace import record_exit


def inputs(count: int = 20) -> tuple[Tensor, Tensor]:
    """Return inputs (B, 1, 4, 4) around grey, most gates shut, and the answers (B,)."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.1 * (torch.rand(count, 1, 4, 4, generator=generator) - 0.5)
    return x, Skip()(x).argmax(1)


class Tiny(nn.Module):
    """A gate on a linear layer; subclasses decide how the margin becomes a decision."""

    reachable = 1.0  # of max_macs()

    def __init__(self, scale: float = 20.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.scale = scale
        self.work = nn.Linear(16, 8, bias=False)
        self.head = nn.Linear(16, 3, bias=False)
        with torch.no_grad():
            for layer in (self.work, self.head):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        self.eval()

    def margin(self, x: Tensor) -> Tensor:
        """Return (B,): left minus right, shut at grey, open from a difference of .1."""
        halves = x.mean((1, 2))  # (B, 4), by column
        return self.scale * (halves[:, :2].mean(1) - halves[:, 2:].mean(1) - 0.1)

    def forward(self, x: Tensor) -> Tensor:
        flat = (x - 0.5).flatten(1)
        return self.head(flat) + 0 * self.gated(x, flat)

    def gated(self, x: Tensor, flat: Tensor) -> Tensor:
        """Return (B, 1) with whatever the gate let through."""
        raise NotImplementedError


class Elementwise(Tiny):
    """A gate with one decision per element: the margin plus a fixed offset for each."""

    kind = "skip"
    shape: tuple[int, ...] = ()

    def gated(self, x, flat):
        offsets = torch.linspace(-0.5, 0.5, max(1, torch.Size(self.shape).numel()))
        margin = self.margin(x)
        if self.shape:
            margin = margin.reshape(-1, *[1] * len(self.shape)) + offsets.reshape(self.shape)
        gate = rd.decide("gate", margin, kind=self.kind)
        with rd.region(self.share(gate)):
            y = self.work(flat)
        return (gate.keep.reshape(len(x), -1).mean(1) * y.sum(1))[:, None]

    def share(self, gate):
        return gate.share()


class Skip(Elementwise):
    pass


class Position(Elementwise):
    kind, shape = "position", (1, 4, 4)

    def share(self, gate):
        return gate.share(dilate=3)


class Channel(Elementwise):
    kind, shape = "channel", (8,)

    def share(self, gate):
        return gate.share() * gate.share()  # input channels x output channels


class Token(Elementwise):
    kind, shape = "token", (5,)

    def share(self, gate):
        return gate.share(power=2)


class Step(Elementwise):
    kind = "step"


class Path(Elementwise):
    """Either the gate's branch or a cheaper one: a share made by hand, the rest of the gate's.

    The two exclude each other, so that no input reaches the sum of both, which max_macs() is.
    """

    kind = "path"
    reachable = 176 / 208

    def gated(self, x, flat):
        gate = rd.decide("gate", self.margin(x), kind="path")
        with rd.region(gate.share()):
            y = self.work(flat)
        rest = Share(lambda: 1 - gate.keep.detach(), lambda: torch.sigmoid(-gate.margin))
        with rd.region(rest):
            z = nn.functional.linear(flat, self.work.weight[:2])
        return (gate.keep * y.sum(1) + (1 - gate.keep) * z.sum(1))[:, None]


class Bits(Elementwise):
    """A share made by hand: 4 bits cost half of 8."""

    kind = "bits"

    def share(self, gate):
        return Share(
            lambda: 0.5 + 0.5 * gate.keep.detach(),
            lambda: 0.5 + 0.5 * torch.sigmoid(gate.margin),
            decision=gate,
        )


class Expert(Tiny):
    """Top 1 of 3 experts for each of 4 tokens: the same MACs whichever is picked."""

    def gated(self, x, flat):
        tokens = x.flatten(1).reshape(-1, 4, 4)
        first = self.margin(x)[:, None] + tokens.mean(2)  # (B, T), the first expert's
        noise = torch.stack([tokens[:, :, 0], tokens[:, :, 3]], 2)
        scores = torch.cat([first[:, :, None], 5 * (noise - 0.5)], 2)  # (B, T, E)
        second = scores.topk(2, dim=2).values
        threshold = second.mean(2, keepdim=True)  # between the best and the next
        gate = rd.decide("gate", scores - threshold, kind="expert")
        third = Share(
            lambda: torch.full((len(x),), 1 / 3), lambda: torch.full((len(x),), 1 / 3), 1 / 3
        )
        with rd.region(third):
            y = self.work(flat)
        return (gate.keep.mean((1, 2)) * y.sum(1))[:, None]


class Exits(Tiny):
    """Three exits in a row, each behind the one before; the chance of a deep one is a product."""

    def gated(self, x, flat):
        margins = [self.margin(x) - k for k in range(2)]
        gates = [rd.decide(f"exit{k}", m, kind="exit") for k, m in enumerate(margins)]
        first, second = (gate.share() for gate in gates)
        with rd.region(first):
            y = self.work(flat)
            with rd.region(second):
                z = self.work(flat)
        onward = [torch.sigmoid(m) for m in margins]
        kept = [gate.kept for gate in gates]
        answers = [(1 - m)[:, None] * torch.eye(3)[0] for m in margins]  # flat where open
        chances = [1 - onward[0], onward[0] * (1 - onward[1]), onward[0] * onward[1]]
        taken = [~kept[0], kept[0] & ~kept[1], kept[0] & kept[1]]
        for k, logits in enumerate([*answers, self.head(flat)]):
            record_exit(rd.Exit(f"exit{k}", logits, chances[k], taken[k]))
        first_keep, second_keep = (gate.keep for gate in gates)
        return (first_keep * (y.sum(1) + second_keep * z.sum(1)))[:, None]


class Density(Tiny):
    """No gate, only rectifiers, half of them dark."""

    def gated(self, x, flat):
        return torch.relu(self.work(flat)).sum(1, keepdim=True)


MAC_KINDS = (Skip, Position, Channel, Token, Step, Path, Bits, Exits)
"""Their compute depends on the input."""
