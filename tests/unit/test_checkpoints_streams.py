"""Streams of tensors: any chunk size tells the same, and files that change are seen."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.checkpoints import Located, fingerprint, measure_sparsity
from pytest_pplguard.checkpoints.sparsity import Sparsity
from pytest_pplguard.checkpoints.streams import WORDS, each, stored_streams
from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.values import TensorFacts

from .test_checkpoints_compressed import located as save_arrays
from .test_checkpoints_compressed import parts
from .test_checkpoints_fingerprint import digest_of
from .test_checkpoints_sparsity import UP, save

Array = numpy.ndarray[Any, Any]
GIB = 1 << 30


def facts_of(folder: Path, dtype: str, words: Array, *shape: int) -> TensorFacts:
    located = save(folder, {UP: (dtype, list(shape or words.shape), words.tobytes())})
    return fingerprint(located).tensors[UP]


def mask_of(nonzero: Array) -> str:
    """SHA-256 of one bit a weight, the first one highest, zeros behind the last."""
    bits = "".join("1" if bit else "0" for bit in nonzero.ravel())
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return hashlib.sha256(packed).hexdigest()[:32]


def with_chunks(elements: int) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr("pytest_pplguard.checkpoints.streams.CHUNK", elements)
    patch.setattr("pytest_pplguard.checkpoints.compressed._AT_ONCE", elements)
    return patch


# ------------------------------------------------------------------------------ numbers


def test_float32_at_its_ends(tmp_path: Path) -> None:
    tiny, top = numpy.float32(1e-45), numpy.finfo("f4").max
    values = numpy.array([tiny, -tiny, top, -top, -0.0, 0.0, 1.0], "<f4")
    facts = facts_of(tmp_path, "F32", values)
    assert facts.values == digest_of(values)
    assert facts.mask == mask_of(numpy.array([1, 1, 1, 1, 0, 0, 1]))
    assert (facts.zeros, facts.bad, facts.peak) == (2, 0, float(top))
    assert facts.norm == pytest.approx(math.sqrt(2) * float(top))
    assert facts.sum == pytest.approx(1.0, abs=1e32)  # rounded beside the largest


def test_small_numbers_have_a_norm(tmp_path: Path) -> None:
    values = numpy.full(9, 1e-30, "<f4")
    facts = facts_of(tmp_path, "F32", values)
    assert facts.norm == pytest.approx(3e-30)
    assert facts.peak == pytest.approx(1e-30)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_what_is_not_finite_is_counted_and_left_out(tmp_path: Path, dtype: str) -> None:
    values = numpy.array([numpy.nan, numpy.inf, -numpy.inf, 3.0, -4.0, 0.0], "<f4")
    raw = {
        "F64": values.astype("<f8"),
        "F32": values,
        "F16": values.astype("<f2"),
        "BF16": (values.view("<u4") >> 16).astype("<u2"),
    }[dtype]
    facts = facts_of(tmp_path, dtype, raw)
    assert (facts.bad, facts.zeros, facts.peak) == (3, 1, 4.0)
    assert (facts.sum, facts.norm) == (-1.0, 5.0)
    assert facts.values == digest_of(values)


def test_float64_that_no_float32_holds(tmp_path: Path) -> None:
    """Its own bits, -0.0 as 0.0, are digested behind those of its float32."""
    values = numpy.array([1.0, 1 + 2**-40, 1e300, 5e-324, -0.0], "<f8")
    facts = facts_of(tmp_path, "F64", values)
    near = numpy.array([1.0, 1.0, numpy.inf, 0.0, 0.0], "<f4").view("<u4")
    high = hashlib.sha256((near >> 16).astype("<u2").tobytes()).digest()
    wide = hashlib.sha256((values + 0.0).tobytes()).digest()
    assert facts.values == hashlib.sha256(high + wide).hexdigest()[:32]
    assert (facts.zeros, facts.bad, facts.peak) == (1, 1, 1.0)
    assert facts.mask == mask_of(values != 0)
    again = facts_of(tmp_path, "F64", values[[1, 0, 2, 3, 4]])
    assert again.values != facts.values


def test_integers_are_digested_as_bytes(tmp_path: Path) -> None:
    raw = numpy.arange(12, dtype="<i4")
    facts = facts_of(tmp_path, "I32", raw, 3, 4)
    expected = hashlib.sha256(b"I32" + raw.tobytes()).hexdigest()[:32]
    assert facts == TensorFacts("I32", (3, 4), expected)


@pytest.mark.parametrize(("shape", "size"), [((), 1), ((0,), 0), ((3, 0), 0)])
def test_a_number_and_nothing(
    tmp_path: Path, shape: tuple[int, ...], size: int
) -> None:
    values = numpy.ones(size, "<f4")
    located = save(tmp_path, {UP: ("F32", list(shape), values.tobytes())})
    facts = fingerprint(located).tensors[UP]
    assert (facts.shape, facts.size, facts.zeros) == (shape, size, 0)
    assert (facts.values, facts.norm) == (digest_of(values), float(size))


def test_empty_matrix_has_no_groups(tmp_path: Path) -> None:
    tensors = {
        UP: ("F32", [4, 0], b""),
        UP.replace("up", "down"): ("F32", [4, 4], bytes(64)),
    }
    configs: tuple[dict[str, object], ...] = ({}, {"model_type": "gpt2"})
    for config in configs:
        measured = measure_sparsity(save(tmp_path, tensors, config), pattern=(2, 4))
        assert measured.tensors[UP] == (0, 0, 0, 0)
        assert measured.total == 16


# ------------------------------------------------------------------ chunks do not count


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, tuple[int, int], bytes]:
    """A matrix of random bits in a floating dtype, with many zeros of both signs."""
    dtype = draw(st.sampled_from(sorted(WORDS)))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    generator = numpy.random.default_rng(draw(st.integers(0, 99)))
    word = numpy.dtype(WORDS[dtype])
    shape = rows, groups * 4
    raw = generator.integers(0, 256, (*shape, word.itemsize), "u1").view(word)[..., 0]
    draws = generator.random(shape)
    raw[draws < 0.6] = 0
    if "FNUZ" not in dtype:
        raw[draws < 0.2] = 1 << (8 * word.itemsize - 1)
    return dtype, shape, raw.tobytes()


@given(tensor=tensors(), chunk=st.integers(1, 70))
def test_chunk_size_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    tensor: tuple[str, tuple[int, int], bytes],
    chunk: int,
) -> None:
    dtype, shape, raw = tensor
    folder = tmp_path_factory.mktemp("chunks")
    located = save(folder, {UP: (dtype, list(shape), raw)})
    whole = fingerprint(located).tensors[UP]
    counted = measure_sparsity(located, pattern=(2, 4))
    patch = with_chunks(chunk)
    try:
        cut = fingerprint(located).tensors[UP]
        assert measure_sparsity(located, pattern=(2, 4)) == counted
    finally:
        patch.undo()
    for name in ("dtype", "shape", "values", "zeros", "mask", "peak", "bad"):
        assert getattr(cut, name) == getattr(whole, name)
    assert cut.sum == pytest.approx(whole.sum, rel=1e-3, abs=1e-3 * whole.peak)
    assert cut.norm == pytest.approx(whole.norm, rel=1e-3)
    bits = numpy.frombuffer(raw, WORDS[dtype])
    sign = 0 if "FNUZ" in dtype else 1 << (8 * bits.itemsize - 1)
    nonzero = (bits & ~bits.dtype.type(sign)) != 0
    assert whole.mask == mask_of(nonzero)
    assert whole.zeros == counted.zeros == int((~nonzero).sum())
    groups = [nonzero[i : i + 4].sum() > 2 for i in range(0, nonzero.size, 4)]
    assert counted.tensors[UP] == (
        *(whole.zeros, nonzero.size, len(groups), sum(map(bool, groups))),
    )


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_compressed_and_dense_are_one(tmp_path: Path, chunk: int) -> None:
    generator = numpy.random.default_rng(5)
    dense = generator.normal(size=(7, 36)).astype("<f4")
    dense[generator.random(dense.shape) < 0.6] = 0
    (tmp_path / "dense").mkdir()
    (tmp_path / "packed").mkdir()
    one = save_arrays(tmp_path / "dense", {UP: dense})
    other = save_arrays(tmp_path / "packed", parts(dense, UP))
    patch = with_chunks(chunk)
    try:
        assert fingerprint(one) == fingerprint(other)
        for pattern in (None, (2, 4), (1, 12)):
            found = measure_sparsity(one, pattern=pattern)
            assert measure_sparsity(other, pattern=pattern) == found
    finally:
        patch.undo()


# ----------------------------------------------------------------------------- patterns


def counted(folder: Path, name: str, values: Array, pattern: tuple[int, int]) -> Any:
    kind = "gpt2" if "c_fc" in name else "llama"
    config: dict[str, object] = {"hidden_size": 8, "model_type": kind}
    located = save(
        folder, {name: ("F32", list(values.shape), values.tobytes())}, config
    )
    return measure_sparsity(located, pattern=pattern).tensors[name]


@pytest.mark.parametrize("chunk", [3, 1 << 18])
@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        (UP, (6, 24), 1),
        ("transformer.h.0.mlp.c_fc.weight", (24, 10), 0),  # [input x output]
        ("model.layers.0.mlp.experts.gate_up_proj", (3, 8, 20), 1),
        ("model.layers.0.mlp.experts.gate_up_proj", (3, 20, 8), 2),
        ("model.layers.0.mlp.experts.down_proj", (3, 12, 8), 1),
        ("model.layers.0.mlp.experts.down_proj", (3, 8, 12), 2),
    ],
)
@pytest.mark.parametrize("pattern", [(2, 4), (1, 2), (3, 4)])
def test_groups_run_along_the_input(
    tmp_path: Path,
    name: str,
    shape: tuple[int, ...],
    axis: int,
    pattern: tuple[int, int],
    chunk: int,
) -> None:
    generator = numpy.random.default_rng(axis)
    values = generator.normal(size=shape).astype("<f4")
    values[generator.random(shape) < 0.5] = -0.0
    keep, size = pattern
    inputs_last = numpy.moveaxis(values, axis, -1)
    broken = groups = zeros = 0
    for row in inputs_last.reshape(-1, shape[axis]):
        for begin in range(0, len(row), size):
            groups += 1
            alive = sum(1 for weight in row[begin : begin + size] if weight != 0)
            zeros += size - alive
            broken += alive > keep
    patch = with_chunks(chunk)
    try:
        assert counted(tmp_path, name, values, pattern) == (
            *(zeros, values.size, groups, broken),
        )
    finally:
        patch.undo()
    assert 0 < broken < groups


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_gguf_in_chunks(tmp_path: Path, kind: str) -> None:
    import gguf

    generator = numpy.random.default_rng(2)
    dense = generator.normal(size=(5, 64)).astype("<f4")
    dense[:, 2::4] = dense[:, 3::4] = 0
    dense[4, :4] = 1
    dense = dense.astype("<f2") if kind == "F16" else dense
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    packed = gguf.quants.quantize(dense.astype("<f4"), quantised)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    located = Located("m.gguf", tmp_path, gguf="m.gguf")
    values = gguf.quants.dequantize(packed, quantised).astype("<f4").ravel()
    zeros = int((values == 0).sum())
    alive = (values.reshape(-1, 4) != 0).sum(axis=1)
    for chunk in (1, 100, 1 << 18):
        patch = with_chunks(chunk)
        try:
            facts = fingerprint(located).tensors["blk.0.ffn_up.weight"]
            assert (facts.values, facts.zeros) == (digest_of(values), zeros)
            assert facts.shape == (5, 64)
            found = measure_sparsity(located, pattern=(2, 4)).tensors
            assert found["blk.0.ffn_up.weight"] == (
                *(zeros, 320, 80, int((alive > 2).sum())),
            )
        finally:
            patch.undo()
    assert int((alive > 2).sum()) == 1


# -------------------------------------------------------------------- files that change


def big(folder: Path) -> Located:
    words = numpy.arange(1000, dtype="<f4")
    return save(folder, {UP: ("F32", [10, 100], words.tobytes())})


WAIT = "wait until whatever writes it is done, and run again"


def test_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    located = big(tmp_path)
    file = tmp_path / "model.safetensors"
    patch = with_chunks(100)
    try:
        chunks = stored_streams(located)[0].read()
        assert next(chunks)[1] == numpy.float32(1).view("<u4")
        os.truncate(file, file.stat().st_size - 2000)
        with pytest.raises(CheckpointError) as caught:
            list(chunks)
    finally:
        patch.undo()
    assert str(caught.value) == f"{file} became shorter while it was read: {WAIT}"


def test_file_that_is_written_while_it_is_read(tmp_path: Path) -> None:
    located = big(tmp_path)
    file = tmp_path / "model.safetensors"
    chunks = stored_streams(located)[0].read()
    next(chunks)
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\1\1\1\1")
    os.utime(file, ns=(1, 1))  # its time may be as coarse as a clock's tick
    with pytest.raises(CheckpointError) as caught:
        next(chunks)
    assert str(caught.value) == f"{file} was changed while it was read: {WAIT}"


@pytest.mark.parametrize("packed", [False, True])
def test_file_that_is_replaced_after_its_header_was_read(
    tmp_path: Path, packed: bool
) -> None:
    values = numpy.ones((4, 16), "<f4")
    tensors = parts(values) if packed else {UP: values}
    streams = stored_streams(save_arrays(tmp_path, tensors))
    file = tmp_path / "model.safetensors"
    (tmp_path / "new").write_bytes(file.read_bytes())
    os.replace(tmp_path / "new", file)
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            list(streams[0].read())
        assert str(caught.value) == f"{file} was changed while it was read: {WAIT}"


def test_file_that_is_gone(tmp_path: Path) -> None:
    located = big(tmp_path)
    stream = stored_streams(located)[0]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        list(stream.read())
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'} cannot be read: No such file or directory"
    )


# ------------------------------------------------------------------------------ threads


def test_an_error_in_a_thread_is_raised_and_stops_the_rest(tmp_path: Path) -> None:
    located = save(
        tmp_path,
        {f"model.layers.{i}.w.weight": ("F32", [1, 1], bytes(4)) for i in range(400)},
    )
    done = []

    def work(stream: Any) -> None:
        if stream.name == "model.layers.0.w.weight":
            raise CheckpointError("this one is broken")
        done.append(list(stream.read()))

    with pytest.raises(CheckpointError, match="this one is broken"):
        each(stored_streams(located), work)


def test_results_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = numpy.random.default_rng(0)
    located = save(
        tmp_path,
        {
            f"model.layers.{i}.w.weight": (
                *("F32", [1, i + 1]),
                generator.normal(size=i + 1).astype("<f4").tobytes(),
            )
            for i in range(100)
        },
    )
    found: list[tuple[Any, Sparsity]] = []
    for threads in (1, 16):
        monkeypatch.setattr(
            "pytest_pplguard.checkpoints.streams.os.cpu_count", lambda n=threads: n
        )
        found.append((fingerprint(located), measure_sparsity(located)))
    assert found[0] == found[1]
    assert list(found[0][1].tensors) == [
        f"model.layers.{i}.w.weight" for i in range(100)
    ]


@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C")
def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """Tensors without end would keep the threads for hours."""
    with (tmp_path / "model.safetensors").open("wb") as stream:
        count = 64
        header = ",".join(
            f'"model.layers.{i}.w.weight":{{"dtype":"F32","shape":[16,{GIB // 64}],'
            f'"data_offsets":[{i * GIB},{(i + 1) * GIB}]}}'
            for i in range(count)
        )
        text = f"{{{header}}}".encode()
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + count * GIB)  # sparse: it takes no space
    (tmp_path / "config.json").write_text("{}")
    script = """
        import os, signal, sys
        from pathlib import Path
        from pytest_pplguard.checkpoints import Located
        from pytest_pplguard.checkpoints.streams import each, stored_streams
        # A job in a shell's background ignores it, and so do its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def work(stream):
            os.write(1, b"reading\\n")
            for chunk in stream.read():
                pass
        try:
            each(stored_streams(Located("m", Path(sys.argv[1]))), work)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    lines = out.splitlines()
    assert (lines[-1], child.returncode) == ("interrupted", 0)
    assert len(lines) < count
