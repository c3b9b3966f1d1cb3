"""Nothing in a checkpoint, adapter or corpus runs code unless its flag is given.

Each way in holds code that leaves a trace. The controls at the end show that the code
does run where it is let, so that a missing trace means something.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import (
    digest,
    fingerprint,
    load,
    locate,
    measure_sparsity,
    saved_dtype,
)
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import CheckpointError, CorpusError
from pytest_pplguard.protocols import PROTOCOLS
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Key

from .commands import run_pytest
from .tiny import save_tiny

Poison = Callable[[Path, str], None]


class Payload:
    """Unpickling it runs Python code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "m"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def code_for(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()\n"


def edit(file: Path, **fields: object) -> None:
    old = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(old | fields))


def walk(
    spec: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> None:
    """Every way in that this package has: what reads files, and what runs the model."""
    located = locate(str(spec), offline=True)
    problems = []

    def loaded() -> Any:
        return load(
            located,
            device="cpu",
            dtype="float32",
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )

    def model() -> Any:
        return loaded().model

    for way in (
        lambda: digest(located, allow_pickle=allow_pickle),
        lambda: saved_dtype(located),
        lambda: fingerprint(located, model=model, allow_pickle=allow_pickle),
        lambda: measure_sparsity(located, model=model, allow_pickle=allow_pickle),
        lambda: score(loaded()),
    ):
        try:
            way()
        except CheckpointError as error:
            problems.append(error)
    if problems:
        raise problems[-1]


def score(loaded: Any) -> None:
    corpus = open_corpus("demo", {})
    key = Key.parse("wanda/demo:32:first1")
    windows = PROTOCOLS["wanda"].windows(corpus, loaded.tokenizer, key)
    assert len(list(Scorer(loaded.model)(windows))) == 1


# -------------------------------------------------------------------------- checkpoints


def pickled(folder: Path, code: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload(code)}, folder / "pytorch_model.bin")


def pickled_as_before_torch_1_6(folder: Path, code: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(code)))


def pickled_shards(folder: Path, code: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload(code)}, folder / "pytorch_model-1.bin")
    edit(
        folder / "pytorch_model.bin.index.json",
        weight_map={"w": "pytorch_model-1.bin"},
    )


def pickle_behind_a_safetensors_index(folder: Path, code: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload(code)}, folder / "shard.bin")
    edit(folder / "model.safetensors.index.json", weight_map={"w": "shard.bin"})


def pickle_named_safetensors(folder: Path, code: str) -> None:
    torch.save({"w": Payload(code)}, folder / "model.safetensors")


def pickle_named_by_the_config(folder: Path, code: str) -> None:
    torch.save({"w": Payload(code)}, folder / "other.bin")
    edit(folder / "config.json", transformers_weights="other.bin")


def code_of_the_model(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )


def code_of_the_tokenizer(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.T", "evil.T"]},
        tokenizer_class="T",
    )


def code_elsewhere_on_the_hub(folder: Path, code: str) -> None:
    edit(
        folder / "config.json",
        auto_map={"AutoModelForCausalLM": "someone/else--evil.M"},
    )


def kernel_from_the_hub(folder: Path, code: str) -> None:
    edit(folder / "config.json", attn_implementation="someone/kernel")


def kernel_for_a_part(folder: Path, code: str) -> None:
    edit(
        folder / "config.json", text_config={"_attn_implementation": "someone/k@main:f"}
    )


def unknown_type_with_code(folder: Path, code: str) -> None:
    (folder / "modeling_evil.py").write_text(code)
    edit(folder / "config.json", model_type="evil", architectures=["modeling_evil.M"])


REFUSED: tuple[tuple[Poison, str], ...] = (
    (pickled, "--ppl-allow-pickle"),
    (pickled_as_before_torch_1_6, "--ppl-allow-pickle"),
    (pickled_shards, "--ppl-allow-pickle"),
    (pickle_behind_a_safetensors_index, "which is no safetensors file"),
    (pickle_named_safetensors, "is no safetensors file"),
    (pickle_named_by_the_config, "transformers_weights"),
    (code_of_the_model, "auto_map in config.json): trust and run it with"),
    (code_of_the_tokenizer, "auto_map in tokenizer_config.json): trust and run"),
    (code_elsewhere_on_the_hub, "auto_map in config.json): trust and run it with"),
    (kernel_from_the_hub, "(attn_implementation: 'someone/kernel' in config.json)"),
    (kernel_for_a_part, "(_attn_implementation: 'someone/k@main:f' in config.json)"),
    (unknown_type_with_code, "could not be loaded"),
)


