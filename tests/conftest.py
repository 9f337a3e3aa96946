"""The tests see the shipped models alone, whatever the user has registered or trained; `force`."""

import os
import tempfile

import pytest

_home = tempfile.TemporaryDirectory(prefix="robustdyn-tests-")
os.environ["ROBUSTDYN_HOME"] = _home.name

from robustdyn.kernels import native  # noqa: E402  (after the home is set)


@pytest.fixture(params=[f"cpp {isa}" for isa in native.ISAS] + ["torch"])
def force(request, monkeypatch):
    """Return a function that lets a kernel run one implementation whatever the density.

    Its second argument names the one in C++, of kernels that have several.
    """
    name, _, isa = request.param.partition(" ")
    if isa:
        monkeypatch.setenv(native.VARIABLE, isa)
        if native.native() is None:
            pytest.skip(native.why_not())

    def use(kernel, cpp="cpp"):
        wanted = cpp if isa else name
        chosen = [i for i in kernel.implementations if i.name == wanted]
        forced = [type(i)(i.name, i.run, lambda *_, **__: []) for i in chosen]
        monkeypatch.setattr(kernel, "implementations", forced)
        return kernel

    return use
