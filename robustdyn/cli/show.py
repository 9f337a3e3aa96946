"""`robustdyn show`: one model, attack, dataset or suite in detail."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from robustdyn.cli.output import columns, facts, megamacs, print_json
from robustdyn.errors import UserError, suggest

Details = dict[str, Any]


@click.command("show", short_help="Show one model, attack, dataset or suite.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(name: str, as_json: bool) -> None:
    """Show what NAME is: a model with its card and its gates, an attack, a dataset or a suite.

    \b
    robustdyn show skipnet
    robustdyn show pgd --json
    """
    details = _find(name)
    if as_json:
        print_json(details)
    else:
        _PRINT[details["kind"]](details)


def _find(name: str) -> Details:
    from robustdyn.attacks import get, list_attacks
    from robustdyn.data.info import get_info, list_datasets
    from robustdyn.registry import get_model_spec, list_models, refuse_broken
    from robustdyn.suites import list_suites

    models = [spec.name for spec in list_models()]
    datasets = [info.name for info in list_datasets()]
    attacks = [attack.name for attack in list_attacks()]
    if name in models:
        return _model(get_model_spec(name))
    if name in datasets:
        return {"kind": "dataset", **vars(get_info(name))}
    if name in list_suites() or name.endswith(".toml"):
        return _suite(name)
    if name in attacks or ":" in name:
        return _attack(get(name))
    refuse_broken(name)
    raise UserError(
        f"Nothing is named '{name}'.",
        f"{suggest(name, [*models, *datasets, *attacks, *list_suites()])}"
        "See `robustdyn list models` (or attacks, datasets, suites).",
    )


def _model(spec: Any) -> Details:
    from robustdyn.anatomy import anatomy
    from robustdyn.data import load_dataset
    from robustdyn.registry import create_model, model_card

    cards = {dataset: model_card(spec.name, dataset) for dataset in spec.datasets}
    dataset = next((d for d in spec.datasets if cards[d] is not None), spec.datasets[0])
    model = create_model(spec.name, dataset, pretrained=cards[dataset] is not None)
    sample = load_dataset(dataset, "test").stack([0, 0])  # some models cannot take one alone
    seen = anatomy(model, sample)
    kept = (cards[dataset] or {}).get("gates", {})
    return {
        "kind": "model",
        "name": spec.name,
        "family": spec.family,
        "summary": spec.summary,
        "paper": spec.paper,
        "task": spec.task,
        "static_compute": spec.static_compute,
        "batch_coupled": spec.batch_coupled,
        "randomised": spec.randomised,
        "datasets": list(spec.datasets),
        "plugin": spec.plugin,
        "recipe": spec.recipe is not None,
        "cards": {name: card for name, card in cards.items() if card is not None},
        "parameters": sum(p.numel() for p in model.parameters()),
        "sample": {"dataset": dataset, "macs": seen.macs, "full_macs": seen.full_macs},
        "gates": [
            {
                "name": gate.name,
                "kind": gate.kind,
                "shape": list(gate.shape),
                "guards_macs": gate.guards,
                "kept": kept.get(gate.name),
            }
            for gate in seen.gates
        ],
    }


def _attack(attack: Any) -> Details:
    import inspect

    return {
        "kind": "attack",
        "name": attack.name,
        "summary": attack.summary,
        "objectives": list(attack.objectives),
        "params": attack.params,
        "batch_coupled": attack.batch_coupled,
        "description": (inspect.getdoc(attack.run) or "").split("\n\nArgs:")[0],
    }


def _suite(name: str) -> Details:
    from robustdyn.suites.parse import load_suite

    return {"kind": "suite", **load_suite(name).to_dict()}


def _print_model(details: Details) -> None:
    from robustdyn.trace import FULL_BITS

    marks = [key for key in ("static_compute", "batch_coupled", "randomised") if details[key]]
    sample = details["sample"]
    lines: list[tuple[str, object]] = [
        ("family", details["family"]),
        ("paper", details["paper"]),
        ("mechanism", details["summary"]),
        ("marks", ", ".join(marks)),
        ("plug-in", details["plugin"]),
        ("datasets", ", ".join(details["datasets"])),
        ("parameters", f"{details['parameters']:,}"),
    ]
    for dataset, card in details["cards"].items():
        normal = f"accuracy {card['accuracy']:.1%} at {megamacs(card['mean_macs'])} MACs"
        full = f"full inference {card['full_accuracy']:.1%} at {megamacs(card['full_macs'])} MACs"
        lines.append((f"on {dataset}", f"{normal}; {full}"))
        full_bits = card.get("full_bit_operations", 0.0)
        if full_bits and full_bits < FULL_BITS**2 * card["full_macs"]:
            bits = (megamacs(card["mean_bit_operations"]), megamacs(full_bits))
            lines.append(("bit operations", f"{bits[0]} of {bits[1]}"))
        attacked = _attacked(card.get("attacked", {}))
        lines += zip(["attacked", *[" "] * len(attacked)], attacked, strict=False)
    if not details["cards"]:
        remedy = f"; `robustdyn train {details['name']}` makes them" if details["recipe"] else ""
        own = "its function's own" if details["plugin"] else "none"
        lines.append(("weights", own + remedy))
    click.echo(f"{details['name']}\n")
    click.echo(facts(lines))
    click.echo(
        f"\nThe first test sample of {sample['dataset']}: {megamacs(sample['macs'])} MACs of "
        f"{megamacs(sample['full_macs'])} with every gate open."
    )
    if details["gates"]:
        click.echo(
            f"\n{columns([('gate', 'kind', 'shape', 'kept', 'guards (MACs)'), *_gates(details)])}"
        )


def _attacked(figures: Details) -> list[str]:
    lines = []
    for name, line in figures.items():
        if isinstance(line, dict):
            headroom = line["headroom_recovered"]
            spent = "" if headroom is None else f", {headroom:.0%} of the headroom"
            lines.append(f"{name}: accuracy {line['robust_accuracy']:.1%}{spent}")
    return lines


def _gates(details: Details) -> list[tuple[str, ...]]:
    return [
        (
            gate["name"],
            gate["kind"],
            " x ".join(map(str, gate["shape"])) or "1",
            f"{gate['kept']:.0%}" if gate["kept"] is not None else "-",
            megamacs(gate["guards_macs"]),
        )
        for gate in details["gates"]
    ]


def _print_attack(details: Details) -> None:
    params = details["params"]
    click.echo(f"{details['name']}\n\n{details['description'] or details['summary']}\n")
    click.echo(
        facts(
            [
                ("objectives", ", ".join(details["objectives"])),
                ("parameters", ", ".join(f"{k}={v}" for k, v in params.items())),
            ]
        )
    )


def _print_facts(details: Details) -> None:
    click.echo(f"{details['name']}\n")
    click.echo(
        facts(
            (key, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
            for key, value in details.items()
            if key not in ("kind", "name", "attacks")
        )
    )


def _print_suite(details: Details) -> None:
    _print_facts(details)
    rows = [
        (
            " ".join(filter(None, (a["attack"], a["objective"], _from(a["sources"])))),
            a["norm"],
            ", ".join(_eps(a["norm"], eps) for eps in a["eps"]),
            ", ".join(f"{k}={v}" for k, v in a["params"]),
        )
        for a in details["attacks"]
    ]
    click.echo(f"\n{columns([('attack', 'norm', 'eps', 'parameters'), *rows])}")


def _from(sources: Sequence[str]) -> str:
    return f"from {', '.join(sources)}" if sources else ""


def _eps(norm: str, eps: float) -> str:
    return f"{eps * 255:.4g}/255" if norm == "linf" and eps else f"{eps:.4g}"


_PRINT: dict[str, Callable[[Details], None]] = {
    "model": _print_model,
    "attack": _print_attack,
    "dataset": _print_facts,
    "suite": _print_suite,
}
