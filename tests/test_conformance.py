"""The conformance check: it passes what is right, and names what is wrong and where."""

import foreign_modules as foreign
import foreign_zoo
import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

import robustdyn as rd
from robustdyn import registry
from robustdyn.conformance import LEVELS, check_model, is_wrong
from robustdyn.primitives import run_or_bypass


@pytest.fixture
def fresh(monkeypatch):
    """A registry in which a test may register."""
    rd.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


@pytest.fixture
def checked(fresh):
    """check(build, **marks) -> findings about a model that `build()` returns."""

    def check(build, family="instance", **marks):
        def subject():
            return build()

        rd.register_model(family=family, **marks)(subject)
        findings = check_model("subject")
        for finding in findings:
            assert finding.level in LEVELS
            if finding.level != "ok":
                assert finding.what
                assert finding.why
                assert "\n" not in finding.what + finding.why + finding.remedy
            if finding.level in ("warning", "error"):
                assert finding.remedy
        return findings

    return check


def only(findings, check, level):
    """The one finding of that check and level."""
    found = [f for f in findings if f.check == check and f.level == level]
    assert len(found) == 1, findings
    return found[0]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_model_of_ours_passes(name):
    findings = check_model(name)
    assert not is_wrong(findings), findings
    assert {f.level for f in findings} == {"ok"}, findings
    checks = {f.check for f in findings}
    dynamic = {"gradients", "regions", "sparse", "executed"}
    assert checks >= {"logits", "determinism", "batch", "decisions", "maximum", "weights"}
    assert dynamic <= checks or name in zoo.STATIC


@pytest.mark.parametrize("name", foreign_zoo.MODELS)
def test_foreign_models_are_wrong_only_where_they_are(name, fresh, monkeypatch):
    registry._MODELS[name] = foreign_zoo.SPECS[name]
    monkeypatch.setattr("robustdyn.conformance.provenance.SAMPLES", 50)
    findings = check_model(name)
    untrained = only(findings, "weights", "warning")
    assert "each build draws others" in untrained.what
    assert not is_wrong(findings)
    wrong = {f.check for f in findings if f.level in ("warning", "error")}
    noisy = {"decisions"} if name == "noisy_gates" else set()
    assert wrong == {"weights"} | noisy, findings
    executed = {"late_heads", "policy_net", "experts"}
    assert any(f.check == "executed" for f in findings) == (name in executed)


# Outputs


def test_a_tuple_is_not_logits(checked):
    finding = only(checked(foreign.HookedGates), "logits", "error")
    assert "returns a tuple" in finding.what
    assert "robustdyn.adapt" in finding.remedy


def test_probabilities_are_not_logits(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))  # noqa: E731
    finding = only(checked(build, static_compute=True), "logits", "error")
    assert "probabilities" in finding.what
    assert "from_probabilities" in finding.remedy


def test_wrong_shapes_and_nan_are_named(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 7))  # noqa: E731
    assert "(48, 7)" in only(checked(build, static_compute=True), "logits", "error").what


def test_nan_logits_are_named(checked):
    class LogOfZero(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)).log()

    found = only(checked(lambda: LogOfZero(784, 10), static_compute=True), "logits", "error")
    assert "NaN or infinite" in found.what


def test_a_failing_forward_is_one_line(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 10))  # noqa: E731
    finding = only(checked(build, static_compute=True), "logits", "error")
    assert "cannot be multiplied" in finding.what


def test_a_randomised_gate_is_named(checked):
    build = foreign_zoo.SPECS["noisy_gates"].build
    finding = only(checked(build), "determinism", "error")
    assert "'layers.0'" in finding.what
    assert "'layers.0.gate'" in finding.what
    assert "randomised=True" in finding.remedy


@pytest.mark.parametrize("level", ["note", "warning"])
def test_gates_that_no_sample_changes_are_named(checked, level):
    class Gated(nn.Module):
        """Skips a layer by the brightness, and one always."""

        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(784, 10), nn.Linear(10, 10)

        def forward(self, x):
            y, x = self.first(x.flatten(1)), x.flatten(1)
            if level == "note":  # else there is no gate that changes
                gate = rd.decide("bright", x.mean(1) - 0.6, kind="skip")  # few real ones are
                y = run_or_bypass(gate, self.layer, y, y)
            gate = rd.decide("never", x.mean(1) - 2.0, kind="skip")
            return run_or_bypass(gate, self.layer, y, y)

    finding = only(checked(Gated), "decisions", level)
    assert "256 real samples, noisy ones and noise: 'never' always off" in finding.what


