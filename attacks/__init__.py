"""Attacks on the accuracy and on the compute of dynamic networks, one file per method."""

if __name__ != "robustdyn.attacks":
    raise ImportError(
        "This folder is the package robustdyn.attacks: `import robustdyn.attacks`, not `attacks`."
    )

from robustdyn.attacks import (  # each registers what it holds
    accuracy_objectives,
    apgd,
    autoattack,
    autoslow,
    boundary,
    compute_objectives,
    corruptions,
    deepsloth,
    ereba,
    exit_objectives,
    foolbox,
    frames,
    goals,
    gradauto,
    gradmdm,
    ilfo,
    least,
    lgm,
    load_objectives,
    mifgsm,
    nes,
    noise,
    patch,
    pgd,
    slowformer,
    sponge,
    square,
    timing,
    torchattacks,
    universal,
)
from robustdyn.attacks.crafted import crafted_on
from robustdyn.attacks.objectives import (
    FAMILIES,
    OBJECTIVES,
    Objective,
    get_objective,
    register_objective,
)
from robustdyn.attacks.registry import Attack, check_params, get, list_attacks, register_attack

del accuracy_objectives, compute_objectives, exit_objectives, goals, load_objectives
del apgd, autoattack, autoslow, least, mifgsm, noise, pgd, square
del deepsloth, ereba, gradauto, gradmdm, ilfo, lgm, slowformer, sponge
del boundary, corruptions, frames, nes, patch, timing, universal

__all__ = [
    "FAMILIES",
    "OBJECTIVES",
    "Attack",
    "Objective",
    "check_params",
    "crafted_on",
    "foolbox",
    "get",
    "get_objective",
    "list_attacks",
    "register_attack",
    "register_objective",
    "torchattacks",
]
