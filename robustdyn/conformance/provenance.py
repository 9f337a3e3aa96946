"""Checks of where a model's numbers come from: weights, thresholds, training."""

import torch

from robustdyn.conformance.finding import Finding, Subject
from robustdyn.conformance.outputs import traced
from robustdyn.data import get_info, load_dataset
from robustdyn.registry import build_model, fitted_on
from robustdyn.weights import find_weights, state_sha256

SAMPLES = 500
CERTAIN = 4.0  # standard errors above chance


def weights(subject: Subject) -> list[Finding]:
    """Check that the model comes with weights, and that it has learned something."""
    dataset = str(subject.model.dataset)
    path = find_weights(subject.spec.name, dataset)
    if path is None and not list(subject.model.parameters()):
        return [Finding("weights", "ok", "the model has no parameters")]
    if path is None and _differs(subject, dataset):
        return [
            Finding(
                "weights",
                "warning",
                "The model comes without weights: each build draws others.",
                "Attacks on an untrained network say nothing about a trained one.",
                f"Load a checkpoint in its function, or run `robustdyn train {subject.spec.name}`.",
            )
        ]
    where = path.name if path is not None else "built with fixed weights"
    return [Finding("weights", "ok", where), _accuracy(subject, dataset)]


def _differs(subject: Subject, dataset: str) -> bool:
    hashes = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hashes.append(state_sha256(build_model(subject.spec, get_info(dataset)).state_dict()))
    return hashes[0] != hashes[1]


@torch.no_grad()
def _accuracy(subject: Subject, dataset: str) -> Finding:
    data = load_dataset(dataset, "calibration")
    data = data.subset(range(min(SAMPLES, len(data))))
    right = 0
    for group in data.batches(100):
        labels = torch.from_numpy(data.labels[group])
        right += int((subject.model(data.stack(group)).argmax(1) == labels).sum())
    chance = 1 / subject.num_classes
    error = (chance * (1 - chance) / len(data)) ** 0.5
    accuracy = right / len(data)
    if accuracy > chance + CERTAIN * error:
        return Finding("accuracy", "ok", f"{accuracy:.1%} of {len(data)} calibration samples")
    return Finding(
        "accuracy",
        "warning",
        f"{accuracy:.1%} of {len(data)} calibration samples are right: no better than chance.",
        "An attack looks strong on a model that is broken.",
        "Look at normalisation (inputs are in [0, 1]), the order of classes, and the checkpoint.",
    )


def thresholds(subject: Subject) -> list[Finding]:
    """Check that exit thresholds are fitted: samples leave at different exits."""
    data = load_dataset(str(subject.model.dataset), "calibration")
    group = max(data.batches(200), key=len)
    _, passed = traced(subject, data.stack(group))
    if not any(gate.kind == "exit" for gate in passed.decisions.values()):
        return []
    macs = passed.macs()
    if macs.min() == macs.max():
        return [
            Finding(
                "thresholds",
                "warning",
                f"All {len(macs)} calibration samples leave at the same exit.",
                "The thresholds do not fit the model, so there is no dynamic compute to attack.",
                "Fit them on the calibration split: load_dataset(name, 'calibration').",
            )
        ]
    split = fitted_on(subject.model)
    if split == "test":
        return [
            Finding(
                "thresholds",
                "error",
                "The exit thresholds were fitted on the test split.",
                "Accuracy and saving are overstated: the answers were at hand.",
                "Fit them on the calibration split: load_dataset(name, 'calibration').",
            )
        ]
    if split:
        return [Finding("thresholds", "ok", f"fitted on the {split} split")]
    return [
        Finding(
            "thresholds",
            "note",
            "Nothing says on which samples the exit thresholds were fitted.",
            "Thresholds fitted on test samples overstate accuracy and saving.",
            "Fit them on the calibration split, and set the model's `fitted_on` to 'calibration'.",
        )
    ]


CHECKS = (weights, thresholds)
