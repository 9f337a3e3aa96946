"""Plug-ins: files and modules of the user's that register models, and where they are remembered.

A file's code runs because the user registered it (`robustdyn register FILE`); that of an installed
package, because it declares an entry point in the group "robustdyn.models". What is registered is
kept in the user's folder, in plugins.json.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from robustdyn.errors import UserError
from robustdyn.folders import home, write_json

GROUP = "robustdyn.models"


@dataclass(frozen=True)
class Registration:
    """What plugins.json holds of one plug-in: its source, and the models it had when registered."""

    source: str
    models: tuple[str, ...]


@dataclass
class Plugin:
    """A plug-in that was loaded, or could not be.

    Attributes:
        source: the absolute path of a file, or the name of a module.
        models: names it registered, or was known to register.
        error: what went wrong, "" if nothing did.
        modules: what its file imported from its own folder.
    """

    source: str
    models: tuple[str, ...] = ()
    error: str = ""
    modules: dict[str, ModuleType] = field(default_factory=dict)


LOADED: dict[str, Plugin] = {}
"""The plug-ins that this process loaded or tried to load, by source."""


def source_of(text: str) -> str:
    """Return what a plug-in is known by: a file's absolute path, or the module's name as it is.

    Raises:
        UserError: if it is neither.
    """
    path = Path(text).expanduser()
    if path.suffix == ".py" or path.exists():
        path = path.resolve()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"'{text}' {what}.", "Give a Python file that registers models.")
        return str(path)
    if not all(part.isidentifier() for part in text.split(".")):
        raise UserError(
            f"'{text}' is neither a file nor the name of a module.",
            "Give a path such as my_models.py, or a name such as my_package.models.",
        )
    return text


def registrations() -> list[Registration]:
    """Return what is remembered, in the order in which it was registered.

    Raises:
        UserError: if plugins.json is damaged.
    """
    path = _memory()
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Registration(str(e["source"]), tuple(map(str, e["models"]))) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The list of plug-ins '{path}' is damaged: {error}.",
            "Mend it, or delete it and register your plug-ins again.",
        ) from error


def remember(source: str, models: tuple[str, ...]) -> None:
    """Keep a plug-in for later processes; a known source keeps its place."""
    entries = {entry.source: entry for entry in registrations()}
    entries[source] = Registration(source, models)
    write_json([asdict(entry) for entry in entries.values()], _memory())


def forget(source: str) -> None:
    """Remove a plug-in from what is remembered."""
    left = [asdict(entry) for entry in registrations() if entry.source != source]
    write_json(left, _memory())


def _memory() -> Path:
    return home() / "plugins.json"


@cache
def installed() -> list[EntryPoint]:
    """Return the entry points by which installed packages bring models."""
    return list(entry_points(group=GROUP))


def run(plugin: Plugin) -> None:
    """Import a plug-in, which registers its models."""
    if not _is_file(plugin):
        importlib.import_module(plugin.source)
        return
    path = Path(plugin.source)
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} is gone")
    name = f"robustdyn_plugin_{path.stem}_{_digest(path.as_posix().encode())[:8]}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None  # a source file has one
    with importing(plugin):
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


@contextmanager
def importing(plugin: Plugin) -> Iterator[None]:
    """Import from the plug-in's folder inside, not from those of other plug-ins.

    Research code calls its files `models` and `utils`: two plug-ins would get each other's.
    """
    if not _is_file(plugin):
        yield
        return
    folder = Path(plugin.source).parent
    others = [p for p in LOADED.values() if p is not plugin]
    hidden = {
        name: sys.modules.pop(name)
        for other in others
        for name, module in other.modules.items()
        if sys.modules.get(name) is module
    }
    before = set(sys.modules)
    sys.modules.update(plugin.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], folder):
                plugin.modules[name] = sys.modules[name]
        sys.modules.update(hidden)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(
        file and Path(file).is_relative_to(folder) and "site-packages" not in Path(file).parts
    )


def _is_file(plugin: Plugin) -> bool:
    return plugin.source.endswith(".py")


def source_sha256(plugin: Plugin) -> str:
    """Return the SHA-256 of a plug-in's code: its file, and what that imports from its folder."""
    files = {Path(str(module.__file__)) for module in plugin.modules.values()}
    if _is_file(plugin):
        files.add(Path(plugin.source))
    else:
        origin = getattr(sys.modules.get(plugin.source), "__file__", None)
        files |= {Path(origin)} if origin else set()
    return _digest(b"".join(path.read_bytes() for path in sorted(files)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
