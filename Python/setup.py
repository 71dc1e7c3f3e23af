"""Builds the library with Swift and puts it into the wheel; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = "int_flash_attention"
LIBRARY = f"lib{PACKAGE}.so"
HEADER = ROOT / "Sources/CIntFlashAttention/include/int_flash_attention/information.h"
SCRIPT = ROOT / "Scripts/install-c-library"


def version() -> str:
    """The version of the C header."""
    if not HEADER.exists():
        raise ExecError(
            f"{HEADER} is missing: the Python package is built inside its repository, where the Swift "
            "sources are. Run `pip install ./Python` in the repository, or install a wheel."
        )
    return re.search(r'INTFA_VERSION "([^"]+)"', HEADER.read_text()).group(1)  # type: ignore[union-attr]


class BuildLibrary(build_py):
    """As usual, and then the library."""

    def run(self) -> None:
        super().run()
        if shutil.which("swift") is None:
            raise ExecError(
                "`swift` is not on the PATH: the library is written in Swift. Install Swift 6.3 from "
                "swift.org, or install a wheel, which has the library inside."
            )
        target = HERE / "src" if self.editable_mode else pathlib.Path(self.build_lib).resolve()
        folder = target / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        self.announce(f"building {LIBRARY} with Swift", level=3)
        with tempfile.TemporaryDirectory() as prefix:
            subprocess.run([SCRIPT, prefix], check=True, cwd=ROOT)
            shutil.copy(pathlib.Path(prefix) / "lib" / LIBRARY, folder / LIBRARY)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this system: ctypes needs no extension module."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        system = os.environ.get("_PYTHON_HOST_PLATFORM", f"linux-{platform.machine()}")
        return "py3", "none", system.replace("-", "_").replace(".", "_")


class LibraryDistribution(Distribution):
    """Not pure Python."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    version=version(),
    cmdclass={"build_py": BuildLibrary, "bdist_wheel": PlatformWheel},
    distclass=LibraryDistribution,
)
