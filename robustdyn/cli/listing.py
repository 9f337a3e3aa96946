"""`robustdyn list`: what is registered."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import click

from robustdyn.cli.output import columns, print_json
from robustdyn.cli.register import note_broken
from robustdyn.errors import UserError, suggest

Entry = dict[str, Any]


@click.command("list", short_help="List models, attacks, datasets, suites or figures.")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "suites", "figures"]))
@click.argument("pattern", default="*")
@click.option("--dataset", help="Say which attacks do not fit the inputs of this dataset, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(kind: str, pattern: str, dataset: str | None, as_json: bool) -> None:
    """List what there is of one KIND whose name (or family) matches PATTERN.

    \b
    robustdyn list models
    robustdyn list models "spatial.*"
    robustdyn list attacks --json
    robustdyn list attacks "foolbox:*" --dataset japanese_vowels
    """
    if dataset is not None and kind != "attacks":
        raise UserError(f"--dataset does not go with {kind}.", "Use it with `list attacks`.")
    entries = _attacks(dataset) if kind == "attacks" else _ENTRIES[kind]()
    found = [e for e in entries if _fits(e, pattern)]
    if not found:
        known = [e["name"] for e in entries]
        raise UserError(
            f"None of the {kind} matches '{pattern}'.",
            f"{suggest(pattern, known)}See `robustdyn list {kind}`.",
        )
    if kind == "models":
        note_broken()
    if as_json:
        print_json(found)
    elif kind == "models":
        click.echo(_tree(found))
    else:
        click.echo(columns((e["name"], e["summary"]) for e in found))


def _fits(entry: Entry, pattern: str) -> bool:
    family = entry.get("family", "")
    return any(fnmatchcase(text, pattern) for text in (entry["name"], family) if text) or (
        family.startswith(f"{pattern}.")
    )


def _tree(models: list[Entry]) -> str:
    """Return the taxonomy as an indented tree, the models as its leaves."""
    texts: list[tuple[str, str]] = []
    above: list[str] = []
    for model in models:
        branch = model["family"].split(".")
        shared = 0
        while shared < min(len(above), len(branch)) and above[shared] == branch[shared]:
            shared += 1
        texts += [("  " * depth + branch[depth], "") for depth in range(shared, len(branch))]
        summary = model["summary"] + (" (static)" if model["static_compute"] else "")
        texts.append(("  " * len(branch) + f"- {model['name']}", summary))
        above = branch
    return columns(texts)


def _models() -> list[Entry]:
    from robustdyn.registry import list_models
    from robustdyn.weights import find_weights

    return [
        {
            "name": spec.name,
            "family": spec.family,
            "static_compute": spec.static_compute,
            "batch_coupled": spec.batch_coupled,
            "randomised": spec.randomised,
            "task": spec.task,
            "datasets": list(spec.datasets),
            "trained": [d for d in spec.datasets if find_weights(spec.name, d) is not None],
            "summary": spec.summary,
            "paper": spec.paper,
            "plugin": spec.plugin,
        }
        for spec in list_models()
    ]


def _attacks(dataset: str | None = None) -> list[Entry]:
    """Return our attacks, then those of torchattacks and foolbox.

    With a dataset, "unsupported" says why one does not fit its inputs; else only why one never
    works.
    """
    from robustdyn.attacks import list_attacks
    from robustdyn.attacks.foreign_support import list_foreign
    from robustdyn.data.info import get_info

    info = None if dataset is None else get_info(dataset)
    ours = [
        {
            "name": attack.name,
            "summary": attack.summary,
            "objectives": list(attack.objectives),
            "params": attack.params,
            "unsupported": "",
        }
        for attack in list_attacks()
    ]
    theirs: list[Entry] = []
    for attack in list_foreign():
        reasons = [attack.broken] if attack.broken else []
        if info is not None:
            reasons = attack.not_supported_reasons(
                shape=info.input_shape, classes=info.num_classes, norm=next(iter(attack.norms), "")
            )
        unsupported = "; ".join(reasons)
        theirs.append(
            {
                "name": attack.name,
                "summary": f"unsupported: {unsupported}" if unsupported else attack.summary,
                "objectives": [] if attack.broken or attack.no_budget else ["at_least:PART"],
                "norms": list(attack.norms),
                "access": attack.access,
                "unsupported": unsupported,
                "no_budget": attack.no_budget,
            }
        )
    return ours + theirs


def _datasets() -> list[Entry]:
    from robustdyn.data.info import list_datasets

    return [
        {
            "name": info.name,
            "summary": f"{info.title}: {info.task}, {info.num_classes} classes",
            "task": info.task,
            "input_shape": list(info.input_shape),
            "num_classes": info.num_classes,
            "splits": list(info.splits),
            "licence": info.licence,
            "source": info.source,
        }
        for info in list_datasets()
    ]


def _suites() -> list[Entry]:
    from robustdyn.suites import list_suites, read_suite

    tables = [read_suite(name) for name in list_suites()]
    return [
        {"name": t["name"], "summary": t["title"], "models": t["models"], "samples": t["samples"]}
        for t in tables
    ]


def _figures() -> list[Entry]:
    from robustdyn.reports import list_figures

    return [{"name": figure.name, "summary": figure.title} for figure in list_figures()]


_ENTRIES: dict[str, Callable[[], list[Entry]]] = {
    "models": _models,
    "datasets": _datasets,
    "suites": _suites,
    "figures": _figures,
}
