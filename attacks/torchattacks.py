"""Our attacks as classes of torchattacks: `AutoSlow(model, eps=8/255)(images, labels)`.

Every registered attack is here under its usual spelling, made when it is first asked for; see
`dir(robustdyn.attacks.torchattacks)`. Importing this file does not import torchattacks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from inspect import Parameter
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.class_names import (
    bridge_class,
    check_options,
    class_lookup,
    class_names,
    targeted_objective,
)
from robustdyn.attacks.draws import sample_seeds
from robustdyn.attacks.foreign import load_library
from robustdyn.attacks.registry import deployed, get
from robustdyn.errors import UserError
from robustdyn.gates import estimator as use_estimator
from robustdyn.threat import Threat

_OPTIONS: dict[str, Any] = {
    "norm": "linf",
    "objective": None,
    "estimator": None,
    "mask": None,
    "seed": 0,
}
_TOLERANCE = 1e-4  # of inputs that were normalised and brought back


_FIRST = (
    Parameter("model", Parameter.POSITIONAL_OR_KEYWORD),
    Parameter("eps", Parameter.POSITIONAL_OR_KEYWORD, default=8 / 255),
)


def _make(name: str, registered: str) -> type:
    """Return the class `name` of the attack `registered`."""
    return bridge_class(
        name,
        registered,
        base=_base(),
        module=__name__,
        documentation=_DOCUMENTATION,
        options=_OPTIONS,
        first=_FIRST,
    )


_DOCUMENTATION = """{summary}

The attack '{registered}' of robustdyn as a torchattacks.Attack. Images lie in [0, 1], or are
normalised as `set_normalization_used` says; labels are (B,) int64. Calls are pure: the same images
give the same result.

Arguments:
    model (nn.Module): maps images (B, ...) to logits (B, K). It is in eval mode during the attack;
        every module's mode is restored.
    eps (float): radius, in units of the images.
    norm (str): "linf", "l2" or "l1".
    objective: what to maximise; by default the attack's own.
    estimator (str): the gradient estimator of the gates.
    mask (Tensor): bool, which values may change; all by default.
    seed (int): of the attack's random choices; with a sample's place in the batch it decides them.
    The others are the attack's own, see robustdyn.attacks. All are attributes afterwards, and may
        be set there; one that torchattacks has a use for, such as forward, ends in "_".

Raises:
    UserError: if an argument is unknown or out of range, or the images are out of bounds.
"""


@cache
def _base() -> type:
    attack_class: Any = load_library("torchattacks").attack.Attack

    class Bridge(attack_class):
        """What all of our attacks share as torchattacks.Attack."""

        registered: str
        _normalization_applied: Any

        def __init__(self, model: nn.Module, eps: float = 8 / 255, **options: Any):
            attack = get(self.registered)
            unknown = {key: value for key, value in options.items() if key not in _OPTIONS}
            check_options(attack, options.get("objective"), unknown)
            super().__init__(type(self).__name__, model)
            self.eps = eps
            for key, value in (_OPTIONS | attack.params | options).items():
                setattr(self, _attribute(key), value)
            self._threat()
            if targeted_objective(attack, self.objective) is not None:
                self.supported_mode = ["default", "targeted"]

        def _threat(self) -> Threat:
            return Threat(self.norm, self.eps, mask=self.mask)

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            if labels is None:
                raise UserError(
                    f"{self.attack} was called without labels.", "Pass the labels of the images."
                )
            attack = get(self.registered)
            x, y = inputs.to(self.device), labels.to(self.device)
            objective = self.objective
            if self.targeted:
                y = self.get_target_label(x, y)
                objective = targeted_objective(attack, objective)
            model = _seen_by(self)
            with use_estimator(self.estimator) if self.estimator else nullcontext():
                return attack(
                    model,
                    _inside_bounds(x),
                    y,
                    threat=self._threat(),
                    objective=objective,
                    seeds=sample_seeds(self.seed, range(len(x))),
                    **{key: getattr(self, _attribute(key)) for key in attack.params},
                )

        def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            applied = self._normalization_applied
            try:
                with deployed(self.model):
                    return super().__call__(inputs, labels)
            finally:
                self._normalization_applied = applied

        def save(self, *args: Any, **kwargs: Any) -> Any:
            with deployed(self.model):
                return super().save(*args, **kwargs)

        def set_normalization_used(self, mean: Any, std: Any) -> None:
            if hasattr(self.model, "spec"):
                raise UserError(
                    f"The model '{self.model.spec.name}' normalises its inputs itself.",
                    "Give it images in [0, 1], and do not set a normalisation.",
                )
            super().set_normalization_used(mean, std)

        def set_model_training_mode(
            self,
            model_training: bool = False,
            batchnorm_training: bool = False,
            dropout_training: bool = False,
        ) -> None:
            if model_training or batchnorm_training or dropout_training:
                raise UserError(
                    "Our attacks run the model in eval mode only, as it is deployed.",
                    "Leave the training mode off; models of this package have gradients without.",
                )

        def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
            if "targeted" not in self.supported_mode:
                raise UserError(
                    f"{self.attack} has no targeted mode with this objective.",
                    "Use an attack that can maximise cross_entropy, such as PGD, with it.",
                )
            super()._set_mode_targeted(mode, quiet)

    return Bridge


def _attribute(key: str) -> str:
    """Return the attribute of a parameter: its name, and "_" where torchattacks uses that name."""
    return f"{key}_" if hasattr(load_library("torchattacks").attack.Attack, key) else key


def _seen_by(bridge: Any) -> nn.Module:
    """Return the model as a function of images in [0, 1]."""
    if bridge._normalization_applied is False:
        return _Normalising(bridge.model, bridge.normalize)
    return bridge.model


class _Normalising(nn.Module):
    """A model behind a normalisation."""

    def __init__(self, model: nn.Module, normalise: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self.normalise = normalise

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.normalise(x))


def _inside_bounds(x: Tensor) -> Tensor:
    """Return the images (B, ...) in [0, 1], but for rounding as they are.

    Raises:
        UserError: if they are not in [0, 1].
    """
    if len(x) and not (x.min() >= -_TOLERANCE and x.max() <= 1 + _TOLERANCE):
        raise UserError(
            f"The images lie in [{x.min():.3g}, {x.max():.3g}], not in [0, 1].",
            "Scale them; if they are normalised, call set_normalization_used(mean, std).",
        )
    return x.clamp(0, 1)


__getattr__ = class_lookup(__name__, _make, {})


def __dir__() -> list[str]:
    return sorted(class_names())
