"""What of the machine decides a number, as far as it is known without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_pplguard.measure import identity


@pytest.mark.parametrize(
    "name",
    [
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "DNNL_MAX_CPU_ISA",
        "KMP_AFFINITY",
        "LD_PRELOAD",
        "MKL_CBWR",
        "MKL_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "OPENBLAS_CORETYPE",
        "PYTORCH_ENABLE_MPS_FALLBACK",
        "TORCHINDUCTOR_FREEZING",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "TRITON_F32_DEFAULT",
    ],
)
def test_variables_that_choose_kernels(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    before = identity.variables()
    assert name not in before
    monkeypatch.setenv(name, "7")
    assert identity.variables() == before | {name: "7"}


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES",
        "HOME",
        "HF_HUB_OFFLINE",
        "MKLX",
        "NVIDIA_VISIBLE_DEVICES",
        "PYTEST_XDIST_WORKER",
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_HOME",
    ],
)
def test_variables_that_choose_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = identity.variables()
    monkeypatch.setenv(name, "7")
    assert identity.variables() == before


VERSION = """\
from typing import Optional
__version__ = '2.13.0'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = {hip}
xpu: Optional[str] = None
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac always has an accelerator")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VERSION.format(cuda="None", hip="None"), True),
        (VERSION.format(cuda="'12.8'", hip="None"), False),
        (VERSION.format(cuda="None", hip="'6.4'"), False),
        (VERSION.format(cuda="None", hip="None").replace("Optional[str]", "X"), True),
        ("cuda = None\n", False),
        ("", False),
    ],
)
def test_builds_for_cpus_alone(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "version.py").write_text(text)
    assert identity._has_cpu_only(tmp_path) is expected


def test_no_torch_is_no_build_for_cpus(tmp_path: Path) -> None:
    assert not identity._has_cpu_only(None)
    assert not identity._has_cpu_only(tmp_path)


def test_versions_hold_what_is_installed_and_nothing_else() -> None:
    found = identity.versions()
    assert {"python", "torch", "transformers", "tokenizers", "lm_eval"} <= found.keys()
    assert sys.version in found["python"]
    assert set(found) <= {"python", *identity.PACKAGES}


def test_importing_it_needs_no_torch() -> None:
    script = (
        "import sys\nimport pytest_pplguard.measure.results\n"
        "from pytest_pplguard.measure import Results, Store\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"
