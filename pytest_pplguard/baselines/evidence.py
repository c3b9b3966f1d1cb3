"""Writes and reads evidence: the per-window losses that a recorded value rests on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Struct

from ..errors import BaselineError
from ..values import (
    SCHEMA,
    DocumentResult,
    Measurement,
    MetricName,
    Recorded,
    Scalar,
    WindowScore,
)
from .find import split_name
from .read import is_evidence_path

MAX_BYTES = 200_000_000

HASH_IN_NAME = re.compile(r".+-([0-9a-f]{12})\.json")
_WAY_OUT = "restore it from version control or re-record with `pplguard update`"


class Evidence(Struct, frozen=True, forbid_unknown_fields=True):
    """What an evidence file holds: the losses by window, and how they came about.

    Of a task of lm-eval also ``documents``, from which its metrics follow.
    """

    schema: int
    checkpoint: str
    key: str
    windows_digest: str
    corpus_digest: str
    protocol: dict[str, Scalar]
    units: dict[str, int]
    metrics: dict[MetricName, float]
    windows: tuple[WindowScore, ...]
    documents: tuple[DocumentResult, ...] = ()


class _Head(Struct):
    schema: int


T = TypeVar("T", bound=msgspec.Struct)


def encode_evidence(checkpoint: str, measurement: Measurement) -> tuple[str, bytes]:
    """The name, relative to the baseline folder, and content of an evidence file.

    ``checkpoint`` is the full name, ``llama-2-7b/wanda-50``. The name ends in the
    content's hash, so equal evidence has one name and other evidence another.

    Raises:
        UsageError: ``checkpoint`` is no checkpoint name.
        BaselineError: a number of the measurement is NaN or infinite.
    """
    split_name(checkpoint)
    refuse_non_finite(checkpoint, measurement)
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "checkpoint": checkpoint,
        "key": measurement.key,
        "windows_digest": measurement.windows_digest,
        "corpus_digest": measurement.corpus_digest,
        "protocol": measurement.protocol,
        "units": measurement.units,
        "metrics": measurement.metrics,
    }
    fields = [f'"{name}": {to_json(value)}' for name, value in head.items()]
    fields.append(_lines("windows", measurement.evidence))
    if measurement.documents:
        fields.append(_lines("documents", measurement.documents))
    slug = re.sub(r"[/:+]", "-", measurement.key)
    return named_by_content(checkpoint, slug, fields)


def _lines(name: str, values: Iterable[Struct]) -> str:
    """A field of JSON with a line for each value."""
    lines = ",\n".join(to_json(msgspec.to_builtins(value)) for value in values)
    return f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []'


def read_evidence(folder: Path, recorded: Recorded, *, where: str) -> Evidence:
    """Read the evidence of ``recorded`` from the baseline ``folder`` and check it.

    ``where`` names the recorded entry in messages.

    Raises:
        BaselineError: there is none, or it is not what was recorded.
    """
    if recorded.evidence is None:
        raise BaselineError(
            f"{where}: has no evidence file: record it with `pplguard update`"
        )
    path = folder / recorded.evidence
    evidence = read_checked(folder, recorded.evidence, Evidence, where=where)
    if len(evidence.windows) != recorded.windows:
        fail(
            where,
            path,
            f"it holds {len(evidence.windows)} windows, recorded are "
            f"{recorded.windows}",
        )
    for name in ("windows_digest", "corpus_digest"):
        there, here = getattr(evidence, name), getattr(recorded, name)
        refuse_other(where, path, name, there, here)
    return evidence


def refuse_non_finite(checkpoint: str, measurement: Measurement) -> None:
    """Refuse a measurement that holds NaN or infinity anywhere.

    Raises:
        BaselineError: it does; the message names the number.
    """
    for name, value in _numbers(measurement):
        if not math.isfinite(value):
            raise BaselineError(
                f"{checkpoint}, {measurement.key}: {name} is {value}: a number that is "
                "not finite cannot be recorded; measure again with "
                "`pplguard measure` and look at the window it names"
            )


def _numbers(measurement: Measurement) -> Iterable[tuple[str, float]]:
    yield from measurement.metrics.items()
    yield from _floats(measurement.protocol, "protocol")
    yield from _floats(measurement.environment, "environment")
    for index, score in enumerate(measurement.evidence):
        for name in ("nll_sum", "kl_sum", "reference_nll"):
            if (value := getattr(score, name)) is not UNSET:
                yield f"{name} of window {index}", value
    for result in measurement.documents:
        where = f"of document {result.document} of {result.task}"
        for name, found in result.values.items():
            yield from ((f"{name} {where}", value) for value in _all_floats(found))
    yield from ((f"stderr of {n}", value) for n, value in measurement.stderr.items())


def _all_floats(value: Any) -> Iterable[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _all_floats(item)


def _floats(values: Mapping[str, Scalar], name: str) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, float):
            yield f"{name}.{key}", value


# ----------------------------------------------------------- files named by content


def to_json(value: object) -> str:
    """Strict JSON on one line."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True)


