"""What happened to baselines between two states of their files; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import asdict

from .gates import relative_loosens, sparsity_loosens, tolerance_loosens
from .values import (
    BaselineFile,
    CheckpointEntry,
    Gates,
    Key,
    MetricName,
    Recorded,
    RelativeGate,
    Scalar,
    SparsityGate,
    Tolerance,
    relative_change,
)

_HELD = {"any": 0, "mask": 1, "same": 2}
_HALF = 0.5
"""Checkpoints that a renamed file must have kept."""


class Row(Struct, frozen=True, kw_only=True):
    """A recorded value before and after; None where there was, or is, none.

    ``change`` and ``drift`` are relative, the latter since the ``first`` record; both
    are None where they mean nothing. ``note`` says what is special, in two words.
    """

    checkpoint: str
    key: str
    metric: MetricName
    old: float | None
    new: float | None
    change: float | None = None
    first: float | None = None
    drift: float | None = None
    note: str = ""


class GateChange(Struct, frozen=True, kw_only=True):
    """A gate, or what a gate leans on, before and after, as the file has it.

    ``gate`` is its place: ``KEY METRIC``, ``sparsity``, ``weights``. ``line`` is where
    it stands now, or stood, in the file of the checkpoint.
    """

    checkpoint: str
    gate: str
    old: str
    new: str
    file: str = ""
    line: int | None = None


class Fact(Struct, frozen=True):
    """Something about a checkpoint and key, in words."""

    checkpoint: str
    key: str
    text: str


class Review(Struct, frozen=True, kw_only=True):
    """What a commit did.

    ``loosened`` gates admit something that they did not admit before, ``tightened``
    ones only less. ``suspect`` is what recording does not do by itself: edits by hand
    and evidence that does not fit. ``incomparable`` values were measured otherwise than
    those before. ``environment`` is what else differed while measuring. ``entries`` are
    checkpoints and keys that came and went. ``unread`` says which files could not be
    read.
    """

    loosened: tuple[GateChange, ...] = ()
    tightened: tuple[GateChange, ...] = ()
    suspect: tuple[Fact, ...] = ()
    incomparable: tuple[Fact, ...] = ()
    rows: tuple[Row, ...] = ()
    entries: tuple[Fact, ...] = ()
    environment: tuple[Fact, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not any(getattr(self, name) for name in self.__struct_fields__)


Protocols = Callable[[str, Recorded], Mapping[str, Scalar]]
"""The protocol's properties in the evidence of a file's record; empty if unknown."""


def review(
    old: Mapping[str, BaselineFile],
    new: Mapping[str, BaselineFile],
    *,
    unread: Iterable[str] = (),
    old_protocol: Protocols = lambda _, __: {},
    new_protocol: Protocols = lambda _, __: {},
) -> Review:
    """Compare all baseline files of two states, each by its stem.

    Args:
        old: the files before.
        new: the files after.
        unread: what is wrong with files that are in neither, in words.
        old_protocol: gives, of a stem and a record, what its evidence says.
        new_protocol: likewise.
    """
    work = _Review(old_protocol, new_protocol)
    renamed = _renamed_files(old, new)
    for before, after in renamed.items():
        work.loosen(after, "file", before, after, (after, new[after].path, None))
    back = {after: before for before, after in renamed.items()}
    for stem in sorted(old.keys() | new.keys()):
        if stem in renamed:
            continue
        before = back.get(stem, stem)
        work.file(old.get(before), new.get(stem), before, stem)
    return work.result(tuple(unread))


def unreadable(stem: str, file: BaselineFile) -> GateChange | None:
    """What is lost where ``file`` was read before and cannot be now; None if no gate.

    One that no longer looks like a baseline file is not even collected.
    """
    count = sum(len(_gate_names(entry.gates)) for entry in file.checkpoints.values())
    if not count:
        return None
    return GateChange(
        checkpoint=stem,
        gate="all gates",
        old=f"{count} gate{'' if count == 1 else 's'}",
        new="cannot be read",
        file=file.path,
    )


Place = tuple[str, str, int | None]
"""Name of a checkpoint, its file, a line there."""


class _Review:
    """Gathers what happened."""

    def __init__(self, old_protocol: Protocols, new_protocol: Protocols) -> None:
        self._protocols = old_protocol, new_protocol
        self._loosened: list[GateChange] = []
        self._tightened: list[GateChange] = []
        self._facts: dict[str, list[Fact]] = {
            "suspect": [], "incomparable": [], "entries": [], "environment": []
        }  # fmt: skip
        self._rows: list[Row] = []

    def result(self, unread: tuple[str, ...]) -> Review:
        facts: Any = {name: tuple(facts) for name, facts in self._facts.items()}
        return Review(
            loosened=tuple(self._loosened),
            tightened=tuple(self._tightened),
            rows=tuple(self._rows),
            unread=unread,
            **facts,
        )

    def loosen(
        self, name: str, gate: str, old: str, new: str, place: Place, loose: bool = True
    ) -> None:
        _, file, line = place
        change = GateChange(
            checkpoint=name, gate=gate, old=old, new=new, file=file, line=line
        )
        (self._loosened if loose else self._tightened).append(change)

    def _say(self, kind: str, name: str, key: str, text: str) -> None:
        self._facts[kind].append(Fact(name, key, text))

    # ------------------------------------------------------------------------ entries

    def file(
        self,
        old: BaselineFile | None,
        new: BaselineFile | None,
        old_stem: str,
        stem: str,
    ) -> None:
        before = old.checkpoints if old is not None else {}
        after = new.checkpoints if new is not None else {}
        if old is not None and new is not None and old.model != new.model:
            self._say("entries", stem, "", f"model: {old.model} -> {new.model}")
        renamed = _renamed_entries(before, after)
        back = {new: old for old, new in renamed.items()}
        for name in [*before, *(name for name in after if name not in before)]:
            if name in renamed:
                continue
            full = f"{stem}/{name}"
            if name not in after:
                assert old is not None
                self._removed(f"{old_stem}/{name}", before[name], old)
            elif back.get(name, name) not in before:
                self._say("entries", full, "", "new checkpoint")
                self._values(full, stem, stem, CheckpointEntry(name), after[name])
            else:
                assert new is not None
                was = before[back.get(name, name)]
                if was.name != name:
                    place = full, new.path, after[name].lines.get("")
                    self.loosen(full, "checkpoint", was.name, name, place)
                if was.path != after[name].path:
                    paths = f"{was.path or 'none'} -> {after[name].path or 'none'}"
                    self._say("entries", full, "", f"path: {paths}")
                self._gates(full, was, after[name], new.path)
                self._values(full, old_stem, stem, was, after[name])

    def _removed(self, name: str, entry: CheckpointEntry, file: BaselineFile) -> None:
        self._say("entries", name, "", "checkpoint removed")
        count = len(_gate_names(entry.gates))
        if count:
            self.loosen(
                name,
                "all gates",
                f"{count} gate{'' if count == 1 else 's'}",
                "checkpoint removed",
                (name, file.path, entry.lines.get("")),
            )
        for key, recorded in entry.recorded.items():
            for metric, value in recorded.metrics.items():
                self._rows.append(
                    Row(checkpoint=name, key=key, metric=metric, old=value, new=None,
                        note="removed")
                )  # fmt: skip

    # -------------------------------------------------------------------------- gates

    def _gates(
        self, name: str, old: CheckpointEntry, new: CheckpointEntry, file: str
    ) -> None:
        def place(where: str) -> Place:
            return name, file, new.lines.get(where, new.lines.get("gates"))

        def compare(gate: str, was: str, now: str, where: str, loose: bool) -> None:
            if was != now:
                self.loosen(name, gate, was or "none", now or "removed", place(where),
                            loose)  # fmt: skip

        keys = [*old.gates.metrics, *new.gates.metrics]
        for key in dict.fromkeys(keys):
            was, now = old.gates.metrics.get(key, {}), new.gates.metrics.get(key, {})
            for metric in dict.fromkeys([*was, *now]):
                before, after = was.get(metric), now.get(metric)
                compare(
                    f"{key} {metric}",
                    _written(before),
                    _written(after),
                    f"gates.{key}.{metric}",
                    tolerance_loosens(key, metric, before, after, old, new),
                )
            then, current = old.recorded.get(key), new.recorded.get(key)
            if was and now and then is not None and current is not None:
                # All that prints alike is allowed: fewer digits allow more.
                one, other = then.source.digits, current.source.digits
                if one is not None and other is not None:
                    compare(f"{key} digits", str(one), str(other),
                            f"recorded.{key}", other < one)  # fmt: skip
        a, b = old.gates, new.gates
        compare("sparsity", _flow(a.sparsity), _flow(b.sparsity), "gates.sparsity",
                sparsity_loosens(a.sparsity, b.sparsity))  # fmt: skip
        held, holds = a.weights or "any", b.weights or "any"
        compare("weights", held, holds, "gates.weights",
                _HELD[held] > _HELD[holds])  # fmt: skip
        compare("relative", _flow(a.relative), _flow(b.relative), "gates.relative",
                relative_loosens(a.relative, b.relative))  # fmt: skip
        compare("against", a.against or "", b.against or "", "gates.against",
                a.against is not None)  # fmt: skip
        added = set(new.allow_keys) - set(old.allow_keys)
        compare("allow_keys", ", ".join(old.allow_keys), ", ".join(new.allow_keys), "",
                bool(added))  # fmt: skip
        if old.reference != new.reference and old.reference is not None:
            if any(Key.parse(key).method == "kl" for key in old.gates.metrics):
                self.loosen(name, "reference", old.reference, new.reference or "none",
                            place(""))  # fmt: skip
            self._say(
                "incomparable",
                name,
                "kl",
                f"reference: {old.reference} -> {new.reference or 'none'}",
            )

    # ------------------------------------------------------------------------- values

    def _values(
        self,
        name: str,
        old_stem: str,
        stem: str,
        old: CheckpointEntry,
        new: CheckpointEntry,
    ) -> None:
        for key in dict.fromkeys([*old.recorded, *new.recorded]):
            was, now = old.recorded.get(key), new.recorded.get(key)
            if was is None or now is None:
                if old.recorded or old.lines:
                    text = "new key" if was is None else "key removed"
                    self._say("entries", name, key, text)
                self._new_or_gone(name, key, was, now)
            else:
                self._record(name, key, was, now, (old_stem, stem))
        one, other = old.fingerprint, new.fingerprint
        if one is not None and other is None:
            self._say("suspect", name, "fingerprint", "removed: nothing says which "
                      "weights these values are of")  # fmt: skip
        elif one is not None and other is not None and one.digest != other.digest:
            self._say(
                "environment",
                name,
                "fingerprint",
                f"other weights ({other.tensors} tensors, zeros "
                f"{one.share * 100:.2f} % -> {other.share * 100:.2f} %)",
            )

    def _new_or_gone(
        self, name: str, key: str, was: Recorded | None, now: Recorded | None
    ) -> None:
        recorded = now or was
        assert recorded is not None
        note = "removed" if now is None else "new"
        if now is not None and now.source.kind == "published":
            note = "new, published"
        for metric, value in recorded.metrics.items():
            self._rows.append(
                Row(
                    checkpoint=name,
                    key=key,
                    metric=metric,
                    old=None if now is not None else value,
                    new=value if now is not None else None,
                    note=note,
                )
            )

    def _record(
        self, name: str, key: str, was: Recorded, now: Recorded, stems: tuple[str, str]
    ) -> None:
        published = now.source.kind == "published"
        if published and was.source.kind == "measured":
            self.loosen(
                name, key, "measured", f"published: {now.source.reference}",
                (name, "", None),
            )  # fmt: skip
        different = self._differences(was, now, stems)
        if different:
            self._say("incomparable", name, key, "; ".join(different))
        self._by_hand(name, key, was, now)
        environment = _changes(was.environment, now.environment)
        if environment and not published and was.source.kind == "measured":
            self._say("environment", name, key, "; ".join(environment))
        for metric in dict.fromkeys([*was.metrics, *now.metrics]):
            old, new = was.metrics.get(metric), now.metrics.get(metric)
            if old == new:
                continue
            first = now.first.get(metric)
            base = float(first) if isinstance(first, int | float) else None
            if published or different:
                base = None
            both = old is not None and new is not None and not different
            self._rows.append(
                Row(
                    checkpoint=name,
                    key=key,
                    metric=metric,
                    old=old,
                    new=new,
                    change=relative_change(new, old)  # type: ignore[arg-type]
                    if both
                    else None,
                    first=base,
                    drift=relative_change(new, base)
                    if new is not None and base is not None
                    else None,
                    note=_note(was, now, old, new, bool(different)),
                )
            )

    def _differences(
        self, was: Recorded, now: Recorded, stems: tuple[str, str]
    ) -> list[str]:
        """Why two records of a key were not measured the same way."""
        if now.source.kind == "published" or was.source.kind == "published":
            return []
        found = [
            what
            for what, one, other in (
                ("another text", was.corpus_digest, now.corpus_digest),
                ("other token windows", was.windows_digest, now.windows_digest),
            )
            if one != other
        ]
        if was.windows != now.windows:
            found.append(f"windows: {was.windows} -> {now.windows}")
        found += _changes(was.units, now.units)
        before = self._protocols[0](stems[0], was)
        after = self._protocols[1](stems[1], now)
        if before and after:
            found += _changes(before, after)
        return found

    def _by_hand(self, name: str, key: str, was: Recorded, now: Recorded) -> None:
        """What `pplguard update` would not have done."""
        moved = [m for m in was.metrics if was.metrics[m] != now.metrics.get(m)]
        if was.source.kind == now.source.kind == "measured":
            if moved and was.evidence == now.evidence:
                self._say(
                    "suspect",
                    name,
                    key,
                    f"{', '.join(moved)} changed, and the evidence did not: edited by "
                    "hand",
                )
            if was.evidence == now.evidence and (
                errors := [m for m in was.stderr if was.stderr[m] != now.stderr.get(m)]
                + [m for m in now.stderr if m not in was.stderr]
            ):
                self._say(
                    "suspect",
                    name,
                    key,
                    f"the standard error of {', '.join(errors)} changed, and the "
                    "evidence did not",
                )
            if was.weights_digest is not None and now.weights_digest is None:
                self._say(
                    "suspect",
                    name,
                    key,
                    "weights_digest was removed: nothing says which weights this was "
                    "measured on",
                )
            old_first = was.first or was.metrics
            if now.first and (forgot := _changes(
                {m: old_first[m] for m in old_first if m in now.first}, now.first,
                only=set(old_first),
            )):  # fmt: skip
                self._say(
                    "suspect",
                    name,
                    key,
                    f"the first record was changed ({'; '.join(forgot)}): the total "
                    "drift no longer counts from there",
                )
            elif was.first and not now.first:
                self._say("suspect", name, key, "the first record was removed")


def _note(
    was: Recorded,
    now: Recorded,
    old: float | None,
    new: float | None,
    different: bool,
) -> str:
    if old is None:
        return "new"
    if new is None:
        return "removed"
    if different:
        return "not comparable"
    if was.source.kind != now.source.kind:
        return f"was {was.source.kind}"
    return "published" if now.source.kind == "published" else ""


def _changes(
    old: Mapping[str, Scalar] | Mapping[str, int],
    new: Mapping[str, Scalar] | Mapping[str, int],
    *,
    only: set[str] | None = None,
) -> list[str]:
    """``torch: 2.12.0 -> 2.13.0`` of each name with two values."""
    names = [n for n in dict.fromkeys([*old, *new]) if only is None or n in only]
    return [
        f"{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _shown(value: Scalar) -> str:
    return "none" if value is None else str(value)


# ------------------------------------------------------------------------ as written


def _gate_names(gates: Gates) -> list[str]:
    names = [f"{key} {m}" for key, metrics in gates.metrics.items() for m in metrics]
    special: tuple[Literal["relative", "sparsity", "weights", "against"], ...]
    special = ("relative", "sparsity", "weights", "against")
    return names + [name for name in special if getattr(gates, name) is not None]


def _written(tolerance: Tolerance | None) -> str:
    """In full: bounds that differ in their eighth digit are not the same gate."""
    if tolerance is None:
        return ""
    parts = [
        f"{name} {_digits(bound)}"
        for name in ("rel", "abs", "sigma", "max", "min", "drift")
        if (bound := getattr(tolerance, name)) is not None
    ]
    if tolerance.direction != "both":
        parts.append(tolerance.direction)
    return ", ".join(parts) or "the default"


def _digits(bound: float) -> str:
    short = f"{bound:g}"
    return short if float(short) == bound else repr(bound)


def _flow(gate: SparsityGate | RelativeGate | None) -> str:
    if gate is None:
        return ""
    fields = asdict(gate)
    if "max_ratio" in fields:  # first what people change
        fields = {"max_ratio": fields.pop("max_ratio"), **fields}
    defaults: Any = {"scope": "total"}
    return ", ".join(
        f"{name} {value}"
        for name, value in fields.items()
        if value is not None and defaults.get(name) != value
    )


# ---------------------------------------------------------------------------- renamed


def _renamed_files(
    old: Mapping[str, BaselineFile], new: Mapping[str, BaselineFile]
) -> dict[str, str]:
    """From a stem that is gone to the new one that has most of its checkpoints."""
    gone = [stem for stem in old if stem not in new]
    come = [stem for stem in new if stem not in old]
    found: dict[str, str] = {}
    for before in gone:
        entries = old[before].checkpoints
        likeness = {
            stem: _same_entries(entries, new[stem].checkpoints)
            for stem in come
            if stem not in found.values()
        }
        best = max(likeness, key=lambda stem: likeness[stem], default=None)
        if best is not None and likeness[best] > _HALF * len(entries):
            found[before] = best
    return found


def _same_entries(
    old: Mapping[str, CheckpointEntry], new: Mapping[str, CheckpointEntry]
) -> int:
    return sum(name in new and _same_records(old[name], new[name]) for name in old)


def _renamed_entries(
    old: Mapping[str, CheckpointEntry], new: Mapping[str, CheckpointEntry]
) -> dict[str, str]:
    """From a checkpoint that is gone to a new one with the same records."""
    come = [name for name in new if name not in old]
    found: dict[str, str] = {}
    for name in old:
        if name in new:
            continue
        for other in come:
            if other not in found.values() and _same_records(old[name], new[other]):
                found[name] = other
                break
    return found


def _same_records(old: CheckpointEntry, new: CheckpointEntry) -> bool:
    """Whether two entries record the same weights, or else the same values."""
    if old.fingerprint is not None and new.fingerprint is not None:
        return old.fingerprint.digest == new.fingerprint.digest
    return bool(old.recorded) and _values_of(old) == _values_of(new)


def _values_of(entry: CheckpointEntry) -> dict[str, tuple[object, ...]]:
    return {
        key: (recorded.metrics, recorded.windows_digest, recorded.source)
        for key, recorded in entry.recorded.items()
    }