def test_a_batch_of_one_that_fails_is_told(checked):
    build = lambda: rd.adapt(foreign.MaskTuple(), read=lambda seen: seen.output[0])  # noqa: E731
    finding = only(checked(build, static_compute=True), "batch", "error")
    assert "batch of one fails" in finding.what
    assert "min_batch=2" in finding.remedy


def test_batch_coupling_is_named(checked):
    build = foreign_zoo.SPECS["batch_exit"].build
    finding = only(checked(build), "batch", "error")
    assert "'goes_on'" in finding.what
    assert "BatchExit.forward" in finding.what


def test_declarations_that_are_not_needed(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # noqa: E731
    findings = checked(build, static_compute=True, batch_coupled=True)
    assert "do not depend on their batch" in only(findings, "batch", "warning").what


def test_noise_that_is_declared_but_absent(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # noqa: E731
    findings = checked(build, static_compute=True, randomised=True)
    assert "two passes agree" in only(findings, "determinism", "warning").what


def test_a_constructor_that_needs_cuda(fresh):
    @rd.register_model(family="static", static_compute=True)
    def needs_cuda():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10).to("cuda:7"))

    with pytest.raises(rd.UserError, match="without_cuda") as caught:
        check_model("needs_cuda")
    assert len(str(caught.value).splitlines()) == 2


# Gates


class Gate(nn.Module):
    """A block whose gate is what `decide` makes of a score (B,)."""

    def __init__(self, margin, scale=40.0, bound=True):
        super().__init__()
        self.margin, self.bound = margin, bound
        self.scorer = Scorer(margin, scale)
        self.block = nn.Linear(784, 784)
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        x = x.flatten(1)
        gate = rd.decide("gate", self.scorer(x), kind="skip")
        if self.bound:
            with rd.region(gate.share()):
                y = self.block(x)
        else:
            y = self.block(x)
        return self.fc(x + gate.keep[:, None] * y)


class Scorer(nn.Module):
    def __init__(self, margin, scale):
        super().__init__()
        self.lift, self.scale = margin, scale

    def forward(self, x):
        return self.lift(self.scale * (x.mean(1) - 0.37))


def _no_grad(score):
    with torch.no_grad():
        return score * 2


def _in_place(score):
    p = torch.sigmoid(score).clone()
    p[p >= 0.5] = 1.0
    p[p < 0.5] = -1.0
    return p


LOST = {
    "detach()": lambda score: score.detach(),
    ".data": lambda score: score.data + 0,
    "a bool": lambda score: torch.where(score > 0, 1.0, -1.0),
    "an int": lambda score: (score * 100).int().float(),
    "torch.no_grad()": _no_grad,
    "round": lambda score: torch.round(score) + 0.5,
    "sign": lambda score: score.sign(),
    "an assignment in place": _in_place,
    ".numpy()": lambda score: torch.from_numpy(score.detach().numpy() * 1.0),
    "tolist": lambda score: torch.tensor(score.tolist()),
    "argmax": lambda score: torch.stack([-score, score]).argmax(0) - 0.5,
}


@pytest.mark.parametrize("cause", LOST)
def test_where_a_gradient_is_lost_is_named(checked, cause):
    finding = only(checked(lambda: Gate(LOST[cause])), "gradients", "error")
    assert "'gate'" in finding.what
    assert cause in finding.what
    assert "in scorer" in finding.what


def test_a_gate_with_a_gradient_passes(checked):
    findings = checked(lambda: Gate(lambda score: score))
    assert only(findings, "gradients", "ok")
    assert "kind skip, (B): 'gate'" in only(findings, "decisions", "ok").what


def test_an_unbound_gate_is_named(checked):
    findings = checked(lambda: Gate(lambda score: score, bound=False))
    assert "'gate'" in only(findings, "regions", "error").what


def test_a_saturated_gate_is_told(checked):
    findings = checked(lambda: Gate(lambda score: score, scale=1e6))
    assert "saturated" in only(findings, "gradients", "warning").what


def test_a_collapsed_gate_is_told(checked):
    findings = checked(lambda: Gate(lambda score: score + 1e3))
    assert "always on" in only(findings, "decisions", "warning").what
    assert "Every input costs the same" in only(findings, "static", "error").what


def test_probabilities_as_margins_are_told(checked):
    findings = checked(lambda: Gate(torch.sigmoid))
    told = [f.what for f in findings if f.check == "decisions" and f.level == "error"]
    assert any("look like probabilities" in what for what in told)


def test_nan_margins_are_told(checked):
    findings = checked(lambda: Gate(torch.log))
    assert "NaN" in only(findings, "decisions", "error").what


