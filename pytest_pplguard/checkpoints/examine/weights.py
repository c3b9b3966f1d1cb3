"""Checks the numbers: from the facts of each tensor, against its like in other layers.

The rules are made to be silent on any healthy model. What is compared is always one
role (say ``mlp.up_proj``) across the layers of one stack.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from statistics import median

from ...values import TensorFacts
from .places import by_role, in_order, layers_text, named
from .result import Findings

FLOAT16_MAX = 65504.0
_PEAK_FACTOR = 1e4
"""How much larger than in the other layers a largest weight may be."""
_DOMINANT = 0.99
"""A single weight with this share of its matrix' norm is no trained weight."""
_SMALLEST_MATRIX = 4096
_SAME_SHARE, _OTHER_SHARE = 0.005, 0.02
"""Shares of zeros that count as equal, and as another one."""
_NORM_FACTOR, _EDGE_FACTOR = 4.0, 16.0
"""How far a norm may be from its neighbours'; the first and last two layers of trained
models differ more."""
_SPREADS = 10
"""And it must be this many times further away than is usual in the model."""
_FEW = 3
"""Fewer layers tell nothing about what is usual."""

Facts = Mapping[str, TensorFacts]
_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|lm_head|embed_out|token_embd|"
    r"output)\.weight$"
)
_NORM = re.compile(r"norm|(^|\.)ln_?[0-9a-z]*$")


def check_weights(
    spec: str,
    facts: Facts,
    linear: Collection[str],
    found: Findings,
    *,
    dtype: str | None,
) -> None:
    """All rules on the facts of the tensors.

    Args:
        spec: names the checkpoint.
        facts: of every tensor.
        linear: names of the linear weights of the decoder layers.
        found: takes the findings.
        dtype: in which the model runs by its config.
    """
    _check_finite(spec, facts, found)
    _check_constant(spec, facts, linear, found)
    odd = _check_peaks(spec, facts, found, dtype)
    _check_dtypes(spec, facts, found)
    _check_shares(spec, facts, linear, found)
    _check_norms(spec, facts, set(linear) - odd, found)
    _check_repeats(spec, facts, linear, found)
    _check_reset(spec, facts, found)
    _check_vocabulary_zeros(spec, facts, found)


def _check_finite(spec: str, facts: Facts, found: Findings) -> None:
    if bad := {name: each.bad for name, each in facts.items() if each.bad}:
        found.error(
            "not-finite",
            named(bad),
            f"{spec}: NaN or infinity ({sum(bad.values())}) in {named(bad)}: every "
            "loss would be NaN; save the checkpoint again from its source",
        )


def _check_constant(
    spec: str, facts: Facts, linear: Collection[str], found: Findings
) -> None:
    whole = {name for name, each in facts.items() if _VOCABULARY.search(name)}
    zero = {n for n in {*linear, *whole} if facts[n].size and _is_zero(facts[n])}
    if lost := zero & whole:
        found.error(
            "all-zero",
            named(lost),
            f"{spec}: only zeros in {named(lost)}: every token would look the same; "
            "save the checkpoint again from its source",
        )
    if zero := zero - whole:
        found.warning(
            "all-zero",
            named(zero),
            f"{spec}: only zeros in {named(zero)}: lost in saving, or removed on "
            "purpose?",
        )
    if same := {n for n in {*linear, *whole} if _is_constant(facts[n])}:
        found.warning(
            "constant",
            named(same),
            f"{spec}: all elements of {named(same)} are equal: never initialised or "
            "loaded?",
        )


def _is_zero(facts: TensorFacts) -> bool:
    return facts.mask != "" and facts.zeros == facts.size


def _is_constant(facts: TensorFacts) -> bool:
    """Whether all elements are one number other than zero."""
    largest = facts.size * facts.peak
    return facts.size > 1 and 0 < largest <= abs(facts.sum) * (1 + 1e-6)


# ------------------------------------------------------------------------------- sizes


def _check_peaks(
    spec: str, facts: Facts, found: Findings, dtype: str | None
) -> set[str]:
    """Weights that are far too large; returns the tensors that hold them."""
    if dtype == "float16" and (
        high := {n for n, each in facts.items() if each.peak > FLOAT16_MAX}
    ):
        found.error(
            "float16-range",
            named(high),
            f"{spec}: config.json says float16, whose largest number is 65504, and "
            f"{named(high)} holds up to {max(facts[n].peak for n in high):.3g}: it "
            "would be infinite; set dtype to bfloat16 or float32",
        )
    odd = dict(_odd_peaks(facts))
    if odd:
        worst = max(odd, key=lambda name: facts[name].peak)
        found.warning(
            "peak",
            named(odd),
            f"{spec}: single weights are far too large in {named(odd)} (up to "
            f"{facts[worst].peak:.3g}{odd[worst]}): a flipped bit, or a broken save?",
        )
    return set(odd)


