"""Errors that a user can cause: one line what is wrong, one line what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it without a traceback."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the known name closest to `name`, or an empty string."""
    matches = get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.5)
    by_lower = {k.lower(): k for k in known}
    return f"Did you mean '{by_lower[matches[0]]}'? " if matches else ""
