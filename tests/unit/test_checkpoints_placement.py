"""Whether a model fits, and where its layers go; devices are faked by their memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pytest

from pytest_pplguard.checkpoints import (
    DeviceChoice,
    Hardware,
    Placement,
    Stream,
    check_max_memory,
    choose_placement,
    fits,
    layer_weights,
    main_device,
)
from pytest_pplguard.checkpoints.placement import assign, placed, size_text
from pytest_pplguard.errors import CheckpointError, DeviceError, UsageError

GIB = 2**30
NOTHING = Hardware()
ONE = Hardware("cuda", 1, ("NVIDIA H100",))
TWO = Hardware("cuda", 2, ("NVIDIA H100",) * 2)
APPLE = Hardware("mps", 1, ("MPS",))
MODEL = {
    "model.embed_tokens": 2 * GIB,
    **{f"model.layers.{number}": 4 * GIB for number in range(8)},
    "model.norm": 1024,
    "lm_head": 2 * GIB,
}
"""36 GiB."""


def tensor(name: str, dtype: str, *shape: int) -> Stream:
    def read(unit: int = 1) -> Iterator[object]:
        raise AssertionError("nothing is read")

    return Stream(name, dtype, shape, read)  # type: ignore[arg-type]


def place(
    hardware: Hardware,
    free: Sequence[float],
    *,
    device: str = "cuda",
    spread: bool = True,
    worker: int | None = None,
    layers: Mapping[str, int] = MODEL,
    dtype: str = "bfloat16",
) -> Placement:
    return choose_placement(
        "big",
        layers,
        dtype=dtype,
        device=device,
        hardware=hardware,
        free=lambda index: int(free[index] * GIB),
        spread=spread,
        worker_index=worker,
    )


def limit(
    max_memory: dict[str, float],
    *,
    device: str = "cpu",
    free: int | None = None,
    offloads: str = "",
) -> Placement:
    return check_max_memory(
        "big",
        MODEL,
        {name: int(size * GIB) for name, size in max_memory.items()},
        device=device,
        dtype="bfloat16",
        free=lambda index: free,
        offloads=offloads,
    )


# --------------------------------------------------------------------- bytes of weights


def test_weights_are_summed_by_layer_in_the_dtype_that_is_loaded() -> None:
    tensors = [
        tensor("lm_head.weight", "BF16", 10, 4),
        tensor("model.layers.10.mlp.up_proj.weight", "BF16", 4, 8),
        tensor("model.layers.2.mlp.up_proj.weight", "BF16", 4, 8),
        tensor("model.layers.2.mlp.up_proj.bias", "F32", 8),
        tensor("model.norm.weight", "BF16", 4),
        tensor("model.embed_tokens.weight", "BF16", 10, 4),
    ]
    assert list(layer_weights(tensors, "float32").items()) == [
        ("model.embed_tokens", 160),
        ("model.layers.2", 4 * (32 + 8)),
        ("model.layers.10", 128),
        ("lm_head", 160),
        ("model.norm", 16),
    ]
    assert layer_weights(tensors, "bfloat16")["model.layers.2"] == 2 * (32 + 8)


def test_quantised_weights_are_as_large_as_they_are_stored() -> None:
    tensors = [
        tensor("model.layers.0.q_proj.weight_packed", "I32", 4, 2),
        tensor("model.layers.0.q_proj.weight_scale", "BF16", 4, 1),
    ]
    found = layer_weights(tensors, "float32", quantised=True)
    assert found == {"model.layers.0": 4 * 8 + 2 * 4}


# ----------------------------------------------------------------- one GPU, or several


def test_a_tenth_of_the_free_memory_is_for_activations() -> None:
    assert fits(90, 100)
    assert not fits(91, 100)


@pytest.mark.parametrize(
    ("hardware", "free", "device", "expected"),
    [
        (ONE, [80], "cuda", Placement("cuda")),
        (TWO, [80, 80], "cuda", Placement("cuda")),
        # Tight: whether it runs depends on the windows.
        (ONE, [38], "cuda", Placement("cuda")),
        (
            TWO,
            [38, 40],
            "cuda",
            Placement("cuda:0", {0: int(0.9 * 38 * GIB), 1: 36 * GIB}, spread=True),
        ),
        # The second GPU is too small to help.
        (TWO, [38, 1], "cuda", Placement("cuda")),
        (NOTHING, [], "cpu", Placement("cpu")),
    ],
)
def test_where_a_model_of_36_gib_goes(
    hardware: Hardware, free: list[float], device: str, expected: Placement
) -> None:
    assert place(hardware, free, device=device) == expected


def test_only_the_gpus_that_matter_are_asked() -> None:
    asked = []

    def free(index: int) -> int:
        asked.append(index)
        return 80 * GIB

    choose_placement(
        "big", MODEL, dtype="bfloat16", device="cuda:1", hardware=TWO, free=free
    )
    assert asked == [1]


def test_what_torch_cannot_tell_is_left_to_it() -> None:
    assert choose_placement(
        "big", MODEL, dtype="float32", device="mps", hardware=APPLE, free=lambda _: None
    ) == Placement("mps")


def test_a_typed_device_is_kept() -> None:
    with pytest.raises(DeviceError) as caught:
        place(TWO, [80, 30], device="cuda:1", spread=False, dtype="float32")
    assert str(caught.value) == (
        "big takes 36 GiB of weights in float32, and cuda:1 has 30 GiB free. Way out: "
        "free memory, a half-precision --ppl-dtype, or --ppl-device auto, which places "
        "it on several GPUs, or CPU memory and disk, which are slow: "
        "--ppl-max-memory 1=27GiB --ppl-max-memory cpu=SIZE"
    )


def test_one_gpu_that_is_too_small() -> None:
    with pytest.raises(DeviceError) as caught:
        place(ONE, [30])
    assert str(caught.value) == (
        "big takes 36 GiB of weights in bfloat16, and cuda has 30 GiB free. Way out: "
        "free memory, CPU memory and disk, which are slow: --ppl-max-memory 0=27GiB "
        "--ppl-max-memory cpu=SIZE"
    )


def test_two_gpus_that_are_too_small() -> None:
    with pytest.raises(DeviceError) as caught:
        place(TWO, [20, 10])
    assert str(caught.value) == (
        "big takes 36 GiB of weights in bfloat16, and the 2 GPUs have 30 GiB free, of "
        "which 10% is for activations. Way out: free memory, CPU memory and disk, "
        "which are slow: --ppl-max-memory 0=18GiB --ppl-max-memory 1=9GiB "
        "--ppl-max-memory cpu=SIZE"
    )


def test_a_worker_has_one_gpu() -> None:
    assert place(TWO, [80, 40], device="cuda:1", worker=1) == Placement("cuda:1")
    with pytest.raises(DeviceError) as caught:
        place(TWO, [80, 30], device="cuda:1", worker=1)
    assert str(caught.value) == (
        "big takes 36 GiB of weights in bfloat16, and cuda:1 has 30 GiB free, the only "
        "GPU of this xdist worker. Way out: free memory, no -n, so that it is placed "
        "on several"
    )


def test_layers_go_in_order_to_the_first_device_with_room() -> None:
    layers = {"embed": 2, "l.0": 4, "l.1": 4, "l.2": 4, "norm": 1, "head": 2}
    # Room for the largest layer is kept on the first GPU and the CPU.
    room: dict[int | str, int] = {"cpu": 9, 1: 4, 0: 10}
    assert assign(layers, room) == {
        "embed": 0, "l.0": 0, "l.1": 1, "l.2": "cpu", "norm": "cpu", "head": "disk",
    }  # fmt: skip


# ---------------------------------------------------------------- sizes that were typed


@pytest.mark.parametrize(
    ("requested", "devices", "hardware", "expected"),
    [
        ("auto", ["0", "cpu"], ONE, DeviceChoice("cuda:0")),
        ("cuda", ["1"], TWO, DeviceChoice("cuda:1")),
        ("cpu", ["cpu"], TWO, DeviceChoice("cpu")),
        ("auto", ["cpu"], NOTHING, DeviceChoice("cpu")),
        (
            "auto",
            ["cpu"],
            TWO,
            DeviceChoice(
                "cpu",
                "--ppl-max-memory names the CPU only: unused are 2 GPUs: NVIDIA H100",
            ),
        ),
        ("auto", [], ONE, DeviceChoice("cuda")),
    ],
)
def test_the_device_that_ids_go_to(
    requested: str, devices: list[str], hardware: Hardware, expected: DeviceChoice
) -> None:
    sizes = dict.fromkeys(devices, GIB)
    assert main_device(requested, sizes, hardware) == expected


@pytest.mark.parametrize(
    ("requested", "devices", "hardware", "worker", "error", "message"),
    [
        (
            "cuda:1", ["0"], TWO, None, UsageError,
            "--ppl-device cuda:1 is one device, and --ppl-max-memory places layers on "
            "those that it names: leave one of the two out",
        ),
        (
            "mps", ["cpu"], APPLE, None, UsageError,
            "--ppl-device mps is one device, and --ppl-max-memory places layers on "
            "those that it names: leave one of the two out",
        ),
        (
            "cpu", ["0", "cpu"], ONE, None, UsageError,
            "--ppl-max-memory 0=... is for a GPU, and --ppl-device cpu uses none: "
            "leave one of the two out",
        ),
        (
            "cuda", ["cpu"], ONE, None, UsageError,
            "--ppl-max-memory cpu=... places no layer on a GPU, which --ppl-device "
            "cuda asks for: add for example --ppl-max-memory 0=20GiB",
        ),
        (
            "auto", ["0"], NOTHING, None, DeviceError,
            "no GPU 0 here for --ppl-max-memory (torch sees: nothing). Way out: "
            "--ppl-max-memory cpu=SIZE",
        ),
        (
            "auto", ["0"], APPLE, None, DeviceError,
            "no GPU 0 here for --ppl-max-memory (torch sees: 1 mps device: MPS). Way "
            "out: --ppl-max-memory cpu=SIZE",
        ),
        (
            "auto", ["0", "2"], TWO, None, DeviceError,
            "no GPU 2 here for --ppl-max-memory (torch sees: 2 GPUs: NVIDIA H100, "
            "numbered from 0)",
        ),
        (
            "auto", ["0", "1"], TWO, 1, UsageError,
            "--ppl-max-memory 0=... and -n: an xdist worker has a GPU of its own, and "
            "all of them would take these; run without -n",
        ),
    ],
)  # fmt: skip
def test_sizes_that_contradict_what_else_was_asked_for_or_is_there(
    requested: str,
    devices: list[str],
    hardware: Hardware,
    worker: int | None,
    error: type[Exception],
    message: str,
) -> None:
    sizes = dict.fromkeys(devices, GIB)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        main_device(requested, sizes, hardware, worker_index=worker)


def test_sizes_that_hold_a_layer() -> None:
    assert limit({"cpu": 4}) == Placement("cpu", {"cpu": 4 * GIB})
    # No GPU gets more than it has.
    assert limit({"0": 80, "cpu": 8}, device="cuda:0", free=40 * GIB) == Placement(
        "cuda:0", {0: 40 * GIB, "cpu": 8 * GIB}
    )


def test_no_room_for_one_layer() -> None:
    with pytest.raises(DeviceError) as caught:
        limit({"cpu": 3.5})
    assert str(caught.value) == (
        "--ppl-max-memory cpu=... leaves 3.5 GiB for big, whose largest layer, "
        "model.layers.0, takes 4 GiB in bfloat16: give at least that, or leave cpu out"
    )


def test_what_cannot_be_offloaded() -> None:
    why = "is a GGUF file, which is unpacked as a whole"
    assert limit({"cpu": 36.5}, offloads=why) == Placement("cpu")
    on_gpus = limit({"0": 30, "1": 30}, device="cuda:0", offloads=why)
    assert on_gpus == Placement("cuda:0", {0: 30 * GIB, 1: 30 * GIB}, spread=True)
    for sizes in ({"cpu": 30}, {"0": 20, "1": 10}, {"0": 80, "cpu": 8}):
        with pytest.raises(CheckpointError) as caught:
            limit(dict(sizes), device="cuda:0", offloads=why)
        assert str(caught.value) == (
            "big is a GGUF file, which is unpacked as a whole: with --ppl-max-memory "
            "it can be on GPUs only, and takes 36 GiB in bfloat16; give GPUs room for "
            "that, or a checkpoint in safetensors files that needs no such step"
        )


def test_where_layers_went_in_words() -> None:
    device_map = {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": 0,
        "model.layers.2": "cpu",
        "model.norm": "disk",
        "lm_head": "disk",
    }
    words = (
        "GPU 0: 2 layers, model.embed_tokens; cpu: 1 layer; disk: model.norm, lm_head"
    )
    assert placed(device_map) == words
    assert placed({"": "disk"}) == "disk: all modules"


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 bytes"), (2048, "2 KiB"), (3.25 * GIB, "3.25 GiB"), (2**41, "2 TiB")],
)
def test_sizes_in_words(size: float, text: str) -> None:
    assert size_text(size) == text
