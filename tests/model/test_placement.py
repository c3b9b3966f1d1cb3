"""Models whose layers are on several devices: the very bits of the plain run.

Without a GPU the devices are the CPU's memory and the disk; accelerate moves weights
and inputs by the same hooks.
"""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from pytest_pplguard.checkpoints import (
    Hardware,
    Loaded,
    Placement,
    load,
    locate,
    model_digest,
    state_digest,
)
from pytest_pplguard.checkpoints.streams import model_streams
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import CheckpointError, DeviceError, PplguardError
from pytest_pplguard.journal import Journals
from pytest_pplguard.lm_eval_tasks import TaskSource
from pytest_pplguard.measure import Store, loading, measure_loaded, subject
from pytest_pplguard.measure.loading import load_target
from pytest_pplguard.options import Options, Target
from pytest_pplguard.planning import CHUNK_BYTES
from pytest_pplguard.report import watch_lines
from pytest_pplguard.scoring import memory, scorer
from pytest_pplguard.values import Key, Measurement
from tests.official import smollm2_gguf

from .commands import pplguard, run_pytest
from .local_tasks import write_task
from .test_checkpoints_adapter import adapted, lora
from .test_checkpoints_compressed import checkpoint as compressed
from .test_checkpoints_quantised import quantised
from .tiny import TRANSFORMERS_4, save_tiny

LAYERS = 5
CORPUS = Corpus.from_wikitext_rows(
    "mine",
    [
        f" = Page {page} = \n" if line == 0 else f" It was {line} in {page} . \n"
        for page in range(3)
        for line in range(4 + 3 * page)
    ],
)
KEYS = (
    "wanda/mine:32",
    "strided/mine:32:stride16",
    "lm-eval/wikitext+mine:64",
    "lm-eval/piqa:256:shots1:first4",
    "kl/mine:32",
)
Models = dict[tuple[str, str], Loaded]
LITTLE = 85_000 if TRANSFORMERS_4 else 43_000
"""Room for one layer, so that all are on disk; transformers 4 needs some in memory."""
SIZES = {"some": 165_000, "one layer": LITTLE}
"""Bytes of CPU memory: what is in it and what is on disk is in the first test."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for tied in (False, True):
        save_tiny(
            folder / ("tied" if tied else "untied"),
            num_hidden_layers=LAYERS,
            tie_word_embeddings=tied,
        )
    save_tiny(folder / "other", num_hidden_layers=LAYERS, seed=1)
    write_task(folder / "tasks", "piqa")
    return folder


def read(path: Path, size: int | None = None, dtype: str = "float32") -> Loaded:
    """The checkpoint, with at most ``size`` bytes of it in memory."""
    place = Placement("cpu", {} if size is None else {"cpu": size})
    located = locate(str(path), allow_pickle=True)
    return load(located, device=place, dtype=dtype, allow_pickle=True)


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    """Both models, plain and placed, by their head and :data:`SIZES`."""
    return {
        (head, name): read(folder / head, size)
        for head in ("tied", "untied")
        for name, size in {"plain": None, **SIZES}.items()
    }


def scratch() -> set[Path]:
    """Folders for weights that accelerate cannot read from the checkpoint's files."""
    return set(Path(tempfile.gettempdir()).glob("pplguard-offload-*"))


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture(autouse=True)
def _batches_that_time_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(scorer, "_clock", lambda: float(next(ticks)))


def measured(
    loaded: Loaded, key: str, folder: Path, batch_size: Any = 1
) -> list[tuple[Any, ...]]:
    """All that was scored, by the bits."""
    if key.startswith("kl/"):
        found = divergence(loaded, folder, key, batch_size)
    else:
        found = measure_loaded(
            loaded,
            Key.parse(key),
            lambda _: CORPUS,
            batch_size=batch_size,
            tasks=TaskSource((str(folder / "tasks"),)),
        )
    assert found.evidence
    return [
        (
            score.nll_sum.hex(), score.scored, score.greedy, score.top1,
            *(str(value) for value in (score.kl_sum, score.reference_nll)),
        )
        for score in found.evidence
    ]  # fmt: skip


