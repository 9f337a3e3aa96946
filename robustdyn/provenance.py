"""What made a result: versions, revision and date."""

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import robustdyn

_CHECKOUT = Path(robustdyn.__file__).resolve().parent.parent


def provenance() -> dict[str, str]:
    """Return the versions that decide a number, the git revision and the time, as texts."""
    return {
        "robustdyn": robustdyn.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        "torch": installed("torch"),
        "numpy": installed("numpy"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def installed(package: str) -> str:
    """Return the installed version of a package, "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def revision() -> str:
    """Return the checkout's commit, with "-dirty" if it was changed; "" outside a checkout."""
    if not (_CHECKOUT / ".git").exists():
        return ""
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
