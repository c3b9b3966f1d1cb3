"""What a measurement takes; the numbers are written out by hand."""

from __future__ import annotations

import pytest

from pytest_pplguard.checkpoints import Hardware
from pytest_pplguard.checkpoints.placement import Placement, choose_placement
from pytest_pplguard.errors import DeviceError
from pytest_pplguard.measure.calibrate import excerpt
from pytest_pplguard.planning import (
    CHUNK_BYTES,
    WIKITEXT2_PAGES,
    Count,
    Layer,
    Memory,
    Pool,
    Shape,
    bytes_a_token,
    chunk_rows,
    estimate_windows,
    key_flops,
    pairs,
    place,
    seconds,
)
from pytest_pplguard.planning.place import modules
from pytest_pplguard.planning.shape import CONTEXT, PROCESS

GB = 10**9

LLAMA_2_7B = Shape(
    architecture="LlamaForCausalLM",
    hidden=4096,
    vocabulary=32_000,
    layers=(
        Layer(
            parameters=4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096,
            products=4 * 4096**2 + 3 * 4096 * 11_008,
            middle=11_008,
            heads=32,
            queries=4096,
            keys=4096,
            values=4096,
        ),
    )
    * 32,
    embedding=32_000 * 4096,
    head=32_000 * 4096,
    others=4096,
)
LLAMA_3_405B = Shape(
    architecture="LlamaForCausalLM",
    hidden=16_384,
    vocabulary=128_256,
    layers=(
        Layer(
            # Queries and output, keys and values of 8 heads, a gated MLP, two norms.
            parameters=2 * 16_384**2
            + 2 * 16_384 * 1024
            + 3 * 16_384 * 53_248
            + 2 * 16_384,
            products=2 * 16_384**2 + 2 * 16_384 * 1024 + 3 * 16_384 * 53_248,
            middle=53_248,
            heads=128,
            queries=16_384,
            keys=1024,
            values=16_384,
        ),
    )
    * 126,
    embedding=128_256 * 16_384,
    head=128_256 * 16_384,
    others=16_384,
)
_EXPERTS = 8 * 3 * 4096 * 14_336
MIXTRAL = Shape(
    architecture="MixtralForCausalLM",
    hidden=4096,
    vocabulary=32_000,
    layers=(
        Layer(
            # The router has a row for each expert.
            parameters=2 * 4096**2 + 2 * 4096 * 1024 + 8 * 4096 + _EXPERTS + 2 * 4096,
            products=2 * 4096**2 + 2 * 4096 * 1024 + 8 * 4096 + _EXPERTS,
            middle=14_336,
            copies=4,
            heads=32,
            queries=4096,
            keys=1024,
            values=4096,
            experts=_EXPERTS,
            count=8,
            read=2,
        ),
    )
    * 32,
    embedding=32_000 * 4096,
    head=32_000 * 4096,
    others=4096,
)
GPT2 = Shape(
    architecture="GPT2LMHeadModel",
    hidden=768,
    vocabulary=50_257,
    layers=(
        Layer(
            # Matrices with their biases, two norms of 2 x 768.
            parameters=12 * 768**2 + (3 + 1 + 4 + 1) * 768 + 4 * 768,
            products=12 * 768**2,
            middle=3072,
            copies=4,
            heads=12,
            queries=768,
            keys=768,
            values=768,
        ),
    )
    * 12,
    embedding=50_257 * 768,
    head=0,
    others=1024 * 768 + 2 * 768,
    tied=True,
)


