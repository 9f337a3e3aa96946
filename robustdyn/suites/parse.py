"""From the tables of a suite file to a checked Suite."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from robustdyn.attacks import check_params
from robustdyn.attacks import get as get_attack
from robustdyn.errors import UserError, suggest
from robustdyn.gates import ESTIMATORS
from robustdyn.suite import AttackEntry, Param, Suite
from robustdyn.suites import read_suite
from robustdyn.suites.settings import ATTACK_KEYS, SUITE_KEYS, override
from robustdyn.threat import Threat

DEFAULTS: dict[str, Any] = {
    "title": "",
    "split": "test",
    "seed": 0,
    "samples_per_cell": 250,
    "batch_size": 64,
}
_FRACTION = re.compile(r"\s*\d+(\.\d+)?\s*/\s*\d+\s*")


def load_suite(name_or_path: str, settings: Iterable[str] = ()) -> Suite:
    """Return a shipped suite, or that of a file, with `key=value` settings applied.

    Raises:
        UserError: if there is no such suite, or anything in it or in a setting is wrong.
    """
    return parse_suite(override(read_suite(name_or_path), settings))


def parse_suite(tables: Mapping[str, Any]) -> Suite:
    """Return the Suite that the tables of a suite file describe.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    _check_keys(tables, SUITE_KEYS, "a suite")
    for key in ("models", "samples", "attacks"):
        if key not in tables:
            raise UserError(f"The suite has no '{key}'.", f"Add {key} to the suite file.")
    values = DEFAULTS | dict(tables)
    return Suite(
        name=_name(values["name"]),
        title=_text(values, "title") or values["name"],
        models=_names(values["models"], "models"),
        samples=_whole(values, "samples", least=1),
        split=_text(values, "split"),
        seed=_whole(values, "seed", least=0),
        samples_per_cell=_whole(values, "samples_per_cell", least=1),
        batch_size=_whole(values, "batch_size", least=1),
        attacks=tuple(_attack(table) for table in values["attacks"]),
    )


def _attack(table: Mapping[str, Any]) -> AttackEntry:
    if not isinstance(table.get("attack"), str):
        near = next((suggest(key, ["attack"]) for key in table if suggest(key, ["attack"])), "")
        raise UserError(
            "An [[attacks]] table names no attack.",
            f'{near}Add attack = "pgd"; see `robustdyn list attacks`.',
        )
    name = table["attack"]
    method = get_attack(name)
    params = {key: _param(value) for key, value in table.items() if key not in ATTACK_KEYS}
    values = {"objective": "", "estimator": "", "norm": "linf", "models": []} | dict(table)
    objective = _text(values, "objective")
    _check_params(name, objective, params)
    if ":" not in name:  # our defaults are written out; a library's may be objects
        params = method.params | params
    estimator = _text(values, "estimator")
    if estimator and estimator not in ESTIMATORS:
        raise UserError(
            f"Unknown gradient estimator '{estimator}'.",
            f"{suggest(estimator, ESTIMATORS)}Choose one of: {', '.join(ESTIMATORS)}.",
        )
    norm = _text(values, "norm")
    sources = _names(table["sources"], "sources") if "sources" in table else ()
    if sources and name == "clean":
        raise UserError(
            "The attack 'clean' crafts nothing that could be judged on others.",
            "Leave its sources out.",
        )
    return AttackEntry(
        attack=name,
        objective=objective or (method.objectives[0] if method.objectives else ""),
        estimator=estimator,
        norm=norm,
        eps=_eps_list(name, norm, values.get("eps")),
        params=tuple(sorted(params.items())),
        models=_names(values["models"], "models") if values["models"] else (),
        sources=sources,
    )


def _check_params(attack: str, objective: str, params: Mapping[str, Any]) -> None:
    try:
        check_params(attack, objective, params)
    except UserError as error:
        for key in params:  # perhaps a misspelt key of the table, not a parameter
            for near in get_close_matches(key, ATTACK_KEYS, n=1, cutoff=0.75):
                raise UserError(
                    f"Unknown key '{key}' of attack '{attack}'.", f"Did you mean '{near}'?"
                ) from error
        raise


def _eps_list(attack: str, norm: str, value: Any) -> tuple[float, ...]:
    if value is None and attack != "clean":
        raise UserError(
            f"The attack '{attack}' has no eps.", 'Add the radius, for example eps = "8/255".'
        )
    texts = value.split(",") if isinstance(value, str) else value
    items = texts if isinstance(texts, list) else [0.0 if texts is None else texts]
    found = tuple(dict.fromkeys(_eps(norm, item) for item in items))
    if not found:
        raise UserError(f"The list of eps of '{attack}' is empty.", 'Write eps = ["8/255"].')
    if attack == "clean" and found != (0.0,):
        raise UserError("The attack 'clean' changes nothing: its eps is 0.", "Leave its eps out.")
    return found


def _eps(norm: str, item: Any) -> float:
    number = _param(item)
    if isinstance(number, str) and re.fullmatch(r"\s*-?[\d.]+(e-?\d+)?\s*", number):
        number = float(number)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"eps {item!r} is no number.", 'Write 0.03 or "8/255".')
    if norm == "linf" and number > 1:
        raise UserError(
            f"eps {number} is larger than the whole range of inputs, which is 0 to 1.",
            f'Did you mean "{number:g}/255"?',
        )
    return float(Threat(norm, float(number)).eps)


def _param(value: Any) -> Param:
    """Return a parameter's value, "2/255" as the number it means."""
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        top, bottom = (Fraction(part.strip()) for part in value.split("/"))
        if not bottom:
            raise UserError(f"'{value}' divides by zero.", 'Write for example "8/255".')
        return float(top / bottom)
    if not isinstance(value, int | float | str | bool | list):
        raise UserError(f"{value!r} is no value of a parameter.", "Give a number or a text.")
    return value


def _check_keys(keys: Iterable[str], known: tuple[str, ...], owner: str) -> None:
    for key in keys:
        if key not in known:
            raise UserError(
                f"Unknown key '{key}' of {owner}.",
                f"{suggest(key, known)}Known keys: {', '.join(known)}.",
            )


def _name(value: Any) -> str:
    if not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", value)):
        raise UserError(
            f"The suite's name {value!r} cannot be the name of a folder.",
            "Use letters, digits, '-', '_' and '.', the first a letter or digit.",
        )
    return value


def _names(value: Any, key: str) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    good = isinstance(items, list) and items and all(isinstance(i, str) for i in items)
    if not good or not all(item.strip() for item in items):
        raise UserError(f"'{key}' is no list of names.", f'Write {key} = ["skipnet", "spatial.*"].')
    return tuple(item.strip() for item in items)


def _text(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise UserError(f"'{key}' is {values[key]!r}, not a text.", f'Write {key} = "...".')
    return values[key]


def _whole(values: Mapping[str, Any], key: str, *, least: int) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"'{key}' is {value!r}.", f"Give a whole number of at least {least}.")
    return value