def test_no_decision_at_all(checked):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # noqa: E731
    assert "No decision" in only(checked(build), "decisions", "error").what


def test_a_margin_that_is_not_what_was_executed(checked):
    def read(seen):
        logits, masks, scores = seen.output
        seen.decide("block1", scores[0][:, 0] + 0.5, kind="skip", keep=masks[0])
        return logits

    build = lambda: rd.adapt(  # noqa: E731
        foreign.MaskTuple(), read=read, regions={"blocks.1": "block1"}, min_batch=2
    )
    findings = checked(build)
    told = [f.what for f in findings if f.check == "decisions" and f.level == "error"]
    assert any("executed" in what for what in told)


def test_what_is_overwritten_in_place_breaks_the_backward_pass(checked):
    def read(seen):
        layer = seen.module.one
        seen.decide("one", layer.saliency, kind="channel", keep=layer.active)
        return seen.output

    def build():
        return rd.adapt(foreign.AttributeGates(), read=read, regions={"one.conv": "one"})

    found = [f for f in checked(build) if f.check == "gradients" and f.level == "error"]
    assert "overwritten in place" in found[0].what
    assert "saved_tensors_hooks" in found[0].remedy


# Compute


def test_a_region_that_does_not_run_is_told(checked):
    class Never(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = nn.Linear(784, 784), nn.Linear(784, 10)

        def forward(self, x):
            return self.fc(x.flatten(1))

    def read(seen):
        seen.decide("gate", seen.output[:, 0], kind="skip")
        return seen.output

    build = lambda: rd.adapt(Never(), read=read, regions={"block": "gate"})  # noqa: E731
    assert "'block' did not run" in only(checked(build), "logits", "error").what


def test_macs_above_the_maximum(checked):
    spec = foreign_zoo.SPECS["bit_widths"]

    def build():
        model = spec.build()
        model.regions["layers"] = rd.Region(lambda gates: gates["bits"].share(maximum=0.1))
        return model

    assert "above the reachable maximum" in only(checked(build), "maximum", "error").what


def test_declared_static_but_is_not(checked):
    findings = checked(lambda: Gate(lambda score: score), static_compute=True)
    assert "Declared static" in only(findings, "static", "error").what


def test_sparse_execution_that_does_something_else(checked):
    exits = foreign_zoo.SPECS["late_heads"].build

    def other_threshold():
        model = exits()
        model.sparse = lambda net, x: torch.cat([net.infer(s[None], 0.1) for s in x])
        return model

    findings = checked(other_threshold)
    assert "other logits" in only(findings, "sparse", "error").what
    assert "sparse execution runs" in only(findings, "executed", "error").what


def test_a_sparse_path_that_does_more_than_is_traced(checked):
    exits = foreign_zoo.SPECS["late_heads"].build

    def wasteful():
        model = exits()
        honest = model.sparse
        model.sparse = lambda net, x: (
            honest(net, x) + 0 * net.blocks[0](F.avg_pool2d(x, 2).flatten(1)).mean()
        )
        return model

    findings = checked(wasteful)
    assert only(findings, "sparse", "ok")
    assert "sparse execution runs" in only(findings, "executed", "error").what


def test_operations_that_flop_counter_mode_does_not_know_are_counted_by_us(checked):
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.fc = nn.LSTM(28, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, x):
            gate = rd.decide("gate", 40 * (x.mean((1, 2, 3)) - 0.37), kind="skip")
            state = x.new_zeros(len(x), 16)
            state = run_or_bypass(gate, lambda x: self.lstm(x[:, 0])[0][:, -1], x, state)
            return self.fc(state)

    note = only(checked(Fused), "executed", "note")
    assert "by our own formulas" in note.what
    assert "fused recurrences" in note.why


# Provenance


def test_a_model_that_has_not_learned_anything(checked):
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    findings = checked(build, static_compute=True)
    assert only(findings, "weights", "ok")
    assert "no better than chance" in only(findings, "accuracy", "warning").what


def test_thresholds_at_which_all_samples_leave_at_one_exit(checked):
    def build():
        model = foreign_zoo.SPECS["exit_list"].build()
        model.read = lambda seen: seen.exits(
            seen.output, rd.primitives.confidence(torch.full((3,), 0.9999999))
        )
        return model

    assert "the same exit" in only(checked(build), "thresholds", "warning").what


@pytest.mark.parametrize(("split", "level"), [("calibration", "ok"), ("test", "error")])
def test_the_split_on_which_thresholds_were_fitted(checked, split, level):
    def build():
        model = foreign_zoo.SPECS["exit_list"].build()
        model.fitted_on = split
        return model

    assert split in only(checked(build), "thresholds", level).what