@pytest.mark.parametrize(
    ("shape", "parameters", "active"),
    [
        (LLAMA_2_7B, 6_738_415_616, 6_738_415_616),
        (LLAMA_3_405B, 405_853_388_800, 405_853_388_800),
        (MIXTRAL, 46_702_792_704, 12_879_925_248),
        (GPT2, 124_439_808, 124_439_808),
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_parameters_are_the_published_ones(
    shape: Shape, parameters: int, active: int
) -> None:
    assert (shape.parameters, shape.active) == (parameters, active)


def test_flops_of_llama_2_7b() -> None:
    """2 a weight and token, 4 x hidden a pair and layer, the head where it scores."""
    tokens, scored = 4096, 4095
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    by_hand = (
        2 * weights * tokens
        + 32 * 4 * 4096 * (tokens**2 // 2)
        + 2 * 4096 * 32_000 * scored
    )
    assert LLAMA_2_7B.flops(tokens, scored) == by_hand
    assert by_hand == pytest.approx(5.852e13, rel=1e-3)  # 2 x 6.6 B x 4096, and 8 %
    # The head reads scored positions only.
    half = LLAMA_2_7B.flops(tokens, 2048)
    assert by_hand - half == 2 * 4096 * 32_000 * (4095 - 2048)


def test_flops_of_llama_3_405b() -> None:
    assert LLAMA_3_405B.flops(4096, 4095) == pytest.approx(
        2 * 403.75e9 * 4096 + 126 * 4 * 16_384 * 4096**2 / 2, rel=1e-3
    )


def test_experts_that_are_not_read_multiply_nothing() -> None:
    dense = 2 * 4096**2 + 2 * 4096 * 1024 + 8 * 4096
    (layer,) = set(MIXTRAL.layers)
    assert layer.flops(1000) == 2 * (dense + _EXPERTS // 4) * 1000 + 4 * 4096 * 500_000


@pytest.mark.parametrize(
    ("tokens", "reach", "expected"),
    [(4, None, 8), (1000, None, 500_000), (4, 4, 8), (4, 9, 8), (10, 2, 18)],
)
def test_pairs(tokens: int, reach: int | None, expected: int) -> None:
    """A half square; with a reach of 2 a position more adds 2 pairs."""
    assert pairs(tokens, reach) == expected


# ------------------------------------------------------------------------------ memory


def test_memory_of_llama_2_7b_in_float16() -> None:
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=4096, on_cpu=False)
    assert memory.weights == 2 * 6_738_415_616
    # The MLP: 4 of the hidden size, 3 of its own, 2 bytes each.
    assert memory.activations == 2 * 4096 * (4 * 4096 + 3 * 11_008) == 404_750_336
    # A chunk of 1,398 positions, each logit in half and in single precision.
    assert memory.logits == 1398 * 32_000 * (2 + 4) == 268_416_000
    assert memory.margin == -(-(404_750_336 + 268_416_000) // 4) + CONTEXT
    assert memory.total == sum(
        (memory.weights, memory.activations, memory.logits, memory.margin)
    )
    assert memory.total == pytest.approx(15.4 * GB, rel=1e-2)


def test_memory_grows_with_the_batch_and_on_a_cpu_has_no_context() -> None:
    one, four = (
        Memory.of(GPT2, itemsize=4, batch=batch, window=1024, on_cpu=True)
        for batch in (1, 4)
    )
    assert four.activations == 4 * one.activations
    assert four.logits == one.logits == 250 * 50_257 * 4  # 48 MiB of float32
    assert one.margin == pytest.approx(
        0.25 * (one.activations + one.logits) + PROCESS, abs=1
    )


def test_eager_attention_has_the_scores_of_all_pairs() -> None:
    fused = LLAMA_2_7B.activations(1, 4096, 2)
    eager = LLAMA_2_7B.activations(1, 4096, 2, eager=True)
    attention = 2 * 4096 * (4 * 4096 + 4 * 4096 + 2 * 4096)
    assert eager == attention + 32 * 4096**2 * (2 + 4 + 4)
    assert eager > 10 * fused


def test_a_chunk_is_no_longer_than_what_is_scored() -> None:
    assert chunk_rows(32_000, 4, kind="cpu") == CHUNK_BYTES["cpu"] // 128_000
    assert chunk_rows(10**9, 4, kind="cpu") == 1
    assert GPT2.logits(1, 8, 4, on_cpu=True) == 8 * 50_257 * 4


def test_logits_of_a_whole_window() -> None:
    """Of a model that changes them behind its head."""
    whole = Shape(
        "Gemma2ForCausalLM", 2304, 256_000, (), 256_000 * 2304, 0, 0,
        tied=True, whole_logits=True,
    )  # fmt: skip
    assert whole.logits(2, 4096, 2, on_cpu=False) == 2 * 4096 * 256_000 * 6


# ------------------------------------------------------------------------------- place


def where(shape: Shape, pool: Pool, **options: int) -> tuple[object, ...]:
    memory = Memory.of(shape, itemsize=2, batch=1, window=4096, on_cpu=not pool.gpus)
    found = place(shape, memory, pool, 2, most=options.get("most"))
    return found.verdict, found.gpus, found.layers


def test_a_model_on_one_gpu() -> None:
    assert where(LLAMA_2_7B, Pool((80 * GB,))) == ("one GPU", 1, (32,))
    # 0.9 of 15 GB are enough for the weights, and all of it is not for what runs.
    assert where(LLAMA_2_7B, Pool((15 * GB,))) == ("nowhere", 1, ())
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=4096, on_cpu=False)
    found = place(LLAMA_2_7B, memory, Pool((15 * GB,)), 2)
    assert found.short == memory.total - 15 * GB
    assert found.least == 2


def test_a_model_on_several_gpus() -> None:
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=4096, on_cpu=False)
    found = place(LLAMA_2_7B, memory, Pool((10 * GB,) * 4), 2)
    assert (found.verdict, found.gpus, sum(found.layers)) == ("several GPUs", 2, 32)
    assert found.left > 0
    assert where(LLAMA_2_7B, Pool((10 * GB,) * 4), most=1)[0] == "nowhere"


def test_405b_needs_both_machines_and_a_server() -> None:
    """812 GB of weights: 640 GB in one machine are too little, 1,280 in two enough."""
    assert where(LLAMA_3_405B, Pool((80 * GB,) * 8))[0] == "nowhere"
    two = Pool((80 * GB,) * 8, machines=2)
    assert two.count == 16
    layers = (8,) * 14 + (7,) * 2
    assert where(LLAMA_3_405B, two) == ("several machines", 16, layers)
    assert sum(layers) == 126
    # A replica of Ray has GPUs of one machine.
    assert where(LLAMA_3_405B, two, most=8)[0] == "nowhere"
    assert where(LLAMA_3_405B, Pool((141 * GB,) * 8))[:2] == ("several GPUs", 7)


def test_weights_in_the_memory_of_the_cpu() -> None:
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=4096, on_cpu=False)
    found = place(LLAMA_2_7B, memory, Pool((8 * GB,), cpu=32 * GB), 2)
    assert found.verdict == "offloaded"
    assert found.typed
    assert set(found.room) == {"0", "cpu"}
    on_gpu = memory.weights - found.offloaded
    assert 0 < on_gpu <= found.room["0"] == 8 * GB - memory.running
    assert where(LLAMA_2_7B, Pool((8 * GB,), cpu=4 * GB))[0] == "nowhere"


def test_a_cpu() -> None:
    assert where(LLAMA_2_7B, Pool(cpu=32 * GB)) == ("CPU", 0, ())
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=4096, on_cpu=True)
    found = place(LLAMA_2_7B, memory, Pool(cpu=10 * GB), 2)
    assert (found.verdict, found.short) == ("nowhere", memory.total - 10 * GB)