@pytest.mark.parametrize(
    ("poison", "said"), REFUSED, ids=[poison.__name__ for poison, _ in REFUSED]
)
def test_refused(folder: Path, trace: Path, poison: Poison, said: str) -> None:
    poison(folder, code_for(trace))
    with pytest.raises(CheckpointError) as caught:
        walk(folder)
    assert not trace.exists()
    assert str(folder) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def files_of_a_training_run(folder: Path, code: str) -> None:
    for name in (
        *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
        *("pytorch_model.bin", "adapter_model.bin", "model.pkl", "vocab.pkl"),
    ):
        torch.save(Payload(code), folder / name)


def python_files(folder: Path, code: str) -> None:
    for name in (
        *("__init__.py", "conftest.py", "setup.py", "sitecustomize.py", "hubconf.py"),
        *("modeling_llama.py", "configuration_llama.py", "tokenization_llama.py"),
        *("tokenizer.py", "m.py", "test_m.py"),
    ):
        (folder / name).write_text(code)


def code_of_parts_that_are_not_used(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    for name in (
        *("processor_config.json", "preprocessor_config.json"),
        *("generation_config.json", "video_preprocessor_config.json"),
    ):
        edit(folder / name, auto_map={"AutoProcessor": "evil.P"}, processor_class="P")


def own_generation(folder: Path, code: str) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    edit(folder / "generation_config.json", custom_generate="custom_generate")


def chat_template(folder: Path, code: str) -> None:
    jinja = (
        "{{ raise_exception('rendered') }}"
        f"{{{{ cycler.__init__.__globals__.os.exec({code!r}) }}}}"
    )
    (folder / "chat_template.jinja").write_text(jinja)
    edit(folder / "tokenizer_config.json", chat_template=jinja)


def class_of_the_tokenizer(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    edit(folder / "tokenizer_config.json", tokenizer_class="evil.Tokenizer")


HARMLESS: tuple[Poison, ...] = (
    files_of_a_training_run,
    python_files,
    code_of_parts_that_are_not_used,
    own_generation,
    chat_template,
    class_of_the_tokenizer,
)


@pytest.mark.parametrize("poison", HARMLESS, ids=lambda poison: poison.__name__)
def test_never_looked_at(
    folder: Path, trace: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(folder, code_for(trace))
    monkeypatch.chdir(folder)
    try:
        walk(folder)
    except CheckpointError as error:
        # Some versions of transformers refuse what others pass over.
        if poison not in (own_generation, class_of_the_tokenizer):
            raise AssertionError(poison.__name__) from error
    assert not trace.exists()


# ----------------------------------------------------------------------------- adapters


def make_adapter(folder: Path, base: Path) -> Path:
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def adapter_pickle(folder: Path, code: str) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"w": Payload(code)}, folder / "adapter_model.bin")


def adapter_tokenizer(folder: Path, code: str) -> None:
    (folder / "tokenizer.json").write_text("{}")
    code_of_the_tokenizer(folder, code)


def adapter_module(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    edit(
        folder / "adapter_config.json",
        megatron_config={"hidden_size": 1},
        megatron_core="evil",
    )


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        (adapter_pickle, "--ppl-allow-pickle"),
        (adapter_tokenizer, "--ppl-trust-remote-code"),
        (adapter_module, "names a Python module to import"),
    ],
)
def test_adapter(
    folder: Path,
    trace: Path,
    poison: Poison,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = make_adapter(folder.parent / "a", folder)
    walk(adapter)
    poison(adapter, code_for(trace))
    monkeypatch.syspath_prepend(adapter)
    with pytest.raises(CheckpointError) as caught:
        walk(adapter)
    assert not trace.exists()
    assert str(adapter) in str(caught.value)
    assert said in str(caught.value)


def test_auto_mapping_of_an_adapter_is_not_imported(
    folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(folder.parent / "a", folder)
    (adapter / "evil.py").write_text(code_for(trace))
    edit(
        adapter / "adapter_config.json",
        auto_mapping={"base_model_class": "M", "parent_library": "evil"},
    )
    monkeypatch.syspath_prepend(adapter)
    walk(adapter)
    assert not trace.exists()


# ------------------------------------------------------------------------------ corpora


def test_a_corpus_that_is_a_script_is_text(tmp_path: Path, trace: Path) -> None:
    code = code_for(trace)
    (tmp_path / "text.py").write_text(code)
    corpus = open_corpus("text", {"text": str(tmp_path / "text.py")})
    assert corpus.pages == (code,)
    assert not trace.exists()


def test_a_folder_with_a_script_is_no_corpus(tmp_path: Path, trace: Path) -> None:
    script = tmp_path / "text"
    script.mkdir()
    (script / "text.py").write_text(code_for(trace))
    (script / "dataset_infos.json").write_text("{}")
    with pytest.raises(CorpusError, match="is no folder written by save_to_disk"):
        open_corpus("text", {"text": str(script)})
    assert not trace.exists()


@pytest.mark.parametrize("name", ["text.pkl", "text.bin", "text.npy", "text.jsonl"])
def test_a_corpus_that_is_a_pickle(tmp_path: Path, trace: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80" + pickle.dumps(Payload(code_for(trace))))
    with pytest.raises(CorpusError, match=name):
        open_corpus("text", {"text": str(tmp_path / name)})
    assert not trace.exists()


def test_a_parquet_file_whose_type_is_a_pickle(tmp_path: Path, trace: Path) -> None:
    """As in CVE-2023-47248 of pyarrow."""
    import pyarrow
    import pyarrow.parquet

    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(code_for(trace))),
    }
    field = pyarrow.field("text", pyarrow.string(), metadata=marks)
    table = pyarrow.table([["some text"]], schema=pyarrow.schema([field]))
    pyarrow.parquet.write_table(table, tmp_path / "text.parquet")
    corpus = open_corpus("text", {"text": str(tmp_path / "text.parquet")})
    assert corpus.pages == ("some text",)
    assert not trace.exists()


# ------------------------------------------------------------------ pytest in a project

BASELINES = """\
schema: 1
model: m
checkpoints:
  a:
    path: {path}
    gates:
      wanda/demo:32:first1: {{token_perplexity: {{rel: 0.5}}}}
"""


def test_pytest_collects_nothing_in_a_checkpoint(folder: Path, trace: Path) -> None:
    """A checkpoint that lies in the project, and what is typed wins as ever."""
    project = folder.parent
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "test_own.py").write_text("def test_own(): pass\n")
    (project / "baselines").mkdir()
    (project / "baselines" / "x.yaml").write_text(BASELINES.format(path="m"))
    for name in ("conftest.py", "test_evil.py"):
        (folder / name).write_text(code_for(trace) + "def test_evil(): pass\n")
    done = run_pytest("pytest -q --collect-only --ppl-model m", project)
    assert "test_own.py::test_own" in done.stdout
    assert "evil" not in done.stdout
    assert not trace.exists()
    run_pytest("pytest -q --collect-only m --ppl-model m", project)
    assert trace.exists()


