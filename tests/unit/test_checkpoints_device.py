"""Devices and dtypes are chosen from what the machine has, which is faked here."""

from __future__ import annotations

import re

import pytest

from pytest_pplguard.checkpoints import (
    DeviceChoice,
    DtypeChoice,
    Hardware,
    choose_device,
    choose_dtype,
)
from pytest_pplguard.errors import DeviceError, UsageError

NOTHING = Hardware()
ONE = Hardware("cuda", 1, ("NVIDIA H100",))
FOUR = Hardware("cuda", 4, ("NVIDIA A100",) * 4)
APPLE = Hardware("mps", 1, ("MPS",))


@pytest.mark.parametrize(
    ("requested", "hardware", "worker", "device"),
    [
        ("auto", ONE, None, "cuda"),
        ("auto", FOUR, 0, "cuda:0"),
        ("auto", FOUR, 6, "cuda:2"),
        ("auto", APPLE, None, "mps"),
        ("cuda", FOUR, 3, "cuda:3"),
        ("cuda:1", FOUR, 3, "cuda:1"),
        ("cpu", FOUR, 3, "cpu"),
        ("cpu", NOTHING, None, "cpu"),
    ],
)
def test_device_that_is_there(
    requested: str, hardware: Hardware, worker: int | None, device: str
) -> None:
    chosen = choose_device(requested, hardware, worker_index=worker)
    assert chosen == DeviceChoice(device)


def test_auto_without_accelerator_says_that_it_is_the_cpu() -> None:
    assert choose_device("auto", NOTHING) == DeviceChoice(
        "cpu", "no accelerator found: running on the CPU"
    )


@pytest.mark.parametrize(
    ("requested", "hardware", "message"),
    [
        (
            "cuda",
            NOTHING,
            "no CUDA GPU here for --ppl-device cuda (torch sees: nothing). "
            "Way out: --ppl-device auto or cpu",
        ),
        (
            "cuda:3",
            ONE,
            "no cuda:3 here (torch sees: 1 GPU: NVIDIA H100). "
            "Way out: --ppl-device auto or cpu",
        ),
        (
            "xpu",
            FOUR,
            "no xpu device here for --ppl-device xpu "
            "(torch sees: 4 GPUs: NVIDIA A100). Way out: --ppl-device auto or cpu",
        ),
        (
            "cuda:0",
            APPLE,
            "no CUDA GPU here for --ppl-device cuda:0 (torch sees: 1 mps device: MPS). "
            "Way out: --ppl-device auto or cpu",
        ),
    ],
)
def test_device_that_is_not_there(
    requested: str, hardware: Hardware, message: str
) -> None:
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        choose_device(requested, hardware)


@pytest.mark.parametrize("requested", ["cuda:", "cuda:-1", "CUDA", "gpu", "", "0"])
def test_no_device_at_all(requested: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda, cuda:1, or one of"):
        choose_device(requested, ONE)


def test_mistyped_device_gets_a_proposal() -> None:
    with pytest.raises(UsageError) as caught:
        choose_device("cudo", ONE)
    assert str(caught.value) == (
        "--ppl-device 'cudo' is no device (did you mean 'cuda'?): "
        "expected auto, cpu, cuda, cuda:1, or one of mps, xpu, npu, hpu, mlu, musa"
    )


def test_only_accelerators_have_an_index() -> None:
    with pytest.raises(UsageError, match="'cpu:1' is no device: cpu takes no index"):
        choose_device("cpu:1", ONE)


@pytest.mark.parametrize(
    ("requested", "device", "saved", "dtype"),
    [
        ("auto", "cpu", "bfloat16", "float32"),
        ("auto", "cpu", None, "float32"),
        ("auto", "cuda:1", "bfloat16", "bfloat16"),
        ("auto", "cuda", "float16", "float16"),
        ("fp16", "cuda", "bfloat16", "float16"),
        ("bf16", "cuda", None, "bfloat16"),
        ("torch.float32", "cuda", "float16", "float32"),
        ("float64", "cpu", "float32", "float64"),
    ],
)
def test_dtype(requested: str, device: str, saved: str | None, dtype: str) -> None:
    assert choose_dtype(requested, device, saved) == DtypeChoice(dtype)


@pytest.mark.parametrize(("saved", "named"), [(None, "not known"), ("int8", "int8")])
def test_unusable_saved_dtype_runs_in_float32(saved: str | None, named: str) -> None:
    assert choose_dtype("auto", "cuda", saved) == DtypeChoice(
        "float32", f"the checkpoint's dtype is {named}: running in float32"
    )


def test_half_precision_on_a_cpu_is_slow() -> None:
    assert choose_dtype("bf16", "cpu", "bfloat16") == DtypeChoice(
        "bfloat16",
        "bfloat16 on a CPU can be 200 times slower than float32, "
        "which is exact for weights saved in half precision",
    )


def test_unknown_dtype() -> None:
    with pytest.raises(UsageError) as caught:
        choose_dtype("bfloat61", "cpu", None)
    assert str(caught.value) == (
        "--ppl-dtype 'bfloat61' is no dtype (did you mean 'bfloat16' or 'float64'?): "
        "expected auto, float32, float16, bfloat16, float64"
    )
