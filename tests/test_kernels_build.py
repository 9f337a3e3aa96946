"""The C++ library: built on first use, once; absent without harm; safe with threads and forks."""

import os
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from robustdyn.kernels import build, masked_conv2d, native
from robustdyn.kernels.native import VARIABLE

ROOT = Path(__file__).resolve().parent.parent
ONE_CALL = """
import torch
from robustdyn.kernels import masked_conv2d, native
x, w = torch.randn(1, 5, 5, 3), torch.randn(4, 3, 3, 3)
mask = torch.zeros(1, 5, 5, dtype=torch.bool)
mask[0, 2, 2] = True
y = masked_conv2d(x, w, mask, padding=1)
dense = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w, padding=1).permute(0, 2, 3, 1)
torch.testing.assert_close(y[mask], dense[mask], rtol=1e-4, atol=1e-4)
print(masked_conv2d.select(x, w, mask, padding=1).name, native.why_not())
"""


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _needs_library():
    if native.native() is None:
        pytest.skip(native.why_not())


def _fast_compiler(folder):
    """A compiler that optimises nothing, so that building takes little time."""
    path = folder / "quick-c++"
    real = build.find_compiler()
    path.write_text(f'#!/bin/sh\necho run >> "{folder}/runs"\nexec {real} "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


def test_the_first_use_builds_once_into_an_empty_cache(tmp_path, monkeypatch):
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = _fast_compiler(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(build.cached_library, [compiler] * 3))
    (path,) = paths
    assert path.stat().st_mode & 0o100
    left = {p.name for p in path.parent.iterdir()}
    assert left == {build.NAME, "lock"}
    runs = len((tmp_path / "runs").read_text().split())
    build.cached_library(compiler)
    again = len((tmp_path / "runs").read_text().split())
    assert again == runs + 1  # its version only
    assert runs <= 3 + 6  # three versions; one build


def test_without_a_compiler_torch_runs():
    if (build.SOURCES / build.NAME).exists():
        pytest.skip("the library was built with the package")
    assert _python(ONE_CALL, CXX="none") == "chunked no C++ compiler"


def test_a_compiler_that_fails_or_a_cache_that_is_closed_says_so(tmp_path, monkeypatch):
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(build.BuildError, match="no such luck"):
        build.compile_library(str(broken), tmp_path / "out" / build.NAME)
    assert not (tmp_path / "out" / build.NAME).exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="file"):
        build.cached_library(str(broken))


def test_the_variable_turns_it_off_and_is_checked(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert native.native() is None
    assert "off" in native.why_not()
    monkeypatch.setenv(VARIABLE, "fast")
    assert "not one of" in native.why_not()


def test_a_forked_child_computes_too():
    """GCC's OpenMP hangs in a child that uses two threads after its parent has."""
    _needs_library()
    code = ONE_CALL + (
        "import os, signal\n"
        "x, mask = torch.randn(4, 40, 40, 8), torch.rand(4, 40, 40) < 0.3\n"
        "w = torch.randn(16, 8, 3, 3)\n"
        "torch.set_num_threads(2)\n"
        "before = masked_conv2d(x, w, mask, padding=1)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"
        "    y = masked_conv2d(x, w, mask, padding=1)  # torch.equal would hang, in torch\n"
        "    same = (y.numpy() == before.numpy()).all()\n"
        "    os._exit(0 if same else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert _python(code).split("\n")[1] == "0"


def test_threads_share_the_library():
    _needs_library()
    x, w = torch.randn(2, 20, 20, 8), [torch.randn(16, 8, 3, 3) for _ in range(4)]
    mask = torch.rand(2, 20, 20) < 0.3
    expected = [masked_conv2d.reference(x, one, mask, padding=1) for one in w]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda one: masked_conv2d(x, one, mask, padding=1), w)
            for mine, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_only_one_openmp_runtime_is_loaded():
    _needs_library()
    maps = _python(
        ONE_CALL + "print(sorted({l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l}))"
    )
    assert maps.split("\n")[1].count("gomp") <= 1


def test_denormal_numbers_survive_the_library():
    _needs_library()
    assert (torch.tensor([1e-40]) * 1).item() != 0
    assert "-ffast-math" not in [
        *build._COMMON,
        *(flag for flags in build._ISAS.values() for flag in flags),
    ]


def test_no_function_of_one_instruction_set_is_shared(tmp_path):
    """A weak symbol compiled for AVX-512 may be linked into all, and crash where there is none."""
    _needs_library()
    path = native.native().path
    done = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("nm cannot read it")
    weak = [line.split(" W ")[1] for line in done.stdout.splitlines() if " W " in line]
    assert all(any(f"{isa}::" in name for isa in native.ISAS) for name in weak)


def test_the_sources_are_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["robustdyn.kernels"]
    folder = ROOT / "kernels"
    named = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {p for p in folder.glob("cpp/*") if p.suffix in (".cpp", ".h")} <= named
    assert build.SOURCES.joinpath("library.cpp").is_file()


def _built(hook, out, compiler):
    """Build a copy of the checkout in `out` by a hook of setuptools; return the wheel."""
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a checkout")
    code = (
        "import os, shutil, sys\n"
        "ignore = shutil.ignore_patterns('.*', '*.safetensors', '*.npz', 'build', 'dist')\n"
        f"shutil.copytree({str(ROOT)!r}, {str(out)!r}, ignore=ignore)\n"
        f"os.chdir({str(out)!r})\n"
        "from setuptools import build_meta\n"
        f"print(build_meta.{hook}('dist'))"
    )
    return out / "dist" / _python(code, CXX=compiler).split("\n")[-1]


def test_the_package_builds_with_and_without_a_compiler(tmp_path):
    compiler = _fast_compiler(tmp_path) if build.find_compiler() else "none"
    for name, chosen in {"with": compiler, "without": "none"}.items():
        wheel = _built("build_wheel", tmp_path / name, chosen)
        names = zipfile.ZipFile(wheel).namelist()
        assert "robustdyn/kernels/cpp/library.cpp" in names
        built = chosen != "none"
        assert (f"robustdyn/kernels/cpp/{build.NAME}" in names) == built
        assert wheel.name.endswith("py3-none-any.whl") != built


def test_an_editable_install_has_no_library_of_its_own(tmp_path):
    wheel = _built("build_editable", tmp_path / "editable", "none")
    assert wheel.name.endswith("py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(build.NAME)]
