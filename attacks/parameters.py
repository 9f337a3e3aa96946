"""Checks of the parameters of attacks: made before a run, and named in the words of a suite."""

from typing import Any

from robustdyn.errors import UserError


def check_whole(*, least: int = 1, **values: Any) -> None:
    """Check that parameters, given by name, are whole numbers of at least `least`.

    Raises:
        UserError: naming the first that is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, int) and value >= least):
            raise UserError(
                f"{name} is {value!r}.", f"Give a whole number of {name}, {least} or more."
            )


def check_number(*, above: float = 0.0, hint: str = "", **values: Any) -> None:
    """Check that parameters are numbers above `above`.

    Raises:
        UserError: naming the first that is not; `hint` is added to the remedy.
    """
    for name, value in values.items():
        if not (isinstance(value, int | float) and value > above):
            raise UserError(f"{name} is {value!r}.", f"Give a number above {above:g}{hint}.")


def check_not_negative(*, zero: str, **values: Any) -> None:
    """Check that parameters are numbers of at least 0; `zero` says what 0 means.

    Raises:
        UserError: naming the first that is not.
    """
    for name, value in values.items():
        if not (isinstance(value, int | float) and value >= 0):
            raise UserError(f"{name} is {value!r}.", f"Give a number of at least 0; 0 is {zero}.")


def check_part(**values: Any) -> None:
    """Check that parameters are parts of the input: above 0 and at most 1.

    Raises:
        UserError: naming the first that is not.
    """
    for name, value in values.items():
        if not (isinstance(value, int | float) and 0 < value <= 1):
            raise UserError(
                f"{name} is {value!r}.", "Give a part of the input, above 0 and at most 1."
            )


def check_flag(**values: Any) -> None:
    """Check that parameters are true or false.

    Raises:
        UserError: naming the first that is not.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}.", "Write true or false.")


def check_step_size(step_size: float | None) -> None:
    """Check a step size; None is the attack's default.

    Raises:
        UserError: if it is no number above 0.
    """
    if step_size is not None:
        check_number(step_size=step_size, hint=", or leave it out")


def check_run(*, steps: int, restarts: int, random_start: bool, eot: int = 1) -> None:
    """Check the parameters that gradient attacks share.

    Raises:
        UserError: if one is out of range.
    """
    check_whole(steps=steps, restarts=restarts, eot=eot)
    if restarts > 1 and not random_start:
        raise UserError(
            "Several restarts without a random start all do the same.",
            "Set restarts = 1 or random_start = true.",
        )
