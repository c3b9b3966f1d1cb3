"""Headless Chromium, and runs of the demo whose reports it opens.

Tests, benchmarks and the pictures of the docs share it. Chromium is Debian's, or any
other that ``PPLGUARD_CHROMIUM`` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
LOST_LAYER = 2
"""The layer of the spoilt demo that has lost its mask."""

_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


def why_no_browser() -> str:
    """What is missing to open pages; empty where nothing is."""
    if find_spec("playwright") is None:
        return "playwright is not installed (pip install playwright)"
    if _chromium() is None:
        named = os.environ.get("PPLGUARD_CHROMIUM")
        return (
            f"PPLGUARD_CHROMIUM names {named}, which is not there"
            if named
            else "there is no chromium (apt-get install chromium; or name another "
            "in PPLGUARD_CHROMIUM)"
        )
    return ""


def _chromium() -> str | None:
    return shutil.which(os.environ.get("PPLGUARD_CHROMIUM", "chromium"))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a new profile, which is gone afterwards."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_chromium(), args=list(_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


def spoil_demo(folder: Path) -> Path:
    """A copy of ``demo/wanda-50`` of which one layer has lost its mask.

    Noise was added to its weights, as merging an adapter into pruned weights does.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from pytest_pplguard.checkpoints import locate

    spoilt = folder / "wanda-50"
    shutil.copytree(locate("demo/wanda-50").folder, spoilt)
    file = spoilt / "model.safetensors"
    tensors = load_file(file)
    chance = torch.Generator().manual_seed(0)
    for name, weight in tensors.items():
        if f".layers.{LOST_LAYER}." in name and weight.ndim == 2:
            noise = torch.randn(weight.shape, generator=chance) * weight.std() * 0.35
            tensors[name] = (weight + noise).to(weight.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    return spoilt


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo's gates in ``folder``, which gets its own copy of the baselines."""
    if not (folder / "baselines").exists():
        for part in ("demo.yaml", "demo"):
            source, target = ROOT / "baselines" / part, folder / "baselines" / part
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
    command = [
        *(sys.executable, "-m", "pytest", "baselines/demo.yaml"),
        *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--ppl-journal=off"),
        *arguments,
    ]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