def divergence(loaded: Loaded, folder: Path, key: str, batch_size: Any) -> Measurement:
    """From a model with other weights, which is placed as ``loaded`` is."""
    size = None if loaded.model.lm_head.weight.device.type == "cpu" else LITTLE
    models = {"it": lambda: loaded, "other": lambda: read(folder / "other", size)}
    store = Store(
        {name: Target(name, name) for name in models},
        load=lambda target: models[target.name](),
        open_corpus=lambda _: CORPUS,
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        batch_size=batch_size,
    )
    try:
        return store.measurement("it", Key.parse(key), reference="other")
    finally:
        store.forget_reference()


# ------------------------------------------------------------------------ the same bits


def test_what_is_where(folder: Path, models: Models) -> None:
    found = {
        (head, size): models[head, size].notices
        for head in ("untied", "tied")
        for size in SIZES
    }
    some = "cpu: 2 layers, model.embed_tokens"
    rest = "disk: 3 layers, model.norm, model.rotary_emb"
    where = "where the layers of {} are: {}"
    untied, tied = (str(folder / head) for head in ("untied", "tied"))
    little = dict.fromkeys((untied, tied), "disk: all modules")
    if TRANSFORMERS_4:
        norms = "model.norm, model.rotary_emb"
        little = {
            untied: f"cpu: model.embed_tokens; disk: {norms}, lm_head, model.layers",
            tied: f"cpu: model.embed_tokens, lm_head; disk: {norms}, model.layers",
        }
    assert found == {
        ("untied", "some"): (where.format(untied, f"{some}; {rest}, lm_head"),),
        ("untied", "one layer"): (where.format(untied, little[untied]),),
        ("tied", "some"): (where.format(tied, f"{some}, lm_head; {rest}"),),
        ("tied", "one layer"): (where.format(tied, little[tied]),),
    }


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_the_bits_of_the_plain_run(
    head: str, key: str, batch_size: Any, folder: Path, models: Models
) -> None:
    expected = measured(models[head, "plain"], key, folder, batch_size)
    for size in SIZES:
        placed = models[head, size]
        assert any(weight.is_meta for weight in placed.model.parameters())
        assert measured(placed, key, folder, batch_size) == expected


@pytest.mark.parametrize(
    "arch", ["gemma2", "cohere", "granite", "opt", "gpt_neox", "qwen3", "mixtral"]
)
def test_other_architectures(arch: str, folder: Path, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / arch, arch, num_hidden_layers=LAYERS)
    expected = measured(read(path), "wanda/mine:32", folder, 2)
    size = (path / "model.safetensors").stat().st_size * 3 // 4
    placed = read(path, size)
    assert any(weight.is_meta for weight in placed.model.parameters())
    assert measured(placed, "wanda/mine:32", folder, 2) == expected


def pickled(folder: Path) -> Path:
    from safetensors.torch import load_file

    path = save_tiny(folder / "pickled", num_hidden_layers=LAYERS)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def test_pickles_and_sparse_compressed_weights(folder: Path, tmp_path: Path) -> None:
    """Accelerate cannot read these from the files: they are written anew."""
    for path in (pickled(tmp_path), compressed("sparse-bitmask", tmp_path / "sparse")):
        located = locate(str(path), allow_pickle=True)
        plain = load(located, device="cpu", dtype="float32", allow_pickle=True)
        size = sum(weight.nbytes for weight in plain.model.parameters()) * 3 // 4
        placed = load(
            located,
            device=Placement("cpu", {"cpu": size}),
            dtype="float32",
            allow_pickle=True,
        )
        assert any(weight.is_meta for weight in placed.model.parameters())
        expected = measured(plain, "wanda/mine:32", folder)
        assert measured(placed, "wanda/mine:32", folder) == expected
        [written] = scratch()
        assert any(written.iterdir())
        del placed
        gc.collect()
        assert scratch() == set()


