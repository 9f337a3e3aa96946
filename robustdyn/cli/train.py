"""`robustdyn train`: weights and model cards from recorded recipes."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustdyn.cli.output import columns, note

if TYPE_CHECKING:
    from robustdyn.registry import ModelSpec


@click.command("train", short_help="Train a model by its recipe.")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Train every model that has a recipe.")
@click.option("--dataset", help="One of the model's datasets.  [its first]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the weights.  [the user's own]"
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the training data.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--measure", is_flag=True, help="Train nothing: renew the cards of the weights.")
@click.option("--dry-run", is_flag=True, help="Print the recipes; train nothing.")
def command(
    name: str | None,
    every: bool,
    dataset: str | None,
    out: Path | None,
    data_root: Path | None,
    seed: int | None,
    epochs: int | None,
    measure: bool,
    dry_run: bool,
) -> int:
    """Train the model NAME by its recipe, and print the path of its weights.

    \b
    robustdyn train skipnet
    robustdyn train --all --dry-run
    robustdyn train skipnet --measure   # its weights again: accuracy, compute, attacks
    """
    from robustdyn.cards import renew_card
    from robustdyn.errors import UserError
    from robustdyn.folders import make_writable
    from robustdyn.registry import get_model_spec, list_models
    from robustdyn.training import train
    from robustdyn.weights import user_folder

    if every == (name is not None):
        raise UserError("Give the name of a model, or --all.", "See `robustdyn list models`.")
    specs = [s for s in list_models() if s.recipe] if name is None else [get_model_spec(name)]
    if dataset is not None and name is None:
        specs = [spec for spec in specs if dataset in spec.datasets]
    if dry_run:
        click.echo(columns((s.name, dataset or s.datasets[0], _recipe(s)) for s in specs))
        return 0
    folder = out or user_folder()
    make_writable(folder, "Weights")
    failed = []
    for spec in specs:
        where = dataset or spec.datasets[0]
        note(f"{'Measuring' if measure else 'Training'} {spec.name} on {where}")
        try:
            if measure:
                card = renew_card(spec.name, where, folder, log=note)
            else:
                card = train(
                    spec.name,
                    dataset=where,
                    out=folder,
                    seed=seed,
                    epochs=epochs,
                    data_root=data_root,
                    log=note,
                )
        except UserError as error:
            if name is not None:
                raise
            note(f"{spec.name} failed: {error.message}")
            failed.append(spec.name)
        else:
            note(f"accuracy {card['accuracy']:.1%}, compute {card['compute']:.2f} of full")
            click.echo(folder / f"{spec.name}.{where}.safetensors")
    if failed:
        note(f"Failed: {', '.join(failed)}.")
    return 1 if failed else 0


def _recipe(spec: "ModelSpec") -> str:
    if spec.recipe is None:
        return "no recipe"
    recipe = spec.recipe
    return (
        f"{recipe.epochs} epochs of {recipe.optimizer}, lr {recipe.lr}, batch {recipe.batch_size}, "
        f"estimator {recipe.estimator}, seed {recipe.seed}"
    )
