"""The package as it is built: every folder in the wheel, imports in one direction, no surprises."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("robustdyn", "attacks", "kernels", "reports")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_packaged():
    packages = set()
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            packages.add(".".join(parts if folder == "robustdyn" else ("robustdyn", *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.parametrize(
    "resource",
    [
        "py.typed",
        "suites/quickstart.toml",
        "data/embedded/fashion_mnist_test.npz",
        "data/embedded/README.md",
        "weights/resnet.fashion_mnist.safetensors",
        "weights/resnet.fashion_mnist.json",
        "reports/templates/report.html.j2",
        "kernels/cuda/conv.cu",
        "kernels/cuda/tile.cuh",
    ],
)
def test_data_files_are_installed(resource):
    """Against the wheel, this shows that package-data names them all."""
    from importlib.resources import files

    package, _, rest = resource.partition("/")
    if package in FOLDERS[1:]:
        assert files(f"robustdyn.{package}").joinpath(rest).is_file()
    else:
        assert files("robustdyn").joinpath(resource).is_file()


def test_the_outer_folders_cannot_be_imported_by_mistake():
    for folder in FOLDERS[1:]:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"import robustdyn.{folder}" in done.stderr


def test_importing_the_package_and_asking_for_help_load_no_torch():
    code = (
        "import sys, robustdyn\n"
        "from robustdyn.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'foolbox'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Who may import whom, from the leaves up: a module may import from its own row and those above.
LAYERS = [
    {"errors"},
    {"folders", "no_cuda"},
    {"kernels", "plugins"},
    {"gates", "execution", "macs"},
    {"decision"},
    {"trace"},
    {"primitives"},
    {"foreign_pass"},
    {"reading"},
    {"adapters"},
    {"threat", "data", "weights", "recipe"},
    {"losses", "calibration", "exit_losses", "exit_calibration"},
    {"registry", "models"},
    {"attacks"},
]
FORBIDDEN = {
    "kernels": {"robustdyn.trace", "robustdyn.primitives", "robustdyn.models"},
    "attacks": {"robustdyn.models", "robustdyn.registry", "robustdyn.evaluation"},
    "reports": {"torch", "robustdyn.models", "robustdyn.trace", "robustdyn.evaluation"},
    "robustdyn/metrics.py": {"torch", "robustdyn.trace"},
    "robustdyn/labels.py": {"torch", "robustdyn.trace", "robustdyn.reports"},
    "robustdyn/checks": {"torch", "robustdyn.trace", "robustdyn.reports"},
    "robustdyn/models": {"robustdyn.attacks", "robustdyn.evaluation", "robustdyn.execution"},
    "robustdyn/primitives": {"robustdyn.models", "robustdyn.registry", "robustdyn.attacks"},
    "robustdyn/evaluation.py": {"robustdyn.runner", "robustdyn.results", "robustdyn.reports"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _layer(name: str) -> int | None:
    return next((k for k, layer in enumerate(LAYERS) if name in layer), None)


def _modules() -> list[Path]:
    return [p.relative_to(ROOT) for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py"))]


@pytest.mark.parametrize("path", _modules(), ids=str)
def test_imports_point_one_way(path):
    imports = _imports(ROOT / path)
    for prefix, forbidden in FORBIDDEN.items():
        if path.as_posix().startswith(prefix):
            bad = {i for i in imports for f in forbidden if i == f or i.startswith(f + ".")}
            assert not bad, f"{path} must not import {bad}"
    top = path.parts[1] if path.parts[0] == "robustdyn" else path.parts[0]
    own = _layer(top.removesuffix(".py"))
    if own is None:
        return
    for name in imports:
        match = re.fullmatch(r"robustdyn\.(\w+).*", name)
        other = _layer(match.group(1)) if match else None
        assert other is None or other <= own, f"{path} (layer {own}) imports {name}"


@pytest.mark.parametrize("path", _modules(), ids=str)
def test_torchvision_is_never_imported(path):
    assert not any(name.split(".")[0] == "torchvision" for name in _imports(ROOT / path))


def test_no_init_or_conftest_makes_the_tests_use_the_checkout():
    assert not (ROOT / "tests/__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()
