"""The conformance check: whether the numbers that a model gives can be trusted.

Every check returns findings; each says what was seen, why it matters and what to do.
"""

from collections.abc import Callable

from robustdyn.conformance.compute import CHECKS as _COMPUTE
from robustdyn.conformance.finding import LEVELS, Finding, Subject, in_one_line, is_wrong
from robustdyn.conformance.gates import CHECKS as _GATES
from robustdyn.conformance.outputs import CHECKS as _OUTPUTS
from robustdyn.conformance.outputs import first_pass
from robustdyn.conformance.provenance import CHECKS as _PROVENANCE
from robustdyn.conformance.subject import make_subject

__all__ = ["LEVELS", "Finding", "Subject", "check_model", "is_wrong"]

_CHECKS = (*_OUTPUTS, *_GATES, *_COMPUTE, *_PROVENANCE)


def check_model(name: str, dataset: str | None = None) -> list[Finding]:
    """Return the findings about a registered model on real samples of a dataset, in order.

    Args:
        name: see `list_models`.
        dataset: by default the first of the model's own.

    Raises:
        UserError: if there is no such model or dataset, or the model cannot be built.
    """
    subject = make_subject(name, dataset)
    found = first_pass(subject)
    if any(finding.level == "error" for finding in found):
        return found  # the others would only repeat it
    return found + [finding for check in _CHECKS for finding in _safely(check, subject)]


def _safely(check: Callable[[Subject], list[Finding]], subject: Subject) -> list[Finding]:
    try:
        return check(subject)
    except Exception as error:  # a foreign model may fail anywhere; the other checks go on
        what = f"The check '{check.__name__}' could not be made: {in_one_line(error)}"
        why = "What it looks at is not known to be right."
        return [Finding(check.__name__, "error", what, why, "Mend what fails, then check again.")]
