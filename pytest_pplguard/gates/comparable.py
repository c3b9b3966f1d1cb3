"""Whether two numbers were measured the same way, and if not, what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import UNSET

from ..values import Measurement, Recorded, Scalar, WindowScore

_SAME_REFERENCE = 1e-3
"""Relative. Kernels and versions move a perplexity by less, another model by more."""


def differences(
    measured: Measurement,
    recorded: Recorded,
    recorded_protocol: Mapping[str, Scalar] | None,
    recorded_windows: Sequence[WindowScore] = (),
) -> tuple[str, ...]:
    """Each property in which the two differ, as ``window 2048, baseline 4096``.

    ``recorded_protocol`` and ``recorded_windows`` come from the baseline's evidence,
    None and nothing where there is none. A digest that differs without a property that
    does is named last, as what it is.
    """
    found = [
        f"{name} {_show(measured.protocol.get(name))}, baseline {_show(value)}"
        for name, value in (recorded_protocol or {}).items()
        if measured.protocol.get(name) != value
    ]
    found += [
        f"{unit} {measured.units.get(unit)}, baseline {count}"
        for unit, count in recorded.units.items()
        if measured.units.get(unit) != count
    ]
    if recorded.windows is not None and recorded.windows != measured.windows:
        found.append(f"windows {measured.windows}, baseline {recorded.windows}")
    if _differ(recorded.corpus_digest, measured.corpus_digest):
        found.append(
            f"text {_short(measured.corpus_digest)}, "
            f"baseline {_short(recorded.corpus_digest)}"
        )
    if _differ(recorded.windows_digest, measured.windows_digest):
        found.append(
            f"token windows {_short(measured.windows_digest)}, "
            f"baseline {_short(recorded.windows_digest)}"
            + ("" if found else " (same text: another tokenizer or its settings)")
        )
    if recorded.source.kind == "published" and (
        measured.protocol.get("official text") is False
    ):
        found.append(
            "text is not the official test split, which the value was published for"
        )
    found += _other_reference(measured.evidence, recorded_windows)
    found += [
        f"metric {name} was not measured, baseline {value:.6g}"
        for name, value in recorded.metrics.items()
        if name not in measured.metrics
    ]
    return tuple(found)


def _other_reference(
    measured: Sequence[WindowScore], recorded: Sequence[WindowScore]
) -> list[str]:
    """Another model behind the reference's name, told by its perplexity.

    A path or a name is not the same everywhere, and a digest would not survive another
    dtype or device.
    """
    here, there = _reference_perplexity(measured), _reference_perplexity(recorded)
    if here is None or there is None or abs(here / there - 1) <= _SAME_REFERENCE:
        return []
    return [
        f"the reference is another model (perplexity {here:.6g}, baseline {there:.6g})"
    ]


def _reference_perplexity(scores: Sequence[WindowScore]) -> float | None:
    """The reference's token perplexity; None where there was no reference."""
    losses = [s.reference_nll for s in scores if s.reference_nll is not UNSET]
    if not losses:
        return None
    return math.exp(math.fsum(losses) / sum(score.scored for score in scores))


def environment_notes(
    measured: Mapping[str, Scalar], recorded: Mapping[str, Scalar]
) -> tuple[str | None, tuple[str, ...]]:
    """What differs in the environment: the dtype by itself, then everything else."""
    dtype = None
    if "dtype" in recorded and recorded["dtype"] != measured.get("dtype"):
        dtype = f"dtype {measured.get('dtype')}, baseline {recorded['dtype']}"
    others = tuple(
        f"{name} {_show(measured.get(name))}, baseline {_show(value)}"
        for name, value in recorded.items()
        if name != "dtype" and measured.get(name) != value
    )
    return dtype, others


def _differ(recorded: str | None, measured: str) -> bool:
    return recorded is not None and recorded != measured


def _short(digest: str | None) -> str:
    return (digest or "").removeprefix("sha256:")[:12]


def _show(value: Scalar) -> str:
    return "unknown" if value is None else str(value)
