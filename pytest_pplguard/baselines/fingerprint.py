"""Writes and reads the evidence of a fingerprint: every tensor's facts, one a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import BaselineError
from ..values import SCHEMA, Fingerprint, RecordedFingerprint, TensorFacts
from .evidence import fail, named_by_content, read_checked, refuse_other, to_json


class _Evidence(Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    checkpoint: str
    digest: str
    config: dict[str, Any]
    tokenizer: dict[str, str]
    linear: tuple[str, ...]
    tensors: dict[str, TensorFacts]


def encode_fingerprint(
    checkpoint: str, fingerprint: Fingerprint, *, date: str
) -> tuple[RecordedFingerprint, bytes]:
    """What a baseline file says of a fingerprint, and the content of its evidence.

    ``checkpoint`` is the full name, ``llama-2-7b/wanda-50``. Evidence is named by its
    content, as that of a measurement is.

    Raises:
        UsageError: ``checkpoint`` is no checkpoint name.
        BaselineError: a number is NaN or infinite.
    """
    for name, value in _floats(fingerprint):
        if not math.isfinite(value):
            raise BaselineError(
                f"{checkpoint}, fingerprint: {name} is {value}: a number that is not "
                "finite cannot be recorded; correct the checkpoint"
            )
    digest = fingerprint.digest
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "checkpoint": checkpoint,
        "digest": digest,
        "config": fingerprint.config,
        "tokenizer": fingerprint.tokenizer,
    }
    fields = [f'"{name}": {to_json(value)}' for name, value in head.items()]
    fields.append(_lines("linear", map(to_json, fingerprint.linear), "[]"))
    tensors = (
        f"{to_json(name)}: {to_json(msgspec.to_builtins(facts))}"
        for name, facts in fingerprint.tensors.items()
    )
    fields.append(_lines("tensors", tensors, "{}"))
    name, content = named_by_content(checkpoint, "fingerprint", fields)
    recorded = RecordedFingerprint(
        digest=digest,
        tensors=len(fingerprint.tensors),
        linear=len(fingerprint.linear),
        weights=fingerprint.counted,
        zeros=fingerprint.zeros,
        evidence=name,
        date=date,
    )
    return recorded, content


def read_fingerprint(
    folder: Path, recorded: RecordedFingerprint, *, where: str
) -> Fingerprint:
    """Read the fingerprint that was ``recorded`` in the baseline ``folder``.

    ``where`` names the recorded entry in messages.

    Raises:
        BaselineError: there is none, or it is not what was recorded.
    """
    path = folder / recorded.evidence
    evidence = read_checked(folder, recorded.evidence, _Evidence, where=where)
    fingerprint = Fingerprint(
        tensors=evidence.tensors,
        linear=evidence.linear,
        config=evidence.config,
        tokenizer=evidence.tokenizer,
    )
    for name in evidence.linear:
        if name not in evidence.tensors:
            fail(where, path, f"it counts zeros in {name}, which it does not hold")
    digest = fingerprint.digest
    if evidence.digest != digest:
        fail(where, path, f"its digest is {evidence.digest}, its tensors give {digest}")
    refuse_other(where, path, "digest", digest, recorded.digest)
    for name, there, here in (
        ("number of tensors", len(fingerprint.tensors), recorded.tensors),
        ("number of linear tensors", len(fingerprint.linear), recorded.linear),
        ("number of weights", fingerprint.counted, recorded.weights),
        ("number of zeros", fingerprint.zeros, recorded.zeros),
    ):
        refuse_other(where, path, name, there, here)
    return fingerprint


def _lines(name: str, lines: Iterator[str], brackets: str) -> str:
    body = ",\n".join(lines)
    inside = f"\n{body}\n" if body else ""
    return f'"{name}": {brackets[0]}{inside}{brackets[1]}'


def _floats(fingerprint: Fingerprint) -> Iterator[tuple[str, float]]:
    yield from _floats_in("config", fingerprint.config)
    for name, facts in fingerprint.tensors.items():
        for what in ("sum", "norm", "peak"):
            yield f"{what} of {name}", getattr(facts, what)


def _floats_in(place: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _floats_in(f"{place}.{name}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _floats_in(f"{place}.{index}", item)