def test_weights_that_are_saved_in_half_precision_are_widened_as_they_come(
    folder: Path, tmp_path: Path
) -> None:
    path = save_tiny(tmp_path / "half", num_hidden_layers=LAYERS, dtype="bfloat16")
    for dtype in ("float32", "bfloat16"):
        expected = measured(read(path, dtype=dtype), "wanda/mine:32", folder)
        placed = read(path, LITTLE, dtype)
        assert (placed.dtype, placed.device) == (dtype, "cpu")
        assert measured(placed, "wanda/mine:32", folder) == expected


def test_an_offloaded_head_is_read_once_for_all_its_chunks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import OffloadedWeightsLoader

    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1280)  # a position or two
    placed = read(folder / "untied", LITTLE)
    measured(placed, "wanda/mine:32", folder)  # proven
    reads: list[str] = []
    getitem = OffloadedWeightsLoader.__getitem__

    def note(self: Any, key: str) -> torch.Tensor:
        reads.append(key)
        found: torch.Tensor = getitem(self, key)
        return found

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", note)
    key = Key.parse("wanda/mine:32:first1")
    measure_loaded(placed, key, lambda _: CORPUS)
    # The proof runs the body, the chunked head and the model; then body and head.
    assert reads.count("lm_head.weight") == 3


# ------------------------------------------------------------------ what a model weighs


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("size", SIZES)
def test_its_digest_is_the_plain_models(head: str, size: str, models: Models) -> None:
    plain, placed = models[head, "plain"], models[head, size]
    digest = model_digest(plain.model)
    assert digest is not None
    assert model_digest(placed.model) == digest
    assert state_digest(placed.model) == state_digest(plain.model)
    assert placed.model.model.layers[4].mlp.up_proj.weight.is_meta  # left as it was


