"""`robustdyn doctor`: whether this installation works, and what to do where it does not."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import click

from robustdyn.cli.output import columns, print_json

NEEDED = (
    "torchattacks",
    "foolbox",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "seaborn",
    "click",
    "jinja2",
    "joblib",
    "tqdm",
)
_INSTALL = "Install it again: pip install -c constraints.txt robustdyn"


class Check(NamedTuple):
    """One line: what was looked at, what was found, "ok", "absent" (optional) or "broken"."""

    name: str
    found: str
    status: str = "ok"
    remedy: str = ""


@click.command("doctor", short_help="Check the installation.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(as_json: bool) -> int:
    """Check Python, torch, dependencies, data, weights and tools; exit 1 if something is broken.

    \b
    robustdyn doctor
    """
    checks = [*_machine(), *_packages(), *_gpu(), *_data(), *_weights(), *_plugins(), *_tools()]
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        lines = columns((c.status, c.name, c.found) for c in checks).split("\n")
        for check, line in zip(checks, lines, strict=True):
            click.echo(f"{line}\n        -> {check.remedy}" if check.remedy else line)
    return 1 if any(check.status == "broken" for check in checks) else 0


def _machine() -> Iterator[Check]:
    from robustdyn import __version__
    from robustdyn.provenance import revision

    yield Check("robustdyn", f"{__version__} {revision()}".strip())
    good = sys.version_info >= (3, 11)
    yield Check(
        "python",
        platform.python_version(),
        "ok" if good else "broken",
        "" if good else "Use Python 3.11 or newer.",
    )
    yield Check("platform", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", f"{os.cpu_count()}, {usable} usable")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check("memory", f"{memory / 2**30:.1f} GiB")


def _packages() -> Iterator[Check]:
    from robustdyn.provenance import installed

    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", str(error), "broken", _INSTALL)
    else:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        yield Check("torch", f"{torch.__version__}, {build}, {capability}, {threads} threads")
    for name in NEEDED:
        version = installed(name)
        found, status = (version, "ok") if version else ("not installed", "broken")
        yield Check(name, found, status, "" if version else _INSTALL)


def _gpu() -> Iterator[Check]:
    """Whether the CUDA kernels can run: CuPy compiles them, torch holds their tensors."""
    try:
        import torch
    except (ImportError, OSError):  # has its own line
        return
    has_gpu = torch.cuda.is_available()
    try:
        import cupy
    except ImportError:
        extra = "cuda12" if (torch.version.cuda or "").startswith("12") else "cuda13"
        remedy = f"Only needed for kernels on NVIDIA GPUs: pip install robustdyn[{extra}]"
        found = (
            "not installed; on the GPU, kernels run in plain torch" if has_gpu else "not installed"
        )
        yield Check("cupy", found, "absent", remedy)
        return
    if cupy.cuda.is_available() and has_gpu:
        yield Check("cupy", f"{cupy.__version__}, GPU found: kernels run on it")
    elif cupy.cuda.is_available():
        remedy = "CuPy finds a GPU, torch does not: install torch for CUDA."
        yield Check("cupy", f"{cupy.__version__}, no GPU for torch", "absent", remedy)
    else:
        remedy = "Kernels run on the CPU; a GPU needs its driver."
        yield Check("cupy", f"{cupy.__version__}, no GPU", "absent", remedy)


def _data() -> Iterator[Check]:
    from robustdyn.data import list_datasets, load_dataset
    from robustdyn.errors import UserError

    for info in list_datasets():
        try:
            sizes = {
                split: len(load_dataset(info.name, split)) for split in ("test", "calibration")
            }
        except (OSError, ValueError, KeyError) as error:
            yield Check(f"data {info.name}", f"unreadable: {error}", "broken", _INSTALL)
            continue
        yield Check(f"data {info.name}", ", ".join(f"{n} {s}" for s, n in sizes.items()))
        try:
            found = f"{len(load_dataset(info.name, 'train'))} train"
            yield Check(f"training data {info.name}", found)
        except UserError as error:
            remedy = f"Only needed for training. {error.remedy}"
            yield Check(f"training data {info.name}", "none", "absent", remedy)
    folder = os.environ.get("ROBUSTDYN_DATA", "")
    if folder and not os.path.isdir(folder):
        yield Check(
            "ROBUSTDYN_DATA", folder, "broken", "There is no such folder: unset or mend it."
        )
    else:
        yield Check("ROBUSTDYN_DATA", folder or "not set")


def _weights() -> Iterator[Check]:
    from robustdyn.registry import list_models, model_card
    from robustdyn.weights import find_weights, sha256

    good = 0
    for spec in list_models():
        if not spec.shipped:
            continue
        dataset = spec.datasets[0]
        path = find_weights(spec.name, dataset)
        if path is None:
            remedy = f"Run `robustdyn train {spec.name}`."
            yield Check(f"weights {spec.name}", f"none for {dataset}", "broken", remedy)
            continue
        try:
            right = (model_card(spec.name, dataset) or {})["sha256"] == sha256(path)
        except (OSError, ValueError, KeyError):
            right = False
        if right:
            good += 1
        else:
            remedy = f"Install robustdyn again, or run `robustdyn train {spec.name}`."
            yield Check(f"weights {spec.name}", f"{path} altered", "broken", remedy)
    yield Check("weights", f"{good} models, hashes right")


def _plugins() -> Iterator[Check]:
    from robustdyn.registry import list_plugins

    for plugin in list_plugins():
        found = plugin.error or ", ".join(plugin.models)
        remedy = f"Mend it, or run `robustdyn register --remove {plugin.source}`."
        if plugin.error:
            yield Check(f"plug-in {plugin.source}", found, "broken", remedy)
        else:
            yield Check(f"plug-in {plugin.source}", found)


def _tools() -> Iterator[Check]:
    compiler = next((found for c in ("c++", "g++", "clang++") if (found := shutil.which(c))), "")
    yield Check(
        "compiler",
        compiler or "none",
        "ok" if compiler else "absent",
        "" if compiler else "Only needed for the fast CPU kernels: install g++ or clang++.",
    )
    yield from _kernels()


def _kernels() -> Iterator[Check]:
    """Whether the C++ kernels are there; they are built now if they can be."""
    try:
        from robustdyn.kernels.native import ISAS, native, why_not
    except (ImportError, OSError):  # no torch, which has its own line
        return
    found = native()
    if found is not None:
        yield Check("C++ kernels", f"{ISAS[found.isa]}, {found.path}")
    else:
        remedy = "Torch runs instead, slower: install g++ or clang++, or unset ROBUSTDYN_CPP."
        yield Check("C++ kernels", f"none: {why_not()}", "absent", remedy)
