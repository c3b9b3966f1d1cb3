"""A folder in which the names of the pages exist: checkpoints, texts, baselines.

Everything is made of the demo. ``out/...`` are its two checkpoints under the names
that the pages use, and a spoilt one; ``wikitext2`` is the demo's text and half of it
again, as a local file and in the cache of the library ``datasets``; ``baselines/`` has
the demo's file and ``llama-2-7b``, recorded here by ``pplguard update``. No network is
used.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_pplguard.planning import WIKITEXT2_PAGES
from tests.published import save_config

from .blocks import ROOT, blocks_of

DEMO = ROOT / "pytest_pplguard" / "demo"

CHECKPOINTS = {
    "dense": ("out/dense", "out/llama-dense", "out/smollm2/dense"),
    "wanda-50": (
        "out/wanda-50",
        "out/llama-wanda",
        "out/llama-2-7b-wanda-50",
        "out/w50",
        "out/smollm2/wanda-50",
        "out/smollm2/magnitude-50",
        "out/smollm2-w50",
    ),
}
"""Which of the demo's checkpoints stands for which of the pages'."""

SPOILT = ("out/spoilt", "out/llama-wanda-old")
"""``wanda-50`` with the dense weights in one layer: a lost mask."""

CHECKOUT = (
    *("baselines", "benchmarks", "docs", "pytest_pplguard", "scripts"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "mkdocs.yml", "pyproject.toml"),
)
"""What of this repository a block "in a checkout" sees: copies, or links."""


@dataclass(frozen=True)
class Sandbox:
    """Where commands run, and how."""

    project: Path
    checkout: Path
    environment: dict[str, str]

    def run(
        self, command: str, *, checkout: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """What came of one command line; both streams are in ``stdout``."""
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.checkout if checkout else self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )


def environment(folder: Path) -> dict[str, str]:
    """What commands see; no key of the person or the CI that runs the tests.

    Their caches go to ``folder``.
    """
    kept = ("HOME", "LANG", "TMPDIR", "USER", "LD_LIBRARY_PATH")
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:asyncio",
        # A commit has an author, whoever runs this.
        **{
            f"GIT_{who}_{what}": text
            for who in ("AUTHOR", "COMMITTER")
            for what, text in (("NAME", "Ann"), ("EMAIL", "ann@example.org"))
        },
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def rows() -> list[str]:
    """The lines of the text that stands for WikiText-2."""
    lines = (DEMO / "demo.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    return lines + lines[: len(lines) // 2]


def seed_wikitext2(cache: Path, lines: list[str]) -> None:
    """Put ``lines`` where ``datasets`` looks for WikiText-2 without a network."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    folder = cache / "Salesforce___wikitext" / "wikitext-2-raw-v1" / "0.0.0" / "0"
    folder.mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string")})
    path = str(folder / "wikitext-test.arrow")
    with ArrowWriter(features=features, path=path) as writer:
        for line in lines:
            writer.write({"text": line})
        count, size = writer.finalize()
    splits = datasets.SplitDict()
    splits.add(
        datasets.SplitInfo(
            "test", num_bytes=size, num_examples=count, dataset_name="wikitext"
        )
    )
    datasets.DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="wikitext",
        config_name="wikitext-2-raw-v1",
        version="0.0.0",
        splits=splits,
        download_size=0,
        dataset_size=size,
        size_in_bytes=size,
    ).write_to_directory(str(folder))


def build(folder: Path, environment: dict[str, str]) -> Sandbox:
    """Make the project of a user, and a checkout, in ``folder``."""
    sandbox = Sandbox(folder / "project", folder / "checkout", environment)
    project = sandbox.project
    (project / "out" / "smollm2").mkdir(parents=True)
    for name, places in CHECKPOINTS.items():
        for place in places:
            (project / place).symlink_to(DEMO / name)
    for place in SPOILT:
        _lose_a_mask(project / place)
    (project / "wiki.test.raw").write_text("".join(rows()), encoding="utf-8")
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / ".gitignore").write_text("out/\n.*.yaml.lock\n__pycache__/\n")
    _checkout(sandbox.checkout)
    for command in (
        "pplguard demo .",
        "pplguard update out/dense --checkpoint llama-2-7b/dense "
        "--base meta-llama/Llama-2-7b-hf --method wanda --window 512",
        "pplguard update out/wanda-50 --checkpoint llama-2-7b/wanda-50 "
        "--method wanda --window 512",
        "git init -q -b main . && git add . && git commit -qm 'First baselines'",
    ):
        done = sandbox.run(command)
        assert done.returncode == 0, done.stdout
    return sandbox


def prepare(page: str, sandbox: Sandbox) -> None:
    """Make what a page takes for granted that is its reader's own."""
    project = sandbox.project
    if page == "docs/checkpoints.md":
        _save_adapter(project / "out" / "lora", base="out/llama-2-7b-wanda-50")
        done = sandbox.run(
            "pplguard update out/lora --checkpoint llama-2-7b/tuned "
            "--method wanda --window 512 --limit 4"
        )
        assert done.returncode == 0, done.stdout
    if page == "docs/plan.md":
        for name in ("llama-2-7b", "llama-2-70b", "llama-3.1-405b"):
            save_config(project / "plans" / name, name)
        _as_long_as_wikitext2(project / "wiki.test.raw")
    if page == "docs/tasks.md":
        (task,) = [
            block.text
            for block in blocks_of(ROOT / page)
            if block.text.startswith("# tasks/piqa_local.yaml\n")
        ]
        for folder in ("tasks", "data"):
            (project / folder).mkdir()
        (project / "tasks" / "piqa_local.yaml").write_text(task, encoding="utf-8")
        for name in ("piqa-train", "piqa"):
            (project / "data" / f"{name}.jsonl").write_text(
                "".join(
                    json.dumps(
                        {"goal": f"Fold {n}.", "sol1": "Fold.", "sol2": "Do not.",
                         "label": n % 2}
                    ) + "\n"
                    for n in range(4)
                )
            )  # fmt: skip


def _as_long_as_wikitext2(file: Path) -> None:
    """A text whose pages have the sizes of WikiText-2's: what is estimated by size."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        for number, size in enumerate(WIKITEXT2_PAGES):
            heading = f" = Page {number} = \n"
            stream.write(heading + "x" * (size - len(heading) - 1) + "\n")


def _save_adapter(folder: Path, *, base: str) -> None:
    """A LoRA of the demo's four layers, as peft saves one."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": ["q_proj"],
        "r": 4,
        "lora_alpha": 8,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    place = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    seed = torch.Generator().manual_seed(1)
    save_file(
        {
            place.format(layer, side): 0.05 * torch.randn(shape, generator=seed)
            for layer in range(4)
            for side, shape in (("A", (4, 128)), ("B", (128, 4)))
        },
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def _lose_a_mask(place: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(DEMO / "wanda-50", place)
    file = place / "model.safetensors"
    dense = load_file(DEMO / "dense" / "model.safetensors")
    weights = load_file(file)
    for name in weights:
        if ".layers.2." in name:
            weights[name] = dense[name]
    save_file(weights, file, metadata={"format": "pt"})


def _checkout(folder: Path) -> None:
    folder.mkdir()
    for name in CHECKOUT:
        if not (ROOT / name).exists():
            continue
        if name == "baselines":
            shutil.copytree(ROOT / name, folder / name)
        else:
            (folder / name).symlink_to(ROOT / name)