def test_another_weight_on_disk_is_another_digest(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "it", num_hidden_layers=LAYERS)
    before = model_digest(read(path, LITTLE).model)
    state = load_file(path / "model.safetensors")
    state["model.layers.4.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(state, path / "model.safetensors", {"format": "pt"})
    assert model_digest(read(path, LITTLE).model) != before


def test_a_forward_of_the_users_own_is_seen_behind_accelerates(folder: Path) -> None:
    placed = read(folder / "tied", LITTLE).model
    mlp = placed.model.layers[2].mlp
    forward = mlp.forward
    mlp.forward = lambda states: forward(states) * 2
    assert model_digest(placed) is None


@pytest.mark.parametrize("size", [None, LITTLE])
def test_a_hook_of_the_users_own_is_seen_behind_accelerates(
    folder: Path, size: int | None
) -> None:
    class Doubles(ModelHook):  # type: ignore[misc]
        def post_forward(self, module: Any, output: Any) -> Any:
            return output * 2

    model = read(folder / "tied", size).model
    before = state_digest(model)
    add_hook_to_module(model.model.layers[2].mlp, Doubles(), append=True)
    assert model_digest(model) is None
    assert state_digest(model) != before


def test_a_run_that_plain_ran_out_of_memory_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Key.parse("wanda/mine:32")

    def measure(loaded: Loaded) -> Measurement:
        store = Store(
            {"it": Target("it", "it")},
            load=lambda _: loaded,
            open_corpus=lambda _: CORPUS,
            watch=lambda label, **_: watch_lines(label, lambda line: None),
            journals=Journals(tmp_path / "journals"),
        )
        return store.measurement("it", key)

    plain = read(folder / "untied")
    expected = measure_loaded(plain, key, lambda _: CORPUS)
    calls = count()
    body = type(plain.model.base_model)
    forward = body.forward

    def full(*args: Any, **options: Any) -> Any:
        if next(calls) == 7:
            raise torch.OutOfMemoryError
        return forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(body, "forward", full)
        with pytest.raises(DeviceError, match="out of memory"):
            measure(plain)
    result = measure(read(folder / "untied", LITTLE))
    assert result.evidence == expected.evidence
    assert result.environment == expected.environment
    [notice] = result.notices
    assert f"of {expected.windows} windows were scored already" in notice


def test_the_tensors_of_a_model_in_memory(models: Models) -> None:
    plain, placed = (models["tied", size].model for size in ("plain", "one layer"))
    expected = {
        stream.name: b"".join(words.tobytes() for words in stream.read())
        for stream in model_streams(plain)
    }
    assert expected
    assert {
        stream.name: b"".join(words.tobytes() for words in stream.read())
        for stream in model_streams(placed)
    } == expected


def test_a_copy_for_a_test_computes_the_same(models: Models) -> None:
    placed = models["untied", "one layer"].model
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(
            copy.deepcopy(placed)(input_ids=ids).logits, placed(input_ids=ids).logits
        )


# ------------------------------------------------------------------ what is left behind


def test_weights_are_read_from_the_files_of_the_checkpoint(folder: Path) -> None:
    placed = read(folder / "untied", LITTLE)
    assert scratch() == set()
    measured(placed, "wanda/mine:32", folder)


def rewritten(folder: Path) -> tuple[Path, int]:
    """A checkpoint whose weights on disk are written anew, and bytes for the others."""
    if TRANSFORMERS_4:  # it has experts as the files have them
        return pickled(folder), 165_000
    return save_tiny(folder / "moe", "mixtral", num_hidden_layers=LAYERS), 250_000


def test_weights_that_had_to_be_written_are_gone_with_the_model(
    folder: Path, tmp_path: Path
) -> None:
    path, size = rewritten(tmp_path)
    store = Store(
        {"it": Target("it", str(path))},
        load=lambda target: read(Path(target.spec), size),
        open_corpus=lambda _: CORPUS,
        watch=lambda label, **_: watch_lines(label, lambda line: None),
    )
    loaded = store.loaded("it")
    [written] = scratch()
    assert any(written.iterdir())
    model = weakref.ref(loaded.model)
    head = loaded.model.get_output_embeddings()  # as a reference keeps it
    del loaded
    store.evict()
    assert written.exists()
    with torch.no_grad():
        assert head(torch.ones(1, 32)).shape == (1, 320)
    del head
    gc.collect()
    assert model() is None
    assert scratch() == set()


def test_an_evicted_model_is_gone(folder: Path) -> None:
    store = Store(
        {"it": Target("it", str(folder / "tied"))},
        load=lambda target: read(Path(target.spec), LITTLE),
        open_corpus=lambda _: CORPUS,
        watch=lambda label, **_: watch_lines(label, lambda line: None),
    )
    store.measurement("it", Key.parse("wanda/mine:32"))
    model = weakref.ref(store.loaded("it").model)
    gc.disable()
    try:
        store.evict()
        assert model() is None
    finally:
        gc.enable()


def test_a_checkpoint_that_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "it", "mixtral", num_hidden_layers=LAYERS)
    state = load_file(path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weight \(model\.norm\.weight\) m"):
        read(path, 250_000)
    gc.collect()  # the error's frames
    assert scratch() == set()


@pytest.mark.skipif(not TRANSFORMERS_4, reason="transformers 5 can")
def test_transformers_4_puts_no_whole_model_on_disk(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "it", num_hidden_layers=LAYERS)
    with pytest.raises(CheckpointError) as caught:
        read(path, 20_000)
    assert str(caught.value) == (
        f"{path}: transformers {version('transformers')} cannot put a whole model on "
        "disk: give --ppl-max-memory cpu more, or install transformers 5"
    )


def test_no_room_for_weights_that_go_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = "integrations.accelerate.save_file"
    if TRANSFORMERS_4:
        writer = "modeling_utils.offload_weight"
    monkeypatch.setattr(f"transformers.{writer}", full)
    path, size = rewritten(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read(path, size)
    assert str(caught.value) == (
        f"{path}: no room in {tmp_path / 'scratch'} for weights that go to disk: set "
        "TMPDIR to a folder with room, or give --ppl-max-memory more"
    )
    assert scratch() == set()


# -------------------------------------------------------------------- what a user types


def load_as(spec: str, **options: Any) -> Loaded:
    said: list[str] = []
    return load_target(
        Target("it", spec), Options(**options), tell=lambda *lines: said.extend(lines)
    )


def test_no_room_for_one_layer(folder: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        load_as(str(folder / "untied"), max_memory={"cpu": 40_000})
    assert str(caught.value) == (
        f"--ppl-max-memory cpu=... leaves 39.1 KiB for {folder / 'untied'}, whose "
        "largest layer, model.embed_tokens, takes 40 KiB in float32: give at least "
        "that, or leave cpu out"
    )


def test_an_adapter_and_a_quantised_checkpoint_stay_in_one_place(
    tmp_path: Path,
) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = adapted(base, tmp_path / "lora", lora())
    packed = quantised("pack-quantized", tmp_path / "packed")
    for spec, why in (
        (
            f"{adapter}+{base}",
            "is an adapter, which is merged into weights that are ",
        ),
        (str(packed), "is quantised, and its kernels read weights where they "),
    ):
        with pytest.raises(CheckpointError) as caught:
            load_as(spec, max_memory={"cpu": 60_000})
        assert str(caught.value).startswith(f"{spec.partition('+')[0]} {why}")
        assert "with --ppl-max-memory it can be on GPUs only, and takes " in str(
            caught.value
        )
        whole = load_as(spec, max_memory={"cpu": 1_000_000})
        assert not any(weight.is_meta for weight in whole.model.parameters())


def test_a_gguf_file_stays_in_one_place() -> None:
    file = smollm2_gguf()
    with pytest.raises(CheckpointError) as caught:
        load_as(str(file), max_memory={"cpu": 200_000_000})
    assert str(caught.value) == (
        f"{file} is a GGUF file, which is unpacked as a whole: with --ppl-max-memory "
        "it can be on GPUs only, and takes 513 MiB in float32; give GPUs room for "
        "that, or a checkpoint in safetensors files that needs no such step"
    )


def test_compiled(folder: Path) -> None:
    with pytest.raises(PplguardError) as caught:
        load_as(str(folder / "untied"), max_memory={"cpu": LITTLE}, compile=True)
    assert str(caught.value) == (
        "--ppl-compile and a model on several devices do not go together: "
        "torch.compile gives up on what brings its layers' weights and inputs to "
        "their device; leave --ppl-compile out"
    )


@contextmanager
def two_gpus(monkeypatch: pytest.MonkeyPatch, *free: int) -> Iterator[list[Any]]:
    """Two GPUs with so many free bytes; yields where models were to be loaded."""
    places: list[Any] = []

    def note(located: Any, *, device: Placement, **options: Any) -> Loaded:
        places.append(device)
        return load(located, device="cpu", **options)

    with monkeypatch.context() as patch:
        hardware = Hardware("cuda", len(free), ("NVIDIA H100",) * len(free))
        patch.setattr(loading, "probe", lambda: hardware)
        patch.setattr(loading, "free_memory", lambda _, index: free[index])
        patch.setattr(loading, "load", note)
        yield places


def test_auto_spreads_what_does_not_fit_one_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = str(folder / "untied")  # 268 kB, its largest layer 41
    with two_gpus(monkeypatch, 300_000, 300_000) as places:
        load_as(spec)
    assert places == [Placement("cuda")]
    with two_gpus(monkeypatch, 200_000, 200_000) as places:
        load_as(spec)
        with pytest.raises(DeviceError, match=r"and cuda has 195 KiB free\. Way out: "):
            load_as(spec, device="cuda")
    assert places == [Placement("cuda:0", {0: 180_000, 1: 180_000}, spread=True)]
    with (
        two_gpus(monkeypatch, 100_000, 100_000) as places,
        pytest.raises(DeviceError, match="and the 2 GPUs have 195 KiB free, of which"),
    ):
        load_as(spec)
    assert places == []


def test_gpus_of_two_kinds_are_named(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"cuda:0": "NVIDIA A100", "cuda:1": "NVIDIA H100", "cuda:2": "NVIDIA A100"}

    def named(*devices: str) -> str:
        found = [torch.device(device) for device in devices]
        monkeypatch.setattr(subject, "devices_of", lambda model: found)
        monkeypatch.setattr(subject, "device_name", names.__getitem__)
        return subject.facts_of(models["tied", "plain"]).device_name

    # Kernels, and so bits, are those of one GPU of the kind.
    assert named("cuda:0", "cuda:2") == named("cuda:0") == "NVIDIA A100"
    assert named("cuda:0", "cuda:1", "cuda:2") == "NVIDIA A100 + NVIDIA H100"


def test_the_gpu_that_is_full_is_named() -> None:
    first = torch.device("cuda:0")
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of "
        "79.20 GiB of which 1.20 GiB is free."
    )
    assert memory.full_device(error, first) == torch.device("cuda:1")
    assert memory.full_device(MemoryError(), first) == first
    assert memory.full_device(error, torch.device("cpu")) == torch.device("cpu")


def test_a_compiled_model_is_not_spread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        two_gpus(monkeypatch, 200_000, 200_000),
        pytest.raises(PplguardError, match=r"^--ppl-compile and a model on several"),
    ):
        load_as(str(folder / "untied"), compile=True)


def test_the_demo_on_the_command_line(tmp_path: Path) -> None:
    plain, placed = (
        pplguard(
            "measure", "demo/dense", "--corpus", "demo", "--window", "256",
            "--limit", "3", "--method", "wanda", "--json", "-", "--journal", "off",
            *more, cwd=tmp_path,
        )
        for more in ((), ("--max-memory", "cpu=3MB"))
    )  # fmt: skip
    assert plain.returncode == placed.returncode == 0, placed.stderr
    assert re.search(
        r"where the layers of demo/dense are: cpu: .*; disk: .*", placed.stderr
    )
    one, other = (
        json.loads(done.stdout)["measurements"][0] for done in (plain, placed)
    )
    assert len(one["evidence"]) == 3
    assert other | {"seconds": 0} == one | {"seconds": 0}


def test_the_demo_in_pytest(tmp_path: Path) -> None:
    assert pplguard("demo", ".", cwd=tmp_path).returncode == 0
    done = run_pytest(
        "pytest baselines/demo.yaml --ppl-model demo --ppl-max-memory cpu=3MB "
        "--ppl-journal off",
        tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "where the layers of demo/wanda-50 are: cpu: " in done.stdout


PEAK = """
import re, sys
from pytest_pplguard.checkpoints import Placement, load, locate
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key
path, size = sys.argv[1], int(sys.argv[2])
place = Placement("cpu", {"cpu": size} if size else {})
loaded = load(locate(path), device=place, dtype="float32")
found = measure_loaded(
    loaded, Key.parse("wanda/demo:128:first2"), lambda name: open_corpus(name, {})
)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(int(peak) * 1024, *[score.nll_sum.hex() for score in found.evidence])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc/self/status")
def test_an_offloaded_run_needs_less_memory(tmp_path: Path) -> None:
    """Of 211 MB of weights in eight layers, most are never in memory at once."""
    path = save_tiny(
        tmp_path / "wide",
        num_hidden_layers=8,
        hidden_size=640,
        intermediate_size=2560,
        num_attention_heads=10,
        num_key_value_heads=10,
        head_dim=64,
    )
    (plain, *expected), (placed, *found) = (
        subprocess.run(
            [sys.executable, "-c", PEAK, str(path), size],
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for size in ("0", "30000000")
    )  # fmt: skip
    assert found == expected
    weights = (path / "model.safetensors").stat().st_size
    assert int(plain) - int(placed) > 0.6 * weights
