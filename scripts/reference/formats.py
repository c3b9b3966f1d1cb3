"""The page of file formats: the structures that are read and written."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec

import pytest_pplguard
from pytest_pplguard import values
from pytest_pplguard.baselines import read

from .markdown import code, prose, table

_SECTIONS: tuple[tuple[str, str, tuple[tuple[str, type[msgspec.Struct]], ...]], ...] = (
    (
        "Baseline file",
        "`baselines/FILE.yaml`, YAML without anchors, tags and duplicate keys. "
        "[What it is for](../baseline-files.md).",
        (
            ("The file", values.BaselineFile),
            ("An entry of `checkpoints`", values.CheckpointEntry),
            ("`gates`", values.Gates),
            ("`gates.KEY.METRIC`", values.Tolerance),
            ("`gates.relative`", values.RelativeGate),
            ("`gates.sparsity`", values.SparsityGate),
            ("`recorded.KEY`", values.Recorded),
            ("`recorded.KEY.source`", values.Source),
            ("`recorded.fingerprint`", values.RecordedFingerprint),
        ),
    ),
    (
        "Evidence",
        "JSON beside the baseline file, named by the digest of its own bytes: a line "
        "for each window, document or tensor.",
        (
            ("A window", values.WindowScore),
            ("A document of a task", values.DocumentResult),
            ("A tensor of a fingerprint", values.TensorFacts),
        ),
    ),
    (
        "JSON report",
        "What `--ppl-report x.json` writes, beside `schema`. "
        "[An example](../reference.md#reports).",
        (
            ("The document", values.Results),
            ("A verdict", values.Verdict),
            ("A problem or warning", values.Remark),
        ),
    ),
)

_INTERNAL = {
    "BaselineFile": {"path"},
    "CheckpointEntry": {"name", "lines", "fingerprint"},
}
"""Fields that do not stand there: they say where in the file something was read."""

_TEXT = {
    "BaselineFile": "`model` is the base model's name; `checkpoints` maps names to "
    "entries.\n",
    "CheckpointEntry": "`path` is where the checkpoint usually is. `allow_keys` "
    "excuses weight keys\nthat the model does not know. `reference` names the entry "
    "that `kl` compares with:\nthe one that is written, else one called `dense`.\n",
}
"""Instead of docstrings that are about the fields above."""

_SPREAD = {
    "Gates": {"metrics": "KEY"},
    "Recorded": {"metrics": "METRIC"},
}
"""Fields whose entries stand in the file by their own names."""


def page() -> str:
    """All formats with their fields."""
    parts = []
    for title, text, structs in _SECTIONS:
        parts.append(f"## {title}\n\n{text}\n")
        parts += [_struct(name, struct) for name, struct in structs]
    return "\n".join(parts)


def _struct(title: str, struct: type[msgspec.Struct]) -> str:
    name = struct.__name__
    annotations = _annotations()[name]
    rows = []
    if struct is values.BaselineFile:
        rows.append((code("schema"), code("int"), f"always {values.SCHEMA}"))
    for field in msgspec.structs.fields(struct):
        if field.name in _INTERNAL.get(name, ()):
            continue
        shown = _SPREAD.get(name, {}).get(field.name, field.name)
        kind = annotations[field.name]
        if shown != field.name:
            kind = re.sub(r"^dict\[str, (.*)\]$", r"\1", kind)
        rows.append((code(shown), _type(kind), _default(field)))
    _check(name, [row[0].strip("`") for row in rows])
    head = ("field", "type", "if it is left out")
    return (
        f"### {title}\n\n{_TEXT.get(name, prose(struct.__doc__))}\n{table(head, rows)}"
    )


def _check(name: str, shown: list[str]) -> None:
    """The reader's own lists of fields are what is shown."""
    known = {
        "BaselineFile": read._FILE_FIELDS,
        "CheckpointEntry": read._ENTRY_FIELDS,
    }
    if name in known:
        assert set(shown) == set(known[name]), (name, shown)


def _type(written: str) -> str:
    words = re.fullmatch(r"Literal\[(.*)\]", written)
    if words is None:
        return code(written)
    return ", ".join(code(word.strip("'")) for word in words[1].split(", "))


def _default(field: Any) -> str:
    if field.required:
        return "an error"
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory()
    if default in (None, "", (), {}) or default is msgspec.UNSET:
        return "nothing"
    if isinstance(default, msgspec.Struct):
        return "none"
    return code(str(default).lower() if isinstance(default, bool) else str(default))


def _annotations() -> dict[str, dict[str, str]]:
    """Types as they are written, by class and field."""
    path = Path(pytest_pplguard.__file__).parent / "values.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: {
            item.target.id: ast.unparse(item.annotation)
            .replace(" | UnsetType", "")
            .replace("MetricName", "str")
            .replace("Scalar", "str | int | float | bool | None")
            .removesuffix(" | None")
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
