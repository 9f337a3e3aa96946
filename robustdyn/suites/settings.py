"""The keys of a suite file, and `--set key=value`: settings that override them."""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from robustdyn.attacks import check_params, get
from robustdyn.errors import UserError, suggest

SUITE_KEYS = (
    "name",
    "title",
    "models",
    "samples",
    "split",
    "seed",
    "samples_per_cell",
    "batch_size",
    "attacks",
)
ATTACK_KEYS = ("attack", "objective", "estimator", "norm", "eps", "models", "sources")
"""What else an [[attacks]] table holds is a parameter of the attack."""


def override(tables: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return the tables of a suite with `key=value` settings applied.

    A value is read as TOML where it is TOML, else as text. `attacks.KEY` goes to every attack of
    the suite that has such a key or parameter.

    Raises:
        UserError: if a setting is no `key=value`, or nothing in the suite has the key.
    """
    attacks = tables.get("attacks")
    if not isinstance(attacks, list) or not all(isinstance(table, dict) for table in attacks):
        raise UserError("The suite has no attacks.", "Add an [[attacks]] table to its file.")
    result = {**tables, "attacks": [dict(table) for table in attacks]}
    for setting in settings:
        key, sign, text = setting.partition("=")
        key = key.strip()
        if not sign or not key:
            raise UserError(
                f"'{setting}' is no setting.", "Write key=value, for example samples=100."
            )
        if key.startswith("attacks."):
            _override_attacks(result["attacks"], key.removeprefix("attacks."), _value(text.strip()))
        elif key in SUITE_KEYS and key != "attacks":
            result[key] = _value(text.strip())
        else:
            known = [name for name in SUITE_KEYS if name != "attacks"]
            raise UserError(
                f"A suite has no setting '{key}'.",
                f"{suggest(key, known)}Known: {', '.join(known)}, and attacks.KEY.",
            )
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _override_attacks(tables: list[dict[str, Any]], key: str, value: Any) -> None:
    refusals = [_refusal(table, key, value) for table in tables]
    for table, refusal in zip(tables, refusals, strict=True):
        if refusal is None:
            table[key] = value
    if all(refusals):
        remedies = [refusal.remedy for refusal in refusals if refusal is not None]
        near = suggest(key, ATTACK_KEYS)
        hint = next((r for r in remedies if r.startswith("Did you mean")), near or remedies[-1])
        if key in ATTACK_KEYS:
            hint = "Write it into the suite file, in the [[attacks]] tables that are to have it."
        raise UserError(f"No attack of this suite has the setting '{key}'.", hint)


def _refusal(table: Mapping[str, Any], key: str, value: Any) -> UserError | None:
    """Return why the attack of `table` has no such setting, or None if it has."""
    if key in table or key == "models" or (key in ("norm", "estimator") and "eps" in table):
        return None
    attack = get(table.get("attack", ""))
    try:
        check_params(attack.name, table.get("objective", ""), {key: value})
    except UserError as error:
        return error
    return None