def named_by_content(
    checkpoint: str, slug: str, fields: Iterable[str]
) -> tuple[str, bytes]:
    """A file of JSON ``fields``: its name in the baseline folder, and its content."""
    stem, entry = split_name(checkpoint)
    content = ("{\n" + ",\n".join(fields) + "\n}\n").encode()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{stem}/{entry}/{slug}-{digest}.json", content


def read_checked(folder: Path, name: str, kind: type[T], *, where: str) -> T:
    """Read the evidence ``name``, a file of ``kind`` that holds what its name says.

    Raises:
        BaselineError: it does not, or ``name`` leads out of ``folder``.
    """
    path = path_inside(folder, name, where=where)
    data = _read(path, where=where)
    match = HASH_IN_NAME.fullmatch(path.name)
    digest = hashlib.sha256(data).hexdigest()
    if match is None or not digest.startswith(match[1]):
        fail(
            where,
            path,
            f"its content (sha256 {digest[:12]}) is not what its name says: it was "
            "changed, cut short, or its line ends were converted (mark it `-text` in "
            ".gitattributes)",
        )
    return _decode(data, path, kind, where=where)


def refuse_other(
    where: str, path: Path, name: str, there: object, here: object
) -> None:
    """Refuse evidence whose ``name`` is not what was recorded."""
    if there != here:
        fail(where, path, f"its {name} is {there}, recorded is {here}")


def fail(where: str, path: Path, message: str) -> NoReturn:
    """Refuse the evidence at ``path``."""
    raise BaselineError(f"{where}: evidence {path}: {message}: {_WAY_OUT}")


def path_inside(folder: Path, name: str, *, where: str) -> Path:
    """The path of an evidence file, which lies in the baseline ``folder``.

    Raises:
        BaselineError: it does not, or a link on the way leads out.
    """
    path = folder / name
    if not is_evidence_path(name):
        fail(where, path, "the path leaves the baseline folder")
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links
        raise BaselineError(
            f"{where}: evidence {path}: cannot be resolved: {error}: {_WAY_OUT}"
        ) from error
    if not inside:
        fail(where, path, "a symbolic link leads out of the baseline folder")
    return path


def _read(path: Path, *, where: str) -> bytes:
    try:
        if not path.is_file():
            fail(where, path, "the file does not exist")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BaselineError(
            f"{where}: evidence {path}: cannot be read: {error.strerror or error}: "
            f"{_WAY_OUT}"
        ) from error
    if len(data) > MAX_BYTES:
        fail(where, path, f"larger than {MAX_BYTES // 1_000_000} MB")
    return data


def _decode(data: bytes, path: Path, kind: type[T], *, where: str) -> T:
    try:  # NaN, Infinity and numbers out of range are refused as bad JSON
        schema = msgspec.json.decode(data, type=_Head).schema
        if schema > SCHEMA:
            raise BaselineError(
                f"{where}: evidence {path}: was written by a newer pytest-pplguard "
                f"(schema {schema}, this version reads {SCHEMA}): upgrade"
            )
        evidence = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BaselineError(
            f"{where}: evidence {path}: not an evidence file: {error}: {_WAY_OUT}"
        ) from error
    if schema != SCHEMA:
        fail(where, path, f"schema {schema} never existed")
    return evidence
