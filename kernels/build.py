"""Builds the C++ kernels: when the package is built, or on first use. Needs no torch."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
NAME = "librobustdyn_cpu.so"

# Never -ffast-math: loading a library built with it makes the whole process flush denormals.
_COMMON = ["-O3", "-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
_ISAS = {
    "generic": [],
    "avx2": ["-DROBUSTDYN_AVX2", "-mavx2", "-mfma"],
    "avx512": ["-DROBUSTDYN_AVX512", "-mavx512f", "-mavx512vl", "-mfma"],
}


class BuildError(Exception):
    """The C++ kernels could not be built; the message says why."""


def find_compiler() -> str | None:
    """Return the C++ compiler: $CXX, or else the first of c++, g++ and clang++ that there is."""
    stated = os.environ.get("CXX")
    names = [stated] if stated else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_library(compiler: str, target: Path) -> None:
    """Compile the sources into the shared library `target`, whole or not at all.

    Raises:
        BuildError: if the compiler fails or nothing can be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="build") as folder:
            made = Path(folder) / NAME
            _run_all(_compilations(compiler, Path(folder)))
            objects = sorted(str(path) for path in Path(folder).glob("*.o"))
            # Without an OpenMP library: torch has loaded one, and there must not be two.
            _run_all([[compiler, "-shared", "-o", str(made), *objects]])
            os.replace(made, target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror}") from error


def cached_library(compiler: str) -> Path:
    """Return the library in the user's cache, built there first if these sources are not yet.

    Processes that need it at the same time wait for the first one.

    Raises:
        BuildError: as compile_library.
    """
    import fcntl

    target = _cache() / _fingerprint(compiler) / NAME
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                compile_library(compiler, target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror}") from error
    return target


def _cache() -> Path:
    stated = os.environ.get("XDG_CACHE_HOME")
    return (Path(stated) if stated else Path.home() / ".cache") / "robustdyn"


def _fingerprint(compiler: str) -> str:
    """What the library depends on: sources, flags, compiler, machine."""
    parts = [_version(compiler), platform.machine(), repr(_COMMON), repr(_ISAS)]
    parts += [
        path.name + path.read_text()
        for path in sorted(SOURCES.iterdir())
        if path.suffix in (".cpp", ".h")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _compilations(compiler: str, folder: Path) -> list[list[str]]:
    # GCC's OpenMP is the one that torch brings; another compiler's would be a second runtime.
    threads = ["-fopenmp"] if "Free Software Foundation" in _version(compiler) else []
    start = [compiler, *_COMMON, *threads, "-c"]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    jobs = [[*start, str(SOURCES / "library.cpp"), "-o", str(folder / "library.o")]]
    for isa, flags in _ISAS.items():
        if x86 or isa == "generic":
            output = ["-o", str(folder / f"{isa}.o")]
            jobs.append([*start, *flags, str(SOURCES / "isa.cpp"), *output])
    return jobs


def _run_all(commands: list[list[str]]) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(command, **pipes) for command in commands]  # type: ignore[call-overload]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise BuildError(f"{process.args[0]} failed: {output.strip()[-500:]}")
