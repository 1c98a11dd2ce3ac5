"""The build backend: setuptools, building against the torch that is already installed.

pip builds in an isolated environment that hides the installed torch. A build requirement on torch would download a
second one, of gigabytes and maybe of another kind. So the backend looks for torch where pip was started from, and asks
for one only if there is none; with libtorch's stable ABI any version from 2.10 on gives the same binary.
"""

import importlib.util
import os
import sys
import sysconfig
from importlib import metadata

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

NATIVE_TOOLS = ["cmake>=3.22", "ninja", "pybind11>=2.12"]


def _pure_python() -> bool:
    return os.environ.get("CMI_FAST_PURE_PYTHON") == "1"


def _find_torch() -> bool:
    """Make the installed torch importable; the environment variable is for layouts that sysconfig cannot tell."""
    for folder in (os.environ.get("CMI_FAST_TORCH_PATH"), sysconfig.get_path("purelib")):
        if folder and _recent_enough(folder) and folder not in sys.path:
            sys.path.append(folder)  # last: the isolated setuptools stays first
    return importlib.util.find_spec("torch") is not None


def _recent_enough(folder: str) -> bool:
    for torch in metadata.distributions(name="torch", path=[folder]):
        return tuple(map(int, torch.version.split(".")[:2])) >= (2, 10)
    return False


def _native_requirements() -> list[str]:
    if _pure_python():
        return []
    return NATIVE_TOOLS + ([] if _find_torch() else ["torch>=2.10"])


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _native_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _native_requirements()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _find_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _find_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
