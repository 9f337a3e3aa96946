"""What each attack of torchattacks 3.5 and foolbox 3.3 does and needs, and which do not work.

Found by running every one of them; tests/test_foreign_support.py runs them again and compares.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustdyn.errors import UserError

ANY = ("linf", "l2", "l1")
_DLR = "its loss, DLR, compares three classes, and a budget has two"
_NUMBA = "it needs the package numba, which is not among our dependencies"
_START = "it needs inputs that are adversarial already, which a suite does not have"
_WRAPPER = "it is a wrapper of other attacks or models, not an attack with a threat"


@dataclass(frozen=True)
class ForeignSupport:
    """One attack of torchattacks or foolbox.

    Attributes:
        name: as in suites, such as "torchattacks:PGD".
        norms: the norms of the threats that it can keep to; empty if none: what it returns is
            judged like any other input, and counts as no attack where it is outside of the threat.
        access: what it asks the model for: "gradient", "scores", "decisions" or "nothing".
        images: True if it works on images (C, H, W) only, not on sequences (T, D).
        channels: how many an image must have, 0 for any number.
        least_classes: the fewest classes that it works with.
        minimal: True if it looks for the smallest change, not for the worst inside eps.
        required: parameters that must be given.
        note: what a user must know to call it well.
        broken: why it does not work at all; empty if it works.
        no_budget: why it cannot attack a budget of compute; empty if it can.
    """

    name: str
    norms: tuple[str, ...]
    access: str = "gradient"
    images: bool = False
    channels: int = 0
    least_classes: int = 2
    minimal: bool = False
    required: tuple[str, ...] = ()
    note: str = ""
    broken: str = ""
    no_budget: str = ""

    @property
    def summary(self) -> str:
        """A line for people: threat, access and needs, or why it does not work."""
        if self.broken:
            return f"unsupported: {self.broken}"
        aim = f"smallest {'/'.join(self.norms)}" if self.minimal else "/".join(self.norms)
        parts = [aim if self.norms else "no threat", f"asks for {self.access}", *self._needs()]
        return "; ".join([*parts, self.note] if self.note else parts)

    def _needs(self) -> Iterator[str]:
        if self.images:
            yield f"images of {self.channels} channels" if self.channels else "images"
        if self.least_classes > 2:
            yield f"{self.least_classes} classes or more"
        for name in self.required:
            yield f"give {name}"

    def not_supported_reasons(
        self, *, shape: Sequence[int | None], classes: int, norm: str, budget: bool = False
    ) -> list[str]:
        """Return why it cannot attack such a model; an empty list if it can.

        Args:
            shape: of one input.
            classes: that the model tells apart.
            norm: of the threat.
            budget: True if it is to reach a budget of compute.
        """
        if self.broken:
            return [self.broken]
        reasons = []
        if self.images and len(shape) != 3:
            reasons.append(f"it needs images (C, H, W), and an input has {len(shape)} axes")
        elif self.channels and shape[0] != self.channels:
            reasons.append(
                f"it needs images of {self.channels} channels, and these have {shape[0]}"
            )
        if budget and self.no_budget:
            reasons.append(self.no_budget)
        elif not budget and classes < self.least_classes:
            reasons.append(f"it needs {self.least_classes} classes or more, not {classes}")
        if self.norms and norm not in self.norms:
            reasons.append(f"it keeps to {' or '.join(self.norms)}, not to {norm}")
        return reasons


def list_foreign() -> list[ForeignSupport]:
    """Return all attacks of both libraries, in the order of their documentation."""
    return list(_TABLE.values())


def support(name: str) -> ForeignSupport:
    """Return what is known of an attack such as "torchattacks:PGD".

    One that a newer version of the library brought is taken to work everywhere.
    """
    return _TABLE.get(name) or ForeignSupport(name, ())


def check_budget_params(name: str, params: Mapping[str, Any]) -> None:
    """Check that an attack can reach a budget of compute with these parameters.

    Raises:
        UserError: if not.
    """
    reason = support(name).no_budget
    if "dlr" in str(params.get("loss", "")):
        reason = _DLR
    if reason:
        raise UserError(
            f"'{name}' cannot attack a budget of compute: {reason}.",
            'Use another attack, for example torchattacks:PGD, or loss = "ce".',
        )


def _torchattacks() -> Iterator[ForeignSupport]:
    def row(name: str, *norms: str, **known) -> ForeignSupport:
        return ForeignSupport(f"torchattacks:{name}", norms, **known)

    linf = ("FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "PGDRS")
    yield row("VANILA", *ANY, access="nothing", note="returns the input")
    yield row("GN", access="nothing", note="noise of size std, whatever eps is")
    yield from (row(name, "linf") for name in linf)
    linf_images = ("MIFGSM", "UPGD", "DIFGSM", "Jitter", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM")
    yield from (row(name, "linf", images=True) for name in linf_images)
    yield row("APGD", "linf", "l2", images=True)
    yield row("APGDT", "linf", "l2", images=True, least_classes=4, no_budget=_DLR)
    fixed = {"images": True, "channels": 3}
    yield row("TIFGSM", "linf", **fixed, note="its convolution has 3 groups")
    yield row("PIFGSM", "linf", **fixed, note="its convolution has 3 groups")
    yield row("PIFGSMPP", "linf", **fixed, note="its convolution has 3 groups")
    yield row("SPSA", "linf", access="scores")
    yield row("CW", "l2", minimal=True)
    yield row("PGDL2", "l2", images=True)
    yield row("PGDRSL2", "l2", images=True)
    yield row("DeepFool", "l2", minimal=True)
    ead = "give max_iterations of at least 10: it divides by their tenth"
    yield row("EADEN", "l2", "l1", minimal=True, note=ead)
    yield row("EADL1", "l1", minimal=True, note=ead)
    yield row("SparseFool", minimal=True, note="changes few values by any amount; slow")
    yield row("OnePixel", access="scores", images=True, note="changes pixels by any amount")
    yield row("Pixle", access="scores", images=True, note="moves pixels")
    yield row("JSMA", least_classes=10, note="changes values by any amount; slow; aims at y + 1")
    yield row("FAB", "linf", "l2", "l1", minimal=True)
    yield row("AutoAttack", "linf", "l2", images=True, least_classes=4, no_budget=_DLR)
    yield row("Square", "linf", "l2", access="scores", images=True)
    yield row("MultiAttack", broken=_WRAPPER)
    yield row("LGV", broken=_WRAPPER)


def _foolbox() -> Iterator[ForeignSupport]:
    def row(name: str, *norms: str, **known) -> ForeignSupport:
        return ForeignSupport(f"foolbox:{name}", norms, **known)

    step = "its step is a part of eps: with few steps, give abs_stepsize"
    norms = (("L1", "l1"), ("L2", "l2"), ("Linf", "linf"))
    for start, norm in norms:
        for kind in ("ProjectedGradientDescent", "AdamProjectedGradientDescent"):
            yield row(f"{start}{kind}Attack", norm, note=step)
        for kind in ("BasicIterative", "AdamBasicIterative"):
            yield row(f"{start}{kind}Attack", norm, note=step)
        yield row(f"{start}MomentumIterativeFastGradientMethod", norm, note=step)
        yield row(f"{start}FastGradientAttack", norm)
    yield row("SparseL1DescentAttack", "l1", note=step)
    yield row("DDNAttack", "l2", minimal=True)
    yield row(
        "VirtualAdversarialAttack",
        "l2",
        required=("steps",),
        no_budget="it returns NaN where the two scores of a budget are far apart",
    )
    yield row("L2ContrastReductionAttack", "l2", access="nothing")
    for kind in ("", "ClippingAware"):
        for noise in ("Gaussian", "Uniform"):
            yield row(f"L2{kind}Additive{noise}NoiseAttack", "l2", access="nothing")
            yield row(f"L2{kind}RepeatedAdditive{noise}NoiseAttack", "l2", access="decisions")
    yield row("LinfAdditiveUniformNoiseAttack", "linf", access="nothing")
    yield row("LinfRepeatedAdditiveUniformNoiseAttack", "linf", access="decisions")
    closest = {"access": "decisions", "minimal": True}
    yield row("InversionAttack", *ANY, access="nothing")
    yield row("BinarySearchContrastReductionAttack", *ANY, **closest)
    yield row("LinearSearchContrastReductionAttack", *ANY, **closest)
    yield row("GaussianBlurAttack", *ANY, **closest, images=True)
    yield row("LinearSearchBlendedUniformNoiseAttack", *ANY, **closest)
    yield row("SaltAndPepperNoiseAttack", "l2", **closest)
    yield row("BoundaryAttack", "l2", **closest)
    yield row("HopSkipJumpAttack", "l2", "linf", **closest)
    yield row("SpatialAttack", access="decisions", images=True, note="turns and moves images")
    yield row("L2CarliniWagnerAttack", "l2", minimal=True)
    yield row("EADAttack", "l1", minimal=True)
    yield row("NewtonFoolAttack", "l2", minimal=True, note="some inputs come back as NaN")
    yield row("L2DeepFoolAttack", "l2", minimal=True)
    yield row("LinfDeepFoolAttack", "linf", minimal=True)
    for start, norm in (("L1", "l1"), ("L2", "l2"), ("LInf", "linf")):
        yield row(f"{start}FMNAttack", norm, minimal=True)
    yield row("L0FMNAttack", broken="foolbox cannot clip an l0 change that is too large")
    for start in ("L0", "L1", "L2", "Linfinity"):
        yield row(f"{start}BrendelBethgeAttack", broken=_NUMBA)
    yield row("BinarizationRefinementAttack", broken=_START)
    yield row("DatasetAttack", broken="it needs other inputs, fed to it first")
    yield row("GenAttack", broken="it needs target classes, which a suite does not have")
    yield row("PointwiseAttack", broken="foolbox does not give it a distance (3.3.4)")


_TABLE = {row.name: row for rows in (_torchattacks(), _foolbox()) for row in rows}
