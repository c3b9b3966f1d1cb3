"""Reads a baseline file, so that every message names line, checkpoint and key."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from ..errors import BaselineError, KeySyntaxError
from ..values import (
    SCHEMA,
    USUAL_REFERENCE,
    BaselineFile,
    CheckpointEntry,
    Gates,
    Key,
    MetricName,
    Recorded,
    RecordedFingerprint,
    RelativeGate,
    Scalar,
    Source,
    SparsityGate,
    Tolerance,
    is_entry_name,
    near_matches,
)
from .tree import BYTE_ORDER_MARK, Field, Node, parse_tree, plain

MAX_BYTES = 5_000_000
FINGERPRINT = "fingerprint"
"""What stands among the keys of ``recorded`` and is none."""

_FILE_FIELDS = ("schema", "model", "checkpoints")
_ENTRY_FIELDS = ("path", "allow_keys", "reference", "gates", "recorded")
_SPECIAL_GATES = ("relative", "sparsity", "weights", "against")
_RECORDED_FIELDS = tuple(
    name for name in Recorded.__struct_fields__ if name != "metrics"
)
_NEEDED_IF_MEASURED = (
    "windows",
    "units",
    "windows_digest",
    "corpus_digest",
    "evidence",
)
_DIGESTS = ("windows_digest", "corpus_digest", "weights_digest")
_METRIC = re.compile(r"[a-z][a-z0-9_]*")
_KNOWN_METRICS = (
    "token_perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "kl_divergence",
    "top1_agreement",
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PATTERN = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")
_FINGERPRINT_EXAMPLE = (
    "a mapping of digest, tensors, linear, weights, zeros, evidence, date"
)
_GATE_EXAMPLE = "{token_perplexity: {rel: 0.005}}"
_WORDS: dict[object, str] = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "true or false",
}

T = TypeVar("T", bound=msgspec.Struct)


def read_baseline(path: Path) -> BaselineFile:
    """Read and check the baseline file at ``path``.

    Raises:
        BaselineError: it cannot be read, or something in it is wrong.
    """
    return parse_baseline(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of ``path`` with its own line ends, decoded as UTF-8.

    Raises:
        BaselineError: it cannot be read, is too large or is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BaselineError(
            f"{path}: cannot be read: {error.strerror or error}"
        ) from error
    if len(data) > MAX_BYTES:
        raise BaselineError(
            f"{path}: larger than {MAX_BYTES // 1_000_000} MB: this is no baseline "
            "file, or it should be split"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BaselineError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}): save the "
            "file as UTF-8"
        ) from error


def parse_baseline(text: str, path: str) -> BaselineFile:
    """Read the ``text`` of a baseline file; ``path`` is named in messages.

    Raises:
        BaselineError: something in it is wrong; the message is one line.
    """
    body = text.removeprefix(BYTE_ORDER_MARK)
    return baseline_of(parse_tree(body, file=path), path)


def baseline_of(
    tree: Node, path: str, *, problems: list[str] | None = None
) -> BaselineFile:
    """Check the ``tree`` of a baseline file; ``path`` is named in messages.

    Where ``problems`` is given, those of single gates, records and checkpoints are
    added to it, and these are left out.

    Raises:
        BaselineError: something in it is wrong; the message is one line.
    """
    stem = Path(path).stem
    if not is_entry_name(stem):
        raise BaselineError(
            f"{path}: the file name's stem {stem!r} becomes part of checkpoint names: "
            "rename the file, using letters, digits and ._+- only"
        )
    return _Parser(path, problems).file(tree)


def check_baseline(text: str, path: str) -> tuple[BaselineFile | None, list[str]]:
    """All that is wrong with the ``text`` of a baseline file, a line each.

    With what is left of the file without it: gates, records and checkpoints that have
    a fault are left out. None where nothing can be read. Of YAML that is broken only
    the first fault is known.
    """
    problems: list[str] = []
    try:
        tree = parse_tree(text.removeprefix(BYTE_ORDER_MARK), file=path)
        return baseline_of(tree, path, problems=problems), problems
    except BaselineError as error:
        return None, [*problems, str(error)]


class _Parser:
    """Turns the tree of one file into values; ``where`` names the place in messages.

    Where ``problems`` is given, faults are gathered there, and the part that has one is
    left out.
    """

    def __init__(self, path: str, problems: list[str] | None = None) -> None:
        self.path = path
        self.problems = problems

    @contextlib.contextmanager
    def _part(self) -> Iterator[None]:
        """What may be left out without the rest losing its meaning."""
        try:
            yield
        except BaselineError as error:
            if self.problems is None:
                raise
            self.problems.append(str(error))

    # ------------------------------------------------------------------ file and entry

    def file(self, root: Node) -> BaselineFile:
        fields = typing.cast(dict[str, Field], root.value)
        self._schema(fields)
        self._known(fields, _FILE_FIELDS, "")
        model = self._required(fields, "model", root.line, "", "the base model's name")
        if "checkpoints" not in fields:
            self._fail(root.line, "", "'checkpoints' is missing: add 'checkpoints: {}'")
        checkpoints = self._mapping(
            fields["checkpoints"], "", "a mapping from names to checkpoints"
        )
        for name in checkpoints:
            with self._part():
                self._entry_name(checkpoints[name])
        entries: dict[str, CheckpointEntry] = {}
        for name, field in checkpoints.items():
            with self._part():
                entries[name] = self._entry(field, tuple(checkpoints))
        return BaselineFile(
            path=self.path, model=self._text(model, ""), checkpoints=entries
        )

    def _entry_name(self, field: Field) -> None:
        if not is_entry_name(field.name):
            self._fail(
                field.line,
                "",
                f"{field.name!r} cannot name a checkpoint: use letters, digits and "
                "._+- only, starting with a letter or digit",
            )

    def _schema(self, fields: Mapping[str, Field]) -> None:
        if "schema" not in fields:
            near = near_matches("schema", fields)
            self._fail(1, "", f"'schema' is missing{near}: add 'schema: {SCHEMA}'")
        field = fields["schema"]
        schema = self._typed(field, "", int)
        if schema > SCHEMA:
            self._fail(
                field.line,
                "",
                f"was written by a newer pytest-pplguard (schema {schema}, this "
                f"version reads {SCHEMA}): upgrade",
            )
        if schema != SCHEMA:
            self._fail(field.line, "", f"schema {schema} never existed: write {SCHEMA}")

    def _entry(self, field: Field, siblings: tuple[str, ...]) -> CheckpointEntry:
        name = field.name
        where = f"checkpoint {name}"
        fields = self._mapping(field, where, f"a mapping of {', '.join(_ENTRY_FIELDS)}")
        lines = {"": field.line}
        found: dict[str, Any] = {}
        with self._part():
            self._known(fields, _ENTRY_FIELDS, where)
        with self._part():
            found["gates"] = self._gates(fields.get("gates"), name, siblings, lines)
        with self._part():
            found["recorded"], found["fingerprint"] = self._all_recorded(
                fields.get("recorded"), name, lines
            )
        with self._part():
            path = fields.get("path")
            found["path"] = self._text(path, where) if path else None
        with self._part():
            found["allow_keys"] = self._allow_keys(fields.get("allow_keys"), where)
        with self._part():
            reference = fields.get("reference")
            found["reference"] = self._reference(reference, name, siblings)
        return CheckpointEntry(name=name, lines=lines, **found)

    def _reference(
        self, field: Field | None, entry: str, siblings: tuple[str, ...]
    ) -> str | None:
        if field is not None:
            where = f"checkpoint {entry}"
            return self._sibling(
                field, self._text(field, where), where, entry, siblings
            )
        others = [sibling for sibling in siblings if sibling != entry]
        return USUAL_REFERENCE if USUAL_REFERENCE in others else None

    def _sibling(
        self, field: Field, name: str, where: str, entry: str, siblings: tuple[str, ...]
    ) -> str:
        """``name``, which ``field`` holds, if it is another entry of the file."""
        others = [sibling for sibling in siblings if sibling != entry]
        if name not in others:
            near = near_matches(name, others)
            known = ", ".join(others) or "there is none"
            self._fail(
                field.line,
                where,
                f"{field.name}: {name!r} is not another checkpoint of this file{near}: "
                f"expected one of: {known}",
            )
        return name

    def _allow_keys(self, field: Field | None, where: str) -> tuple[str, ...]:
        if field is None:
            return ()
        items = field.node.value
        for item in items if isinstance(items, tuple) else (field.node,):
            if not isinstance(item.value, str) or item is field.node:
                self._fail(
                    item.line,
                    where,
                    "allow_keys must be a list of texts like [lm_head.*], not "
                    f"{_shown(item)}",
                )
        return tuple(typing.cast(list[str], plain(field.node)))

    # -------------------------------------------------------------------------- gates

    def _gates(
        self,
        field: Field | None,
        entry: str,
        siblings: tuple[str, ...],
        lines: dict[str, int],
    ) -> Gates:
        if field is None:
            return Gates()
        where = f"checkpoint {entry}, gates"
        fields = self._mapping(field, where, f"a mapping like KEY: {_GATE_EXAMPLE}")
        lines["gates"] = field.line
        lines |= {f"gates.{name}": gate.line for name, gate in fields.items()}
        metrics: dict[str, dict[MetricName, Tolerance]] = {}
        for name, gate in fields.items():
            if name not in _SPECIAL_GATES:
                with self._part():
                    self._check_gate_key(gate, where)
                    metrics[name] = self._metric_gates(gate, entry, lines)
        special = {name: fields[name] for name in _SPECIAL_GATES if name in fields}
        gates: dict[str, Any] = {}
        for name, gate in special.items():
            with self._part():
                gates[name] = self._special_gate(gate, entry, siblings, where)
        return Gates(metrics=metrics, **gates)

    def _special_gate(
        self, field: Field, entry: str, siblings: tuple[str, ...], where: str
    ) -> object:
        if field.name == "relative":
            return self._relative(field, entry, siblings)
        if field.name == "sparsity":
            return self._sparsity(field, entry)
        if field.name == "weights":
            return self._typed(field, where, Literal["same", "mask", "any"])
        name = self._text(field, where)
        return self._sibling(field, name, where, entry, siblings)

    def _check_gate_key(self, field: Field, where: str) -> None:
        if "/" not in field.name:
            near = near_matches(field.name, _SPECIAL_GATES)
            self._fail(
                field.line,
                where,
                f"unknown gate {field.name!r}{near}: expected a measurement key like "
                f"wanda/wikitext2:4096, or one of {', '.join(_SPECIAL_GATES)}",
            )
        self._key(field.name, field.line, where)

    def _metric_gates(
        self, field: Field, entry: str, lines: dict[str, int]
    ) -> dict[MetricName, Tolerance]:
        where = f"checkpoint {entry}, gates, {field.name}"
        example = f"{field.name}: {_GATE_EXAMPLE}"
        fields = self._mapping(field, where, f"metrics, for example {example}")
        if bare := [name for name in fields if name in Tolerance.__struct_fields__]:
            self._fail(
                fields[bare[0]].line,
                where,
                f"{bare[0]!r} stands where a metric is expected: write for example "
                f"{example}",
            )
        if not fields:
            self._fail(
                field.line,
                where,
                f"gates no metric: write for example {example}, or remove the line",
            )
        gates = {}
        for metric, gate in fields.items():
            with self._part():
                self._metric_name(gate, where)
                lines[f"gates.{field.name}.{metric}"] = gate.line
                gates[metric] = self._tolerance(gate, f"{where}, {metric}")
        return gates

    def _tolerance(self, field: Field, where: str) -> Tolerance:
        example = "a mapping like {rel: 0.005}"
        tolerance, fields = self._struct(field, where, Tolerance, example)
        for name in ("rel", "abs", "max", "min", "drift", "sigma"):
            above = name in ("max", "min", "sigma")
            self._number(fields.get(name), where, low=0.0, open_low=above)
        if tolerance.sigma is not None and (
            other := next((name for name in ("rel", "abs") if name in fields), None)
        ):
            self._fail(
                fields["sigma"].line,
                where,
                f"mixed units in one gate: sigma counts standard errors, {other} does "
                "not; keep one of them (max and min may stand with either)",
            )
        if (tolerance.min or 0.0) > (tolerance.max or math.inf):
            self._fail(
                fields["min"].line,
                where,
                f"nothing is at least {tolerance.min!r} (min) and at most "
                f"{tolerance.max!r} (max)",
            )
        return tolerance

    def _relative(
        self, field: Field, entry: str, siblings: tuple[str, ...]
    ) -> RelativeGate:
        where = f"checkpoint {entry}, gates, relative"
        example = (
            "a mapping like {to: dense, key: wanda/wikitext2:4096, max_ratio: 1.3}"
        )
        gate, fields = self._struct(field, where, RelativeGate, example)
        self._key(gate.key, fields["key"].line, where)
        self._number(fields["max_ratio"], where, low=0.0, open_low=True)
        if gate.metric is not None and not _METRIC.fullmatch(gate.metric):
            self._not_a_metric(gate.metric, fields["metric"].line, where)
        if Key.parse(gate.key).method == "kl":
            self._fail(
                fields["key"].line,
                where,
                f"key: {gate.key} is relative to another checkpoint by itself: gate "
                "its metrics with max or min instead",
            )
        self._sibling(fields["to"], gate.to, where, entry, siblings)
        return gate

    def _sparsity(self, field: Field, entry: str) -> SparsityGate:
        where = f"checkpoint {entry}, gates, sparsity"
        example = "a mapping like {fraction: 0.5, abs: 0.001}"
        gate, fields = self._struct(field, where, SparsityGate, example)
        if (gate.fraction, gate.pattern, gate.scope) == (None, None, "total"):
            self._fail(
                field.line,
                where,
                "bounds nothing: give fraction, pattern or both, for example "
                '{fraction: 0.5, pattern: "2:4"}, or {scope: tensor} to hold each '
                "tensor to its recorded share",
            )
        self._number(fields.get("fraction"), where, low=0.0, high=1.0)
        self._number(fields.get("abs"), where, low=0.0)
        if gate.pattern is not None:
            match = _PATTERN.fullmatch(gate.pattern)
            if not match or int(match[1]) >= int(match[2]):
                self._fail(
                    fields["pattern"].line,
                    where,
                    f"pattern: {gate.pattern!r} is not N:M with 0 < N < M, for "
                    'example "2:4"',
                )
        return gate

    # ----------------------------------------------------------------------- recorded

    def _all_recorded(
        self, field: Field | None, entry: str, lines: dict[str, int]
    ) -> tuple[dict[str, Recorded], RecordedFingerprint | None]:
        recorded: dict[str, Recorded] = {}
        fingerprint = None
        if field is None:
            return recorded, fingerprint
        where = f"checkpoint {entry}, recorded"
        for key, record in self._mapping(
            field, where, "a mapping from measurement keys to records"
        ).items():
            lines[f"recorded.{key}"] = record.line
            with self._part():
                if key == FINGERPRINT:
                    fingerprint = self._fingerprint(record, where)
                elif "/" not in key and (near := near_matches(key, [FINGERPRINT])):
                    self._fail(record.line, where, f"unknown field {key!r}{near}")
                else:
                    self._key(key, record.line, where)
                    recorded[key] = self._recorded(record, f"{where}, {key}")
        return recorded, fingerprint

    def _fingerprint(self, field: Field, where: str) -> RecordedFingerprint:
        where = f"{where}, {FINGERPRINT}"
        result, fields = self._struct(
            field, where, RecordedFingerprint, _FINGERPRINT_EXAMPLE
        )
        self._number(fields["tensors"], where, low=1.0)
        self._number(fields["linear"], where, low=0.0, high=result.tensors)
        self._number(fields["weights"], where, low=0.0)
        self._number(fields["zeros"], where, low=0.0, high=result.weights)
        self._digest(fields["digest"], where)
        self._evidence_path(fields["evidence"], where)
        self._date(fields["date"], where)
        return result

    def _recorded(self, field: Field, where: str) -> Recorded:
        fields = self._mapping(field, where, "a mapping of metrics, source, windows")
        metrics = [name for name in fields if name not in _RECORDED_FIELDS]
        for name in metrics:
            self._refuse_misspelt(fields[name], where)
            self._metric_name(fields[name], where)
        if not metrics:
            self._fail(
                field.line,
                where,
                "no metric: add for example 'token_perplexity: 6.31', or remove "
                "the entry",
            )
        if "source" not in fields:
            self._fail(
                field.line,
                where,
                "'source' is missing: add {kind: published, reference: ..., digits: 2}"
                " for a value from a paper, or record it with `pplguard update`",
            )
        source = self._source(fields["source"], where)
        if source.kind == "measured":
            self._refuse_incomplete(field, fields, where)
        recorded = self._recorded_rest(fields, source, metrics, where)
        for name in _DIGESTS:
            self._digest(fields.get(name), where)
        self._evidence_path(fields.get("evidence"), where)
        return recorded

    def _recorded_rest(
        self, fields: Mapping[str, Field], source: Source, metrics: list[str], at: str
    ) -> Recorded:
        texts: dict[str, str | None] = {
            name: self._typed(fields[name], at, str)
            for name in (*_DIGESTS, "evidence")
            if name in fields
        }
        mappings = {
            name: self._scalars(fields[name], at)
            for name in ("first", "published", "environment")
            if name in fields
        }
        for name in ("first", "published"):
            if name in mappings:
                self._check_history(fields[name], f"{at}, {name}")
        return Recorded(
            metrics={name: self._metric_value(fields[name], at) for name in metrics},
            source=source,
            windows=self._count(fields["windows"], at) if "windows" in fields else None,
            units=self._units(fields["units"], at) if "units" in fields else {},
            windows_digest=texts.get("windows_digest"),
            corpus_digest=texts.get("corpus_digest"),
            weights_digest=texts.get("weights_digest"),
            evidence=texts.get("evidence"),
            first=mappings.get("first", {}),
            published=mappings.get("published", {}),
            environment=mappings.get("environment", {}),
            stderr=self._stderr(fields["stderr"], metrics, at)
            if "stderr" in fields
            else {},
        )

    def _stderr(
        self, field: Field, metrics: list[str], where: str
    ) -> dict[MetricName, float]:
        where = f"{where}, stderr"
        found = {}
        for name, value in self._mapping(
            field, where, "a mapping from metrics to their standard errors"
        ).items():
            if name not in metrics:
                self._fail(
                    value.line,
                    where,
                    f"{name!r} is no recorded metric{near_matches(name, metrics)}: "
                    f"there are {', '.join(metrics)}",
                )
            found[name] = float(self._typed(value, where, float))
            self._number(value, where, low=0.0)
        return found

    def _refuse_misspelt(self, field: Field, where: str) -> None:
        # A metric may have any name, so `window: 83` would pass for one.
        if field.name in _KNOWN_METRICS:
            return
        if close := difflib.get_close_matches(field.name, _RECORDED_FIELDS, 1, 0.8):
            self._fail(
                field.line,
                where,
                f"unknown field {field.name!r} (did you mean {close[0]!r}?)",
            )

    def _refuse_incomplete(
        self, field: Field, fields: Mapping[str, Field], where: str
    ) -> None:
        missing = [
            name
            for name in _NEEDED_IF_MEASURED
            if name not in fields or fields[name].node.empty
        ]
        if missing:
            self._fail(
                field.line,
                where,
                f"a measured record needs {', '.join(missing)}: record it again with "
                "`pplguard update`, or restore the entry from version control",
            )

    def _source(self, field: Field, where: str) -> Source:
        where = f"{where}, source"
        example = "a mapping like {kind: measured}"
        source, fields = self._struct(field, where, Source, example)
        if source.kind == "published":
            for name, value in (
                ("reference", source.reference),
                ("digits", source.digits),
            ):
                if value is None or value == "":
                    self._fail(
                        field.line,
                        where,
                        f"a published value needs {name!r}: write for example "
                        "{kind: published, reference: 'Wanda paper, table 2', "
                        "digits: 2}",
                    )
            self._number(fields["digits"], where, low=0.0)
        return source

    def _digest(self, field: Field | None, where: str) -> None:
        value = None if field is None else field.node.value
        if field is None or not isinstance(value, str) or _DIGEST.fullmatch(value):
            return
        self._fail(
            field.line,
            where,
            f"{field.name}: {value!r} is no digest: expected sha256: and 64 "
            "hexadecimal digits; restore it from version control or record "
            "again with `pplguard update`",
        )

    def _evidence_path(self, field: Field | None, where: str) -> None:
        value = None if field is None else field.node.value
        if field is None or not isinstance(value, str) or is_evidence_path(value):
            return
        self._fail(
            field.line,
            where,
            f"evidence: {value!r} must be a path inside the baseline "
            "folder that ends in .json, with / and without '..'; restore it from "
            "version control or record again with `pplguard update`",
        )

    def _date(self, field: Field, where: str) -> None:
        text = self._text(field, where)
        if not _DATE.fullmatch(text):
            self._fail(
                field.line,
                where,
                f"date: {text!r} is no date: write it like 2026-11-23",
            )

    def _check_history(self, field: Field, where: str) -> None:
        for name, value in self._mapping(field, where, "a mapping").items():
            if name == "date":
                self._date(value, where)
            elif name == "reference":
                self._text(value, where)
            elif name == "digits":
                self._typed(value, where, int)
                self._number(value, where, low=0.0)
            else:
                self._metric_name(value, where)
                self._metric_value(value, where)

    def _units(self, field: Field, where: str) -> dict[str, int]:
        where = f"{where}, units"
        return {
            name: self._count(value, where)
            for name, value in self._mapping(
                field, where, "a mapping like {tokens: 339885}"
            ).items()
        }

    def _scalars(self, field: Field, where: str) -> dict[str, Scalar]:
        where = f"{where}, {field.name}"
        fields = self._mapping(field, where, "a mapping of names to values")
        for value in fields.values():
            if isinstance(value.node.value, dict | tuple):
                self._fail(
                    value.line,
                    where,
                    f"{value.name} must be a single value, not {_shown(value.node)}",
                )
        return typing.cast(dict[str, Scalar], plain(field.node) or {})

    # ------------------------------------------------------------------ single values

    def _key(self, text: str, line: int, where: str) -> None:
        try:
            Key.parse(text)
        except KeySyntaxError as error:
            self._fail(line, where, str(error))

    def _metric_name(self, field: Field, where: str) -> None:
        if not _METRIC.fullmatch(field.name):
            self._not_a_metric(field.name, field.line, where)

    def _not_a_metric(self, name: str, line: int, where: str) -> NoReturn:
        self._fail(
            line,
            where,
            f"{name!r} is not the name of a metric: expected lower-case letters, "
            f"digits and _, for example {_KNOWN_METRICS[0]}"
            f"{near_matches(name, _KNOWN_METRICS)}",
        )

    def _metric_value(self, field: Field, where: str) -> float:
        value: float = self._typed(field, where, float)
        # Of tasks there are metrics below 0, such as a correlation.
        low = 0.0 if field.name in _KNOWN_METRICS else -math.inf
        self._number(field, where, low=low)
        return value

    def _count(self, field: Field, where: str) -> int:
        value: int = self._typed(field, where, int)
        self._number(field, where, low=1.0)
        return value

    def _text(self, field: Field, where: str) -> str:
        value: str = self._typed(field, where, str)
        if not value.strip():
            self._fail(field.line, where, f"{field.name} is empty: fill it in")
        return value

    def _number(
        self,
        field: Field | None,
        where: str,
        *,
        low: float,
        high: float = math.inf,
        open_low: bool = False,
    ) -> None:
        """Refuse a number out of bounds; its type has been checked before."""
        value = None if field is None else field.node.value
        if field is None or not isinstance(value, int | float):
            return
        if value < low or value > high or (open_low and value == low):
            bound = f"{'greater than' if open_low else 'at least'} {low:g}"
            bound = f"between {low:g} and {high:.12g}" if high < math.inf else bound
            self._fail(
                field.line, where, f"{field.name} must be {bound}, not {value!r}"
            )

    # ----------------------------------------------------------------------- machinery

    def _struct(
        self, field: Field, where: str, kind: type[T], example: str
    ) -> tuple[T, Mapping[str, Field]]:
        """Convert a mapping with closed fields, each by its own type."""
        fields = self._mapping(field, where, example)
        self._known(fields, kind.__struct_fields__, where)
        values = {}
        for info in msgspec.structs.fields(kind):
            if info.name in fields:
                values[info.name] = self._typed(fields[info.name], where, info.type)
            elif info.required:
                self._fail(
                    field.line, where, f"{info.name!r} is missing: expected {example}"
                )
        return kind(**values), fields

    def _mapping(self, field: Field, where: str, expected: str) -> Mapping[str, Field]:
        value = field.node.value
        if value is None:
            return {}
        if not isinstance(value, dict):
            subject = "" if where.endswith(field.name) else f"{field.name}: "
            self._fail(
                field.node.line,
                where,
                f"{subject}expected {expected}, not {_shown(field.node)}",
            )
        return value

    def _known(
        self, fields: Mapping[str, Field], known: Iterable[str], where: str
    ) -> None:
        known = tuple(known)
        for name, field in fields.items():
            if name not in known:
                self._fail(
                    field.line,
                    where,
                    f"unknown field {name!r}{near_matches(name, known)}: "
                    f"known are {', '.join(known)}",
                )

    def _required(
        self, fields: Mapping[str, Field], name: str, line: int, where: str, what: str
    ) -> Field:
        if name not in fields:
            self._fail(line, where, f"{name!r} is missing: add '{name}: ' and {what}")
        return fields[name]

    def _typed(self, field: Field, where: str, kind: Any) -> Any:
        value = plain(field.node)
        try:
            return msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError:
            advice = ""
            if isinstance(value, str) and _is_number(value):
                advice = ": remove the quotes"
            elif isinstance(value, int | float) and kind in (str, str | None):
                advice = ": quote it"
            self._fail(
                field.node.line,
                where,
                f"{field.name} must be {_expected(kind)}, not {_shown(field.node)}"
                f"{advice}",
            )

    def _fail(self, line: int, where: str, message: str) -> NoReturn:
        place = f"{where}: " if where else ""
        raise BaselineError(f"{self.path}:{line}: {place}{message}")


def is_evidence_path(text: str) -> bool:
    """Whether ``text`` is a relative POSIX path to a JSON file below its folder."""
    parts = text.split("/")
    return (
        text.endswith(".json")
        and "\\" not in text
        and "\0" not in text
        and ":" not in parts[0]  # a drive
        and not any(part in ("", ".", "..") for part in parts)
    )


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    return _WORDS[kind]


def _shown(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"the number {value!r}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
