"""Whether two numbers were measured the same way, and if not, what differs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from msgspec import UNSET

from ..values import Measurement, Recorded, Scalar, WindowScore

_LEFT_OUT: dict[str, Scalar] = {"stride": "none", "scored": "all", "mean": "of tokens"}
"""Properties that a measurement names only where they are not these."""

_BOS_PREFIX, _BOS_TWICE = (0, 4, 3), (0, 4, 9, 2)
"""Versions of lm-eval: from the first on, BOS stands before a page, and no longer EOS;
from the second on, a tokenizer that adds BOS itself adds it too, and it is scored."""

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
    None and nothing where there is none. Where text and properties are the same and the
    token windows are not, the tokenizer is named. A digest that differs without any of
    these is named last, as what it is.
    """
    found = _properties(measured, recorded, recorded_protocol or {})
    other_ids = _differ(recorded.windows_digest, measured.windows_digest)
    same_text = recorded.corpus_digest == measured.corpus_digest
    if other_ids and same_text and recorded_protocol is not None and not found:
        found.append(_tokenizer(measured, recorded))
        other_ids = False
    found += [
        f"{unit} {measured.units.get(unit)}, baseline {count}"
        for unit, count in recorded.units.items()
        if measured.units.get(unit) != count
    ]
    if recorded.windows is not None and recorded.windows != measured.windows:
        what = "answers" if measured.documents else "windows"
        found.append(f"{what} {measured.windows}, baseline {recorded.windows}")
    if _differ(recorded.corpus_digest, measured.corpus_digest):
        found.append(
            f"text {_short(measured.corpus_digest)}, "
            f"baseline {_short(recorded.corpus_digest)}"
        )
    if other_ids:
        found.append(_windows(measured, recorded))
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


def _properties(
    measured: Measurement, recorded: Recorded, protocol: Mapping[str, Scalar]
) -> list[str]:
    """The properties of the protocol that differ, those of the baseline first."""
    found = []
    known = dict(protocol)
    if known:
        unnamed = {k: v for k, v in _LEFT_OUT.items() if k in measured.protocol}
        known = unnamed | known
    for name, value in known.items():
        here = measured.protocol.get(name, _LEFT_OUT.get(name))
        if here == value:
            continue
        regime = _regime(measured, recorded, value) if name == "first token" else None
        found.append(regime or f"{name} {_show(here)}, baseline {_show(value)}")
    return found


def _regime(measured: Measurement, recorded: Recorded, first: Scalar) -> str | None:
    """What another version of lm-eval put before a page; None if it was not that."""
    here, there = (
        environment.get("lm_eval")
        for environment in (measured.environment, recorded.environment)
    )
    new, old = _version(here), _version(there)
    if new is None or old is None or _era(new) == _era(old):
        return None
    twice = str(measured.protocol.get("first token")).endswith("and BOS")
    if _era(new) == 0:
        what = "EOS is the prefix token"
    elif twice:
        what = "BOS is scored twice"
    elif str(first).endswith("and BOS"):
        what = "BOS is not scored twice"
    else:
        what = "BOS is the prefix token"
    before = ", which put EOS before a page" if _era(old) == 0 else ""
    return f"{what}: lm-eval {here}, baseline recorded with {there}{before}"


def _era(version: tuple[int, ...]) -> int:
    return (version >= _BOS_PREFIX) + (version >= _BOS_TWICE)


def _version(text: Scalar) -> tuple[int, ...] | None:
    match = re.match(r"\d+(\.\d+)*", str(text))
    return tuple(map(int, match[0].split("."))) if match else None


def _tokenizer(measured: Measurement, recorded: Recorded) -> str:
    """Same text, cut the same way, into other ids."""
    found = f"tokenizer: the same text has other ids ({_windows(measured, recorded)})"
    here = measured.environment.get("lm_eval")
    there = recorded.environment.get("lm_eval")
    if here == there or there is None:
        return found
    # lm-eval detokenises: its version stands between the text and the ids.
    return f"{found}; or lm-eval {here}, baseline {there}"


def _windows(measured: Measurement, recorded: Recorded) -> str:
    return (
        f"token windows {_short(measured.windows_digest)}, "
        f"baseline {_short(recorded.windows_digest)}"
    )


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
    """What differs in the environment: what moves a number most, then all else.

    That is the dtype; or that one of two numbers is a server's, of whose dtype,
    versions and kernels nothing is known.
    """
    here, there = _server(measured), _server(recorded)
    if recorded and (here is None) != (there is None):
        return (
            f"measured {here or _computed(measured)}, "
            f"baseline {there or _computed(recorded)}",
            _others({k: v for k, v in recorded.items() if k in _CUTS}, measured),
        )
    dtype = None
    if "dtype" in recorded and recorded["dtype"] != measured.get("dtype"):
        dtype = f"dtype {measured.get('dtype')}, baseline {recorded['dtype']}"
    # Replicas compute what one process would: only a server is another executor.
    others = {k: v for k, v in recorded.items() if k not in ("dtype", "executor")}
    return dtype, _others(others, measured)


_CUTS = ("pytest_pplguard", "tokenizers", "lm_eval")
"""What cuts windows and counts units, here, whoever computes the losses."""


def _others(
    recorded: Mapping[str, Scalar], measured: Mapping[str, Scalar]
) -> tuple[str, ...]:
    return tuple(
        f"{name} {_show(measured.get(name))}, baseline {_show(value)}"
        for name, value in recorded.items()
        if measured.get(name) != value
    )


def _server(environment: Mapping[str, Scalar]) -> str | None:
    """``by a server (vllm 0.32.0, its model llama)``; None where none measured."""
    if environment.get("executor") != "server":
        return None
    name, model = environment.get("device_name"), environment.get("server_model")
    return f"by a server ({_show(name)}, its model {_show(model)})"


def _computed(environment: Mapping[str, Scalar]) -> str:
    """``on cpu (float32, torch 2.13.0)``, as far as it is known."""
    details = [_show(environment["dtype"])] if "dtype" in environment else []
    if "torch" in environment:
        details.append(f"torch {_show(environment['torch'])}")
    return f"on {_show(environment.get('device'))} ({', '.join(details)})"


def _differ(recorded: str | None, measured: str) -> bool:
    return recorded is not None and recorded != measured


def _short(digest: str | None) -> str:
    return (digest or "").removeprefix("sha256:")[:12]


def _show(value: Scalar) -> str:
    return "unknown" if value is None else str(value)
