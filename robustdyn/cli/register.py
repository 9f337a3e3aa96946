"""`robustdyn register`: models of the user's own."""

from typing import TYPE_CHECKING, Any

import click

from robustdyn.cli.check import described
from robustdyn.cli.output import columns, note, print_json
from robustdyn.errors import UserError, suggest

if TYPE_CHECKING:
    from robustdyn.plugins import Plugin

DOUBTS = ("warning", "error")


@click.command("register", short_help="Register models from a file or a module of your own.")
@click.argument("source", required=False, metavar="[FILE_OR_MODULE]")
@click.option("--remove", is_flag=True, help="Forget the plug-in; its files stay.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(source: str | None, remove: bool, as_json: bool) -> int:
    """Run FILE_OR_MODULE, check the models that it registers, and remember it.

    From then on, list, show, check, run and report know its models. Its code runs whenever models
    are listed. Without an argument, print what is registered. Exit code 1: the check found errors.

    \b
    robustdyn register my_models.py
    robustdyn register my_package.models
    robustdyn register --remove my_models.py
    """
    if source is None:
        if remove:
            raise UserError("Nothing to remove was named.", "Give its file, module or a model.")
        return _print_registered(as_json)
    if remove:
        return _remove(source, as_json)
    return _register(source, as_json)


def _register(text: str, as_json: bool) -> int:
    from robustdyn import plugins
    from robustdyn.conformance import check_model, is_wrong
    from robustdyn.registry import list_models, load_plugin

    source = plugins.source_of(text)
    list_models()  # so that names which are taken are known
    plugin = load_plugin(source)
    if plugin.error:
        raise UserError(f"'{text}' cannot be loaded: {plugin.error}", _remedy(plugin.error, source))
    if not plugin.models:
        raise UserError(
            f"'{text}' registers no model.",
            "Decorate a function that returns an nn.Module with @robustdyn.register_model(...).",
        )
    findings = {name: check_model(name) for name in plugin.models}
    plugins.remember(source, plugin.models)
    wrong = [name for name, found in findings.items() if is_wrong(found)]
    doubtful = [n for n, found in findings.items() if any(f.level in DOUBTS for f in found)]
    if as_json:
        answer: dict[str, Any] = {"source": source, "models": list(plugin.models)}
        answer["findings"] = {n: [f._asdict() for f in found] for n, found in findings.items()}
        print_json(answer)
    else:
        for name, found in findings.items():
            click.echo(f"{name}\n{described(found)}\n")
        click.echo(f"Registered {', '.join(plugin.models)} from {source}")
    if doubtful:
        note(f"Look at the findings about {', '.join(doubtful)} before you trust a number.")
    return 1 if wrong else 0


def _remedy(error: str, source: str) -> str:
    if "registered already" in error:
        return "Rename the function, or remove the other plug-in: robustdyn register --remove."
    if "ModuleNotFoundError" in error:
        return "Install what it imports, or keep it beside the file; a module must be installed."
    return f"Run `python {source}` to see the whole error."


def _remove(text: str, as_json: bool) -> int:
    from robustdyn import plugins

    entries = plugins.registrations()
    try:
        wanted = plugins.source_of(text)
    except UserError:  # a file that is gone is known by the path it had
        from pathlib import Path

        wanted = str(Path(text).expanduser().resolve())
    entry = next((e for e in entries if e.source in (wanted, text) or text in e.models), None)
    if entry is None:
        known = [e.source for e in entries] + [name for e in entries for name in e.models]
        raise UserError(
            f"No plug-in is registered as '{text}'.",
            f"{suggest(text, known)}`robustdyn register` prints what is.",
        )
    plugins.forget(entry.source)
    if as_json:
        print_json({"removed": entry.source, "models": list(entry.models)})
    else:
        click.echo(f"Removed {', '.join(entry.models)} of {entry.source}; the file stays.")
    return 0


def _print_registered(as_json: bool) -> int:
    from robustdyn.registry import list_plugins

    found = list_plugins()
    if as_json:
        print_json(
            [{"source": p.source, "models": list(p.models), "error": p.error} for p in found]
        )
    elif found:
        click.echo(columns((p.source, _state(p)) for p in found))
    else:
        note("No plug-in is registered. Start with: robustdyn register my_models.py")
    return 0


def _state(plugin: "Plugin") -> str:
    names = ", ".join(plugin.models)
    return f"cannot be loaded: {plugin.error} ({names})" if plugin.error else names


def note_broken() -> None:
    """Say on stderr which registered plug-ins could not be loaded."""
    from robustdyn.registry import list_plugins

    for plugin in list_plugins():
        if plugin.error:
            note(f"The plug-in {plugin.source} cannot be loaded: {plugin.error}")
            note(f"  Mend it, or run: robustdyn register --remove {plugin.source}")
