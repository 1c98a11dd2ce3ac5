"""Drives CMakeLists.txt with ninja; everything else is in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PURE_PYTHON = os.environ.get("CMI_FAST_PURE_PYTHON") == "1"


class CMakeBuild(build_ext):
    def run(self) -> None:
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None or shutil.which(compiler.split()[0]) is None:
            looked_for = compiler or "c++, g++, clang++"
            sys.exit(
                f"cmi_fast: no C++ compiler found (looked for {looked_for}). Install g++ or clang, or "
                "set CMI_FAST_PURE_PYTHON=1 for a slower install without compiled operators."
            )
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            sys.exit(
                f"cmi_fast: no Python.h found in {sysconfig.get_path('include')}. Install Python's headers "
                "(python3-dev or python3-devel), or set CMI_FAST_PURE_PYTHON=1 for a slower install without compiled "
                "code."
            )
        super().run()

    def build_extensions(self) -> None:
        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            sys.exit(
                "cmi_fast: no torch found to build against. Install torch >= 2.10 first, or set CMI_FAST_TORCH_PATH."
            )
        build = Path(self.build_temp).resolve()
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # it names the ninja of an environment that pip has deleted
        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        cmake = [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else ["cmake"]
        configure = [
            "-S",
            ROOT,
            "-B",
            build,
            "-G",
            "Ninja",
            f"-DTORCH_DIR={Path(torch.origin).parent}",
            f"-DCMI_FAST_PYTHON={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DCMI_FAST_CUDA={os.environ.get('CMI_FAST_CUDA', 'AUTO')}",
        ]
        subprocess.run([*cmake, *configure], check=True)
        subprocess.run([*cmake, "--build", build, "--target", "install"], check=True)

    def get_ext_filename(self, name: str) -> str:
        if name.endswith("libcmi_fast"):
            return name.replace(".", os.sep) + ".so"  # no CPython tag: the library does not know Python
        return super().get_ext_filename(name)


class Wheel(bdist_wheel):
    """Tied to one CPython by the sampler; without compiled code, for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any") if PURE_PYTHON else super().get_tag()


# Both are built in one go; the list tells setuptools which files to expect.
EXTENSIONS = [Extension("cmi_fast.libcmi_fast", sources=[]), Extension("cmi_fast._sampler", sources=[])]

setup(
    ext_modules=[] if PURE_PYTHON else EXTENSIONS,
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