def _odd_peaks(facts: Facts) -> Iterator[tuple[str, str]]:
    """Tensors with an implausible largest weight, and how it compares."""
    for name, each in facts.items():
        matrix = len(each.shape) >= 2 and each.size >= _SMALLEST_MATRIX
        left = each.size - each.zeros
        if matrix and left > _SMALLEST_MATRIX // 16 and _is_dominated(each):
            yield name, "; all others together weigh less"
    for layers in by_role(facts).values():
        peaks = {n: facts[n].peak for names in layers.values() for n in names}
        usual = median(peaks.values())
        if len(layers) >= _FEW and usual > 0:
            for name, peak in peaks.items():
                if peak > _PEAK_FACTOR * usual:
                    yield name, f"; {usual:.3g} is usual in the other layers"


def _is_dominated(facts: TensorFacts) -> bool:
    return facts.peak > _DOMINANT * facts.norm > 0


def _check_norms(
    spec: str, facts: Facts, linear: Collection[str], found: Findings
) -> None:
    odd: dict[str, float] = {}
    for layers in by_role(linear).values():
        sizes = {
            number: _rms(facts[n] for n in names) for number, names in layers.items()
        }
        logs = {number: math.log2(size) for number, size in sizes.items() if size > 0}
        for number, away in _outliers(logs):
            odd.update(dict.fromkeys(layers[number], 2.0**away))
    for names, what in (
        ([n for n, ratio in odd.items() if ratio > 1], "larger"),
        ([n for n, ratio in odd.items() if ratio < 1], "smaller"),
    ):
        if names:
            ratios = [max(odd[n], 1 / odd[n]) for n in names]
            found.warning(
                "scale",
                named(names),
                f"{spec}: the weights of {named(names)} are {max(ratios):.3g} times "
                f"{what} than in the layers around: scaled, or of another model?",
            )


def _rms(tensors: Iterable[TensorFacts]) -> float:
    """Root mean square of the nonzero weights."""
    squares = count = 0.0
    for each in tensors:
        squares += each.norm**2
        count += each.size - each.zeros - each.bad
    return math.sqrt(squares / count) if count > 0 else 0.0


def _outliers(logs: Mapping[int, float]) -> Iterator[tuple[int, float]]:
    """Layers far from the median of the four nearest, and how far, in powers of two."""
    numbers = sorted(logs)
    if len(numbers) < _FEW:
        return
    away = {}
    for place, number in enumerate(numbers):
        others = sorted(
            (other for other in range(len(numbers)) if other != place),
            key=lambda other: abs(other - place),
        )
        around = median(logs[numbers[other]] for other in others[:4])
        away[number] = logs[number] - around
    usual = median(abs(value) for value in away.values())
    edges = {*numbers[:2], *numbers[-2:]}
    for number, value in away.items():
        least = math.log2(_EDGE_FACTOR if number in edges else _NORM_FACTOR)
        if abs(value) > max(least, _SPREADS * usual):
            yield number, value


# -------------------------------------------------------------------------- sparsity


def _check_shares(
    spec: str, facts: Facts, linear: Collection[str], found: Findings
) -> None:
    odd: dict[str, tuple[float, float]] = {}
    usual: dict[str, float] = {}
    everything = sum(facts[name].size for name in linear)
    for (_, role), layers in by_role(linear).items():
        shares = {number: _share(facts, names) for number, names in layers.items()}
        middle = median(shares.values())
        near = sum(abs(share - middle) <= _SAME_SHARE for share in shares.values())
        names = [name for each in layers.values() for name in each]
        if sum(facts[name].size for name in names) > 0.02 * everything:
            usual[role] = middle
        if len(layers) < _FEW or near < 0.6 * len(layers):
            continue
        for number, share in shares.items():
            if abs(share - middle) > _OTHER_SHARE and share < 1:
                odd.update(dict.fromkeys(layers[number], (share, middle)))
    if odd:
        low, high = (f(share for share, _ in odd.values()) for f in (min, max))
        elsewhere = median(middle for _, middle in odd.values())
        found.warning(
            "sparsity",
            named(odd),
            f"{spec}: {_percents(low, high)} zeros in {named(odd)}, {elsewhere:.2%} in "
            "the other layers: a mask lost, or left so on purpose?",
        )
    _note_dense_roles(spec, usual, found)