def test_a_layer_that_is_larger_than_a_gpu() -> None:
    memory = Memory.of(LLAMA_3_405B, itemsize=2, batch=1, window=64, on_cpu=False)
    found = place(LLAMA_3_405B, memory, Pool((6 * GB,) * 8, 64), 2)
    assert (found.verdict, found.least) == ("nowhere", 0)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [80 * GB, 16 * GB, 14 * GB, 12 * GB, 10 * GB, 4 * GB])
def test_a_plan_and_the_loader_agree(size: int, count: int) -> None:
    """Where a plan has nothing typed, loading does by itself what it says."""
    memory = Memory.of(LLAMA_2_7B, itemsize=2, batch=1, window=64, on_cpu=False)
    planned = place(LLAMA_2_7B, memory, Pool((size,) * count), 2)

    def load() -> Placement:
        return choose_placement(
            "llama", modules(LLAMA_2_7B, 2), dtype="float16", device="cuda",
            hardware=Hardware("cuda", count, ("GPU",) * count),
            free=lambda _: size, spread=True,
        )  # fmt: skip

    if planned.verdict == "one GPU":
        assert load().max_memory == {}
    elif planned.verdict == "several GPUs" and not planned.typed:
        room = int(0.9 * size)
        assert load().max_memory == dict.fromkeys(range(count), room)
        assert set(planned.room.values()) == {room}
    elif planned.verdict == "nowhere" and size < memory.weights:
        with pytest.raises(DeviceError):
            load()
    else:
        # The weights fit; what they leave is too little for the windows.
        assert planned.typed or planned.verdict == "nowhere"
        assert size - memory.running < memory.weights


