"""What a check finds, and what it is given."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from robustdyn.registry import ModelSpec

LEVELS = ("ok", "note", "warning", "error")


class Finding(NamedTuple):
    """One finding.

    Attributes:
        check: which check it comes from.
        level: "ok"; "note", worth knowing; "warning", a number may mislead, judge for yourself;
            "error", it does.
        what: what was seen.
        why: why it matters.
        remedy: what to do, "" if nothing.
    """

    check: str
    level: str
    what: str
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """A model to be checked, in eval mode, and inputs that make its gates decide in many ways.

    Attributes:
        spec: the model's.
        model: built as `create_model` builds it.
        x: (B, ...) inputs in [0, 1], all of one shape: real samples, noisy ones, noise.
        real: (N, ...) real samples of that shape, enough to see what its gates do with them.
        num_classes: of the dataset.
    """

    spec: ModelSpec
    model: nn.Module
    x: Tensor
    real: Tensor
    num_classes: int


def is_wrong(findings: Iterable[Finding]) -> bool:
    """Return True if an error is among the findings."""
    return any(finding.level == "error" for finding in findings)


def named(names: Iterable[str], most: int = 6) -> str:
    """Return names as text, the first `most` of them and how many are left."""
    every = [f"'{name}'" for name in names]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def in_one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line of at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."
