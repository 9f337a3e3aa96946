"""Builds the C++ kernels into the wheel where there is a compiler; else the first use does.

All else is in pyproject.toml.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


def _kernel_build():
    path = Path(__file__).parent / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("robustdyn_kernel_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Compiles the library beside its sources; an editable install leaves that to the first use."""

    library = None

    def run(self):
        super().run()
        build = _kernel_build()
        compiler = build.find_compiler()
        if self.editable_mode or compiler is None or sys.platform != "linux":
            return
        target = Path(self.build_lib, "robustdyn", "kernels", "cpp", build.NAME)
        try:
            build.compile_library(compiler, target)
            self.library = str(target)
        except build.BuildError as error:
            self.warn(f"the C++ kernels were not built: {error}")

    def get_outputs(self, include_bytecode=True):
        library = [self.library] if self.library else []
        return [*super().get_outputs(include_bytecode), *library]


class WheelOfThisMachine(bdist_wheel):
    """A wheel with the library is for one platform, and for every Python."""

    def get_tag(self):
        library = self.get_finalized_command("build_py").library
        if library is None:
            return super().get_tag()
        self.root_is_pure = False
        platform = super().get_tag()[2]
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfThisMachine})