def _note_dense_roles(spec: str, usual: Mapping[str, float], found: Findings) -> None:
    dense = [role for role, share in usual.items() if share < 0.01]
    sparse = [share for share in usual.values() if share > 0.2]
    if dense and len(sparse) >= len(dense):
        found.note(
            "dense-projections",
            ", ".join(in_order(dense)),
            f"{spec}: {', '.join(in_order(dense))} have no zeros in any layer, the "
            f"other projections {median(sparse):.1%}: left out of pruning, or filled "
            "by a merge?",
        )


def _share(facts: Facts, names: Iterable[str]) -> float:
    names = list(names)
    size = sum(facts[name].size for name in names)
    return sum(facts[name].zeros for name in names) / size if size else 0.0


def _percents(low: float, high: float) -> str:
    return f"{low:.2%}" if f"{low:.2%}" == f"{high:.2%}" else f"{low:.2%} to {high:.2%}"


def _check_vocabulary_zeros(spec: str, facts: Facts, found: Findings) -> None:
    sparse = {
        name: each.share
        for name, each in facts.items()
        if _VOCABULARY.search(name) and 0.2 < each.share < 1
    }
    for name, share in sparse.items():
        found.note(
            "sparse-vocabulary",
            name,
            f"{spec}: {share:.1%} of {name} are zeros: pruning usually leaves "
            "embedding and head alone",
        )


# ------------------------------------------------------------------- layers compared


def _check_dtypes(spec: str, facts: Facts, found: Findings) -> None:
    odd: dict[str, list[str]] = {}
    for layers in by_role(facts).values():
        dtypes = {n: facts[n].dtype for names in layers.values() for n in names}
        (usual, count), *_ = Counter(dtypes.values()).most_common()
        if len(layers) >= _FEW and count > len(dtypes) / 2:
            for name, dtype in dtypes.items():
                if dtype != usual:
                    odd.setdefault(f"{dtype}|{usual}", []).append(name)
    for pair, names in odd.items():
        dtype, usual = pair.split("|")
        found.warning(
            "mixed-dtype",
            named(names),
            f"{spec}: {named(names)} is stored as {dtype}, the other layers as "
            f"{usual}: was a layer taken from another save?",
        )


def _check_repeats(
    spec: str, facts: Facts, linear: Collection[str], found: Findings
) -> None:
    """Equal matrices in two layers, or in two roles of one layer."""
    roles = by_role(linear)
    holders: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for (stack, role), layers in roles.items():
        for number, names in layers.items():
            for name in names:
                if not _is_zero(facts[name]) and not _is_constant(facts[name]):
                    key = (stack, facts[name].values)
                    holders.setdefault(key, []).append((number, role))
    pairs: dict[tuple[int, ...], set[str]] = {}
    for places in holders.values():
        if len(places) > 1:
            numbers = tuple(sorted({number for number, _ in places}))
            pairs.setdefault(numbers, set()).update(role for _, role in places)
    for numbers, same in sorted(pairs.items()):
        every = len(same) == len(roles)
        what = "all projections" if every else ", ".join(in_order(same))
        where = layers_text(numbers)
        one = "hold the same weights" if len(numbers) > 1 else "repeats weights"
        found.warning(
            "repeated",
            f"{where}: {what}",
            f"{spec}: {where} {one} ({what}): copied over another by mistake, or "
            "stacked on purpose?",
        )


def _check_reset(spec: str, facts: Facts, found: Findings) -> None:
    """Norms that are all ones or zeros in a few layers, and trained in the others."""
    reset: list[str] = []
    for (_, role), layers in by_role(facts).items():
        if not _NORM.search(role):
            continue
        names = [name for each in layers.values() for name in each]
        fresh = [name for name in names if _is_fresh(facts[name])]
        if len(layers) >= _FEW and 0 < len(fresh) <= len(names) / 3:
            reset += fresh
    if reset:
        found.warning(
            "norm-reset",
            named(reset),
            f"{spec}: {named(reset)} is all ones or all zeros, in the other layers it "
            "is not: not loaded when the checkpoint was saved?",
        )


def _is_fresh(facts: TensorFacts) -> bool:
    ones = facts.peak == 1.0 and facts.sum == facts.size
    return len(facts.shape) == 1 and (_is_zero(facts) or ones)