# --------------------------------------------------------------------- windows and time


def test_windows_of_a_text_by_its_size() -> None:
    whole = estimate_windows([10_050], 1000, whole=True)
    assert whole == Count(10, 10_000, 10_000)
    # Its rest is a window as well, filled up with what was scored already.
    rest = estimate_windows([10_050, 40], 1000, whole=False)
    assert rest == Count(12, 11_040, 10_090)
    assert estimate_windows([40], 1000, whole=True) == Count(0, 0, 0)
    stride = estimate_windows([2000], 1000, stride=500, whole=False)
    assert stride == Count(3, 3000, 2000)


def test_wikitext2_is_about_as_long_as_known_tokenizers_say() -> None:
    """341,469 tokens of Llama-2, 287,644 of GPT-2."""
    assert len(WIKITEXT2_PAGES) == 62
    total = sum(WIKITEXT2_PAGES)
    assert total == 1_290_527
    assert total / bytes_a_token(32_000) == pytest.approx(341_469, rel=0.01)
    assert total / bytes_a_token(50_257) == pytest.approx(287_644, rel=0.01)


def test_flops_of_a_key() -> None:
    count = Count(83, 83 * 4096, 83 * 4095)
    assert key_flops(LLAMA_2_7B, count) == 83 * LLAMA_2_7B.flops(4096, 4095)
    assert key_flops(LLAMA_2_7B, Count(0, 0, 0)) == 0


def test_seconds_of_replicas() -> None:
    """Windows are not divided, and each replica reads its first one three times."""
    assert seconds(1000, 10, 100.0) == 1000 / 10 * (10 + 2) / 100
    assert seconds(1000, 10, 100.0, replicas=3) == 1000 / 10 * (4 + 2) / 100
    assert seconds(0, 0, 100.0) == 0


@pytest.mark.parametrize(
    ("shape", "itemsize", "rate", "expected"),
    [
        (GPT2, 4, 1e15, (12, 1024)),
        # 2 GiB have room for embedding, head and 4 layers in half precision.
        (LLAMA_2_7B, 2, 1e15, (4, 1024)),
        # A CPU: a layer takes half a second for 123 tokens.
        (LLAMA_2_7B, 4, 1e11, (1, 64)),
        # bfloat16 on a CPU that has no such products: 26 s for 64 tokens.
        (LLAMA_2_7B, 2, 1e9, (0, 0)),
        # The embedding alone is too large.
        (LLAMA_3_405B, 2, 1e15, (0, 0)),
    ],
)
def test_what_is_timed_takes_little(
    shape: Shape, itemsize: int, rate: float, expected: tuple[int, int]
) -> None:
    """Layers are left out, then windows shortened."""
    found = excerpt(shape, 1024, rate=rate, most=2**31, itemsize=itemsize)
    assert found == expected
