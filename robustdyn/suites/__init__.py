"""Suite files: what is shipped, and reading a file's tables. Imports no torch.

    name = "mine"
    models = ["skipnet", "spatial.*"]
    samples = 500

    [[attacks]]
    attack = "pgd"
    objective = "compute"
    eps = ["4/255", "8/255"]
    steps = 50

An attack with `sources`, names or patterns too, is crafted on these and judged on the models.
Shipped suites lie in this folder and go by their name, any other file by its path.
`robustdyn.suites.parse` turns the tables into a checked Suite.
"""

import tomllib
from pathlib import Path
from typing import Any

from robustdyn.errors import UserError, suggest

_FOLDER = Path(__file__).resolve().parent


def list_suites() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_suite(name_or_path: str) -> dict[str, Any]:
    """Return the tables of a shipped suite, or of a user's file, as they stand in it.

    Raises:
        UserError: if there is no such suite or file, or it is no TOML.
    """
    path = Path(name_or_path)
    if name_or_path in list_suites():
        path = _FOLDER / f"{name_or_path}.toml"
    elif not path.is_file():
        is_path = path.suffix == ".toml" or len(path.parts) > 1
        raise UserError(
            f"There is no suite file '{path}'." if is_path else f"Unknown suite '{path}'.",
            f"{suggest(path.stem, list_suites())}Choose one of: {', '.join(list_suites())}; "
            "or give the path of a TOML file.",
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{path}' is no valid TOML: {error}.",
            "Mend the file there; texts stand in double quotes, lists in square brackets.",
        ) from error
    return {"name": path.stem, **tables}
