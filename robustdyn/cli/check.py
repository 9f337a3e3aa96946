"""`robustdyn check`: whether a model's numbers can be trusted."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from robustdyn.cli.output import print_json

if TYPE_CHECKING:
    from robustdyn.conformance import Finding

MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}


@click.command("check", short_help="Check whether a model's numbers can be trusted.")
@click.argument("name")
@click.option("--dataset", help="Which of the model's datasets.  [its first]")
@click.option("--json", "as_json", is_flag=True, help="Print a list of findings.")
def command(name: str, dataset: str | None, as_json: bool) -> int:
    """Check the model NAME: logits, randomness, batches, gates, regions, MACs, gradients, weights.

    Exit code 0 when nothing is wrong, 1 if there is an error; warnings are for you to judge.

    \b
    robustdyn check skipnet
    robustdyn check my_model --json
    """
    from robustdyn.conformance import check_model, is_wrong

    findings = check_model(name, dataset)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        click.echo(described(findings))
    return 1 if is_wrong(findings) else 0


def described(findings: Iterable["Finding"]) -> str:
    """Return findings as text: a line each, and below it why it matters and what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]:8}{finding.check:13}{finding.what}")
        if finding.level != "ok":
            lines += [f"{'':21}{text}" for text in (finding.why, _arrow(finding.remedy)) if text]
    return "\n".join(lines)


def _arrow(remedy: str) -> str:
    return f"-> {remedy}" if remedy else ""