def test_the_path_of_a_baseline_loads_nothing(folder: Path, trace: Path) -> None:
    """It only says which entry a checkpoint is that the user gives."""
    pickled(folder, code_for(trace))
    project = folder.parent / "project"
    (project / "baselines").mkdir(parents=True)
    (project / "pytest.ini").write_text("[pytest]\n")
    baseline = project / "baselines" / "x.yaml"
    baseline.write_text(BASELINES.format(path="../m"))
    done = run_pytest("pytest", project)
    assert "1 deselected" in done.stdout
    named = run_pytest("pytest --ppl-model x/a", project)
    assert named.returncode != 0
    assert "x/a" in named.stdout + named.stderr
    given = run_pytest("pytest --ppl-model=../m", project)
    assert "--ppl-allow-pickle" in given.stdout
    assert not trace.exists()


# ----------------------------------------------------------------------------- controls


def test_control_pickles(folder: Path, trace: Path) -> None:
    """The payload works; with the flag plain weights load, and code still does not."""
    weights = load_file(folder / "model.safetensors")
    pickled(folder, code_for(trace))
    with pytest.raises(CheckpointError, match="could not be loaded"):
        walk(folder, allow_pickle=True)
    assert not trace.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()
    torch.save(weights, folder / "pytorch_model.bin")
    walk(folder, allow_pickle=True)


@pytest.mark.parametrize("poison", [code_of_the_model, code_of_the_tokenizer])
def test_control_remote_code(folder: Path, trace: Path, poison: Poison) -> None:
    poison(folder, code_for(trace))
    with pytest.raises(CheckpointError):  # the code has no such class
        walk(folder, trust_remote_code=True)
    assert trace.exists()


def test_links_to_weights_are_followed(folder: Path) -> None:
    """The Hub's cache is made of them; a folder that was given is the user's choice."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(Path("..", "blobs", name))
    walk(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(weights) // 2
    names = list(weights)
    for shard, part in (("1", names[:half]), ("2", names[half:])):
        tensors = {name: weights[name] for name in part}
        save_file(tensors, blobs / shard, metadata={"format": "pt"})
        (folder / f"{shard}.safetensors").symlink_to(blobs / shard)
    edit(
        folder / "model.safetensors.index.json",
        metadata={},
        weight_map={
            name: f"{1 + (index >= half)}.safetensors"
            for index, name in enumerate(names)
        },
    )
    walk(folder)
