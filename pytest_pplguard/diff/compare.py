"""Compares two fingerprints, tensor by tensor and setting by setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..tensornames import is_head, natural
from ..values import Fingerprint, TensorFacts
from . import recognise
from .names import match
from .settings import SettingChange, compare_config, compare_tokenizers

Kind = Literal[
    "bad", "huge", "zeroed", "gone", "new", "reshaped", "mask", "values", "retyped"
]
Looks = Literal[
    "",
    "constant",
    "scaled",
    "shifted",
    "reordered",
    "transposed",
    "copied",
    "little",
    "tied",
    "untied",
]


class Exact(Struct, frozen=True):
    """Counts of one tensor's weights, where both checkpoints can be read.

    ``lost`` zeros are none any more, ``gained`` ones are new, ``moved`` weights are no
    zero in either; ``largest`` is the largest change. ``rows`` and ``columns`` are
    where they are, empty if nearly everywhere.
    """

    lost: int
    gained: int
    moved: int
    largest: float
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()


class Change(Struct, frozen=True):
    """A tensor that differs; ``name`` is the recorded one.

    ``bad``: NaN or infinity are new. ``huge``: few weights are far beyond all others.
    ``zeroed``: all are zero now. ``mask``: zeros are elsewhere, more or fewer.
    ``values``: other numbers. ``retyped``: the same numbers in another dtype.
    ``looks`` is a guess by the facts: ``scaled`` or ``shifted`` by ``factor``, all
    ``constant`` at it, ``copied`` from the tensor that was called ``source``,
    ``little`` moved, a head that is ``tied`` to the embedding now.
    """

    name: str
    kind: Kind
    before: TensorFacts | None = None
    now: TensorFacts | None = None
    looks: Looks = ""
    factor: float | None = None
    source: str | None = None
    exact: Exact | None = None


class Difference(Struct, frozen=True):
    """What differs between two fingerprints.

    ``tensors`` maps the recorded names, and those of new tensors, to numbers of
    weights; ``linear`` are those in which sparsity is counted. ``renamed`` maps
    recorded names to others that the tensors have now. ``head`` is the width of an
    attention head, if the config says it. ``described`` says which of config and
    tokenizer both fingerprints have.
    """

    tensors: dict[str, int]
    linear: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    config: tuple[SettingChange, ...] = ()
    tokenizer: tuple[SettingChange, ...] = ()
    renamed: dict[str, str] = {}
    head: int | None = None
    described: tuple[str, ...] = ("config", "tokenizer")

    @property
    def matters(self) -> bool:
        """Whether anything differs that may move a number."""
        return any(change.kind != "retyped" for change in self.changes) or any(
            change.decides != "no" for change in (*self.config, *self.tokenizer)
        )

    def counted(self, counts: Mapping[str, Exact]) -> Difference:
        """The same with counts of weights, by the recorded names of changed tensors."""
        changes = tuple(
            replace(change, exact=counts.get(change.name)) for change in self.changes
        )
        return replace(self, changes=changes)


def compare(recorded: Fingerprint, now: Fingerprint) -> Difference:
    """What differs from the ``recorded`` fingerprint, by the facts of both."""
    before, after = recorded.weights, now.weights
    names = match(before, after)
    described = tuple(
        part
        for part in ("config", "tokenizer")
        if getattr(recorded, part) and getattr(now, part)
    )
    recorded_name = {name: names.get(name, name) for name in after}
    owners = _owners(before)
    tied = _is_tied(recorded.config)
    changes = [
        change
        for name, facts in after.items()
        if (
            change := _change(
                recorded_name[name],
                before[names[name]] if name in names else None,
                facts,
                owners=owners,
                untied=name in recorded.tensors or (tied and is_head(name)),
            )
        )
    ]
    matched = set(names.values())
    changes += [
        Change(name, "gone", before=facts, looks="tied" if name in now.tensors else "")
        for name, facts in before.items()
        if name not in matched
    ]
    return Difference(
        tensors={recorded_name[name]: facts.size for name, facts in after.items()}
        | {name: facts.size for name, facts in before.items()},
        linear=recorded.linear,
        changes=tuple(sorted(changes, key=lambda change: natural(change.name))),
        config=(
            tuple(compare_config(recorded.config, now.config))
            if "config" in described
            else ()
        ),
        tokenizer=(
            tuple(compare_tokenizers(recorded.tokenizer, now.tokenizer))
            if "tokenizer" in described
            else ()
        ),
        renamed={old: new for new, old in sorted(names.items()) if old != new},
        head=_head(recorded.config),
        described=described,
    )


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a head was the embedding, in the files or not."""
    return any(
        value is True and name.rpartition(".")[2] == "tie_word_embeddings"
        for name, value in config.items()
    )


def _head(config: Mapping[str, Any]) -> int | None:
    """The width of an attention head."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    width = config.get("head_dim")
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        width = hidden // heads
    return width if isinstance(width, int) and width > 1 else None


def _owners(tensors: Mapping[str, TensorFacts]) -> dict[str, str]:
    """Which tensor holds what; left out is what several hold, like norms of ones."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, facts in tensors.items():
        names[facts.values].append(name)
    return {values: found[0] for values, found in names.items() if len(found) == 1}


def _change(
    name: str,
    before: TensorFacts | None,
    now: TensorFacts,
    *,
    owners: Mapping[str, str],
    untied: bool,
) -> Change | None:
    """What became of one tensor; None if nothing did."""
    source = owners.get(now.values)
    if source == name or (before is not None and before.values == now.values):
        source = None
    if before is None:
        looks: Looks = "copied" if source else "untied" if untied else ""
        return Change(name, "new", now=now, looks=looks, source=source)
    if before.shape == now.shape and before.values == now.values:
        same = before.dtype == now.dtype
        return None if same else Change(name, "retyped", before, now)
    kind, looks, factor = _recognise(before, now)
    if source is not None and kind != "bad":
        looks, factor = "copied", None
    return Change(name, kind, before, now, looks, factor, source)


def _recognise(
    before: TensorFacts, now: TensorFacts
) -> tuple[Kind, Looks, float | None]:
    """The kind of a change, what it looks like, and the factor it is scaled by."""
    plain = bool(before.mask and now.mask)
    if now.bad > before.bad:
        return "bad", "", None
    if before.shape != now.shape:
        turned = plain and before.shape == now.shape[::-1]
        if turned and recognise.reordered(before, now):
            return "reshaped", "transposed", None
        return "reshaped", "", None
    if not plain:
        return "values", "", None
    if now.zeros == now.size:
        return "zeroed", "", None
    if (value := recognise.constant(now)) is not None:
        return "values", "constant", value
    if recognise.reordered(before, now):
        return "values", "reordered", None
    if (factor := recognise.scaled_by(before, now)) is not None:
        return "values", "scaled", factor
    if (shift := recognise.shifted_by(before, now)) is not None:
        return "values", "shifted", shift
    if recognise.huge_weights(before, now):
        return "huge", "", None
    looks: Looks = "little" if recognise.little(before, now) else ""
    if before.mask != now.mask and not recognise.is_incidental(before, now):
        return "mask", looks, None
    return "values", looks, None
