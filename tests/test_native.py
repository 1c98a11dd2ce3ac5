"""The compiled library: what it reports, and the ISA level that the environment asks for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from checking import needs_native

import cmi_fast
from cmi_fast import _native

pytestmark = needs_native


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_build_info() -> None:
    info = cmi_fast.build_info()
    assert info["compiled"]
    assert info["isa"] in info["isa_supported"]
    assert info["isa_supported"][0] == "baseline"
    assert info["torch"] == torch.__version__


def test_level_can_be_set() -> None:
    before = cmi_fast.build_info()["isa"]
    try:
        _native.set_isa_level("baseline")
        assert cmi_fast.build_info()["isa"] == "baseline"
        with pytest.raises(ValueError, match="ISA level 'v9': expected one this CPU can run"):
            _native.set_isa_level("v9")
    finally:
        _native.set_isa_level(before)


def test_level_from_the_environment() -> None:
    done = python("import cmi_fast; print(cmi_fast.build_info()['isa'])", CMI_FAST_ISA="baseline")
    assert done.stdout.strip() == "baseline"


def test_unknown_level_in_the_environment() -> None:
    call = "import cmi_fast, torch; x = torch.ones(1, 2, 3); cmi_fast.functional.soft_assignment_pool(x, x[0])"
    done = python(call, CMI_FAST_ISA="v9")
    assert "ValueError: CMI_FAST_ISA: ISA level 'v9'" in done.stderr
    done = python("from cmi_fast.cli import main; import sys; sys.argv = ['x', 'info']; main()", CMI_FAST_ISA="v9")
    assert done.returncode == 2
    assert done.stderr.startswith("cmi-fast: CMI_FAST_ISA: ISA level 'v9'")
    assert done.stderr.count("\n") == 1


def test_import_is_light() -> None:
    heavy = ["polars", "implicit", "sklearn", "scipy", "typer", "rich", "triton"]
    done = python(f"import sys, cmi_fast; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]"
