"""Says what differs, in lines for people: the most likely cause first."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..tensornames import group, kind_of, layer_of, ranges
from ..values import TensorFacts
from .compare import Change, Difference
from .layers import tell_copies
from .recognise import huge_weights, little
from .settings import config_lines, tokenizer_line

_MOST_LOST = 0.02
"""A mask is lost if no more than this part of its zeros is left."""
_AS_MANY = 1e-3
"""Shares of zeros that differ by less are those of another mask, as a rule."""
_NEARLY_ALL = 0.9
_PRUNED = 0.05
"""A larger share of zeros is no chance."""
_RESTORED = 1.02
"""What norms grow by at least when half of the weights, the smaller ones, are back."""
_SEVERAL = 4
_LONGEST_RANGES = 40
_UNLIKE = 0.3
_BORDERLINE = 4
"""What moved by so many times a little is still told with what did."""


class _Line(NamedTuple):
    """A line, and its place: by the likelihood that it is the cause, then by size."""

    rank: int
    weight: float
    text: str


# Places of lines, the most likely cause of another number first.
_BAD, _BASE, _TENSORS, _COPIES, _CONFIG = range(5)
_TOKENIZER, _MASKS, _VALUES, _PERHAPS, _QUIET = range(5, 10)


def lines(
    difference: Difference,
    *,
    limit: int | None = None,
    command: str = "pplguard diff A B --all",
    before: str = "the baseline",
) -> list[str]:
    """What differs, the most likely cause of another number first.

    Args:
        difference: from :func:`~.compare.compare`.
        limit: the most lines; None for all.
        command: shows all; named where there are more lines than ``limit``.
        before: what it was compared with.
    """
    found = [
        *_tensor_lines(difference),
        *(
            _Line(_rank(change.decides, _CONFIG), 0, text)
            for change, text in config_lines(difference.config)
        ),
        *_tokenizer_lines(difference),
        *_renamed(difference),
    ]
    # The order of lines of one place and weight is that of the tensors.
    texts = [line.text for line in sorted(found, key=lambda x: (x.rank, -x.weight))]
    if not texts:
        same = _listed(["weights", *difference.described])
        return [
            f"{same} are those of {before} to the bit: look at the environment "
            "(dtype, device, versions, attention)"
        ]
    if rest := _the_rest(difference):
        texts.append(rest)
    if limit is None or len(texts) <= limit:
        return texts
    shown = texts[: max(1, limit - 1)]
    return [*shown, f"and {len(texts) - len(shown)} more: {command}"]


def _rank(decides: str, rank: int) -> int:
    return {"yes": rank, "perhaps": _PERHAPS}.get(decides, _QUIET)


def _tokenizer_lines(difference: Difference) -> Iterable[_Line]:
    by_name = {change.name: change for change in difference.tokenizer}
    for change in difference.tokenizer:
        # Other tokens have other ids.
        if change.name == "token ids" and "vocabulary" in by_name:
            continue
        text = tokenizer_line(change, by_name)
        yield _Line(_rank(change.decides, _TOKENIZER), 0, text)


def _renamed(difference: Difference) -> Iterable[_Line]:
    for old, new in list(difference.renamed.items())[:1]:
        count = len(difference.renamed)
        more = f" and {count - 1} more" if count > 1 else ""
        yield _Line(_QUIET, 1, f"other names, the same tensors: {old} -> {new}{more}")


def _the_rest(difference: Difference) -> str:
    """What is the same, where something differs."""
    changed = {change.name for change in difference.changes}
    same = len(set(difference.tensors) - changed)
    weights = f"all other weights ({same} tensors)" if changed else "all weights"
    told = {"config": difference.config, "tokenizer": difference.tokenizer}
    parts = [
        *([weights] if same else []),
        *(f"the {part}" for part in difference.described if not told[part]),
    ]
    if not parts:
        return ""
    verb = "are" if len(parts) > 1 or same else "is"
    return f"{_listed(parts)} {verb} the same"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


# --------------------------------------------------------------------------- tensors


def _tensor_lines(difference: Difference) -> Iterable[_Line]:
    changes = difference.changes
    headline = _other_base(difference)
    if headline is not None:
        yield headline
    copies = {
        change.name: change.source
        for change in changes
        if change.source and change.kind != "gone"
    }
    told: set[str] = set()
    for copy in tell_copies(copies, known=difference.tensors):
        told.update(copy.names)
        yield _Line(_COPIES, len(copy.names), copy.text)
    buckets: dict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in changes:
        if change.name not in told:
            buckets[_bucket(change, alike=headline is not None)].append(change)
    for alike in buckets.values():
        by_name = {change.name: change for change in alike}
        for found in group(by_name, known=difference.tensors, linear=difference.linear):
            members = [by_name[name] for name in found.names]
            yield _Line(
                _place(members),
                _weight(members),
                f"{found.text}: {_words(members, difference)}",
            )


def _bucket(change: Change, *, alike: bool) -> tuple[object, ...]:
    """Changes that have one line if their tensors have one name together.

    Where nearly everything differs, values that moved are ``alike``.
    """
    before, now = change.before, change.now
    if before is None or now is None:
        return change.kind, change.looks, change.source
    if change.kind == "reshaped":
        return change.kind, change.looks, before.shape, now.shape
    if change.kind == "retyped":
        return change.kind, before.dtype, now.dtype
    if change.kind == "mask":
        return change.kind, _mask_words(before.share, now.share)
    if change.kind == "values":
        if change.factor is not None:
            return change.kind, change.looks, f"{change.factor:.3g}"
        looks: str = change.looks
        if looks in ("", "little"):
            if alike:
                return (change.kind,)
            # Else a change that went all over the model is told in pieces.
            looks = "near" * _is_near(change)
        return change.kind, looks, _size_class(before, now)
    return (change.kind,)


def _is_near(change: Change) -> bool:
    before, now = change.before, change.now
    return bool(before and now and little(before, now, times=_BORDERLINE))


def _size_class(before: TensorFacts, now: TensorFacts) -> int:
    """Tells apart norms that hardly moved, and those that moved by other amounts."""
    if not before.norm or not now.norm:
        return 9
    ratio = now.norm / before.norm
    sign = 1 if ratio > 1 else -1
    return sign * sum(max(ratio, 1 / ratio) > bound for bound in (1.25, 4, 100))


def _place(changes: Sequence[Change]) -> int:
    kind = changes[0].kind
    if kind in ("bad", "huge"):
        return _BAD
    if kind in ("zeroed", "gone", "new", "reshaped"):
        return _TENSORS
    if changes[0].looks == "constant":
        return _TENSORS
    return {"mask": _MASKS, "values": _VALUES}.get(kind, _QUIET)


def _weight(changes: Sequence[Change]) -> float:
    """How much a change weighs among those of its place."""
    kind = changes[0].kind
    if kind == "mask":
        before, now = _shares(changes)
        return abs(now - before) + ("lost" in _mask_words(before, now))
    if kind == "values":
        return max(
            abs(_size_class(change.before, change.now))
            for change in changes
            if change.before and change.now
        ) + 0.5 * (not all(map(_is_near, changes)))
    return 0


def _words(changes: Sequence[Change], difference: Difference) -> str:
    """What happened to tensors of one bucket."""
    first = changes[0]
    before, now = first.before, first.now
    if first.kind == "gone":
        return "repeats the embedding now" if first.looks == "tied" else "gone"
    if now is None or before is None:
        return (
            "new: repeats the embedding no more" if first.looks == "untied" else "new"
        )
    where = _where(changes, difference)
    counts = _exact_words(changes, where)
    if first.kind == "bad":
        bad = sum(change.now.bad for change in changes if change.now)
        are = "is" if bad == 1 else "are"
        return f"{_count(bad, 'weight')} {are} NaN or infinite{where}"
    if first.kind == "huge":
        return _huge_words(changes) + counts
    if first.kind == "zeroed":
        return "all zeros now"
    if first.kind == "reshaped":
        guess = " (transposed)" if first.looks == "transposed" else ""
        return f"shape {list(before.shape)} -> {list(now.shape)}{guess}"
    if first.kind == "retyped":
        return f"{before.dtype} -> {now.dtype}, the same numbers"
    if first.kind == "mask":
        return _mask_line(changes, difference) + counts
    return _value_words(changes, difference) + counts


def _huge_words(changes: Sequence[Change]) -> str:
    peak = max(change.now.peak for change in changes if change.now)
    was = max(change.before.peak for change in changes if change.before)
    count = sum(
        huge_weights(change.before, change.now)
        for change in changes
        if change.before and change.now
    )
    what = "one weight is" if count == 1 else f"{count} weights are about"
    return f"{what} {peak:.2g} in magnitude, the largest was {was:.2g}"


def _zeros(changes: Iterable[Change]) -> tuple[int, int]:
    """How many zeros there were, and are."""
    pairs = [(c.before, c.now) for c in changes if c.before and c.now]
    return sum(one.zeros for one, _ in pairs), sum(other.zeros for _, other in pairs)


def _shares(changes: Iterable[Change]) -> tuple[float, float]:
    """Which share was zero, and is."""
    changes = list(changes)
    size = max(1, sum(change.now.size for change in changes if change.now))
    before, now = _zeros(changes)
    return before / size, now / size


def _mask_words(before: float, now: float) -> str:
    if abs(now - before) < _AS_MANY:
        return "zeros elsewhere"
    if now > before:
        return "more zeros"
    return "mask lost" if now <= _MOST_LOST * before else "zeros lost"


def _mask_line(changes: Sequence[Change], difference: Difference) -> str:
    before, now = _shares(changes)
    what = _mask_words(before, now)
    guess = _mask_guess(what, changes, difference)
    if what != "zeros elsewhere":
        return f"{what}, {_percent(before)} -> {_percent(now)}{guess}"
    zeros = _zeros(changes)
    if len(changes) > 1 or zeros[0] == zeros[1]:
        return f"{what}, {_percent(before)} as before{guess}"
    # Of one tensor, even one weight is told.
    what = "zeros lost" if zeros[1] < zeros[0] else "more zeros"
    return f"{what}, {zeros[0]:,} -> {zeros[1]:,}{guess}"


def _mask_guess(what: str, changes: Sequence[Change], difference: Difference) -> str:
    """What it looks like, where it is seen in all linear weights of some kinds."""
    touched = {change.name for change in changes}
    kinds = {kind_of(name) for name in touched}
    alike = {name for name in difference.linear if kind_of(name) in kinds}
    if not touched & alike or not touched >= alike:
        return ""
    if touched < set(difference.linear):
        # What an adapter adds leaves no zero; what leaves some is something else.
        filled = what == "mask lost" and len(touched) > 1 and not _are_back(changes)
        return " (an adapter merged?)" if filled else ""
    others = any(
        change.kind != "retyped" and change.name not in touched
        for change in difference.changes
    )
    if what != "mask lost":
        if what == "more zeros" and _norm_grew(changes):
            # Zeroing weights takes from a norm, and rounding them to a grid adds to it.
            return " (rounded to few bits?)"
        if others:
            return ""
        pruned = _shares(changes)[0] > _PRUNED
        return {
            "more zeros": " (pruned once more?)" if pruned else " (pruned?)",
            "zeros lost": " (averaged with another model, or pruned by less?)",
        }.get(what, " (pruned anew?)")
    if _are_back(changes) and not others:
        return " (the dense checkpoint, or mixed with it?)"
    return " (an adapter merged, or trained without the mask?)"


def _are_back(changes: Sequence[Change]) -> bool:
    """Whether weights that were pruned away are back, and others are as they were.

    Where only norms are known: these grow by more than small values make of them.
    """
    if all(change.exact for change in changes):
        return not any(change.exact.moved for change in changes if change.exact)
    return min(_norms(changes), default=0.0) > _RESTORED


def _norm_grew(changes: Iterable[Change]) -> bool:
    """Whether the norm of all weights together is larger than it was."""
    pairs = [(c.before, c.now) for c in changes if c.before and c.now]
    grown = math.fsum(now.norm**2 - before.norm**2 for before, now in pairs)
    return grown > 0


def _norms(changes: Iterable[Change]) -> list[float]:
    return [
        change.now.norm / change.before.norm
        for change in changes
        if change.before and change.now and change.before.norm
    ]


def _value_words(changes: Sequence[Change], difference: Difference) -> str:
    first, factor = changes[0], changes[0].factor or 0.0
    recognised = {
        "reordered": "the same values in another order",
        "constant": f"all weights are {factor:.6g} now",
        "scaled": f"values moved, norm x{abs(factor):.4g} (scaled by {factor:.4g}?)",
        "shifted": f"values moved (all by {factor:+.4g}?)",
    }
    return recognised.get(first.looks) or _moved_words(changes, difference)


def _moved_words(changes: Sequence[Change], difference: Difference) -> str:
    first = changes[0]
    before, now = first.before, first.now
    if before is None or now is None or not before.mask or not now.mask:
        return "other values"
    is_little = all(change.looks == "little" for change in changes)
    text = f"values moved{' a little' * is_little}"
    if norms := _norms(changes):
        low, high = f"{min(norms):.4g}", f"{max(norms):.4g}"
        text += f", norm x{low}" + (f" to x{high}" if high != low else "")
    else:
        text += ", all were zeros"
    if len(changes) == 1:
        if now.zeros != before.zeros:
            text += f", zeros {before.zeros:,} -> {now.zeros:,}"
        if not math.isclose(now.peak, before.peak, rel_tol=0.2):
            text += f", largest {before.peak:.3g} -> {now.peak:.3g}"
    if not is_little:
        return text
    if before.dtype != now.dtype:
        return f"{text} (rounded, {before.dtype} -> {now.dtype}?)"
    names = {change.name for change in changes}
    if difference.linear and names == set(difference.linear):
        return f"{text} (rounded, quantised and back, or trained further?)"
    return text


def _exact_words(changes: Sequence[Change], where: str) -> str:
    """Counts of weights, if they are known, and where they are."""
    exact = [change.exact for change in changes if change.exact]
    if not exact:
        return ""
    lost = sum(each.lost for each in exact)
    gained = sum(each.gained for each in exact)
    moved = sum(each.moved for each in exact)
    parts = [
        *([f"{_count(lost, 'zero')} lost"] if lost else []),
        *([f"{_count(gained, 'zero')} gained"] if gained else []),
    ]
    largest = max(each.largest for each in exact)
    by = f" by up to {largest:.3g}" if largest else ""
    if not moved and parts:
        return f"; {', '.join(parts)}{where}, no other weight moved"
    other = "other weight" if parts else "weight"
    return f"; {', '.join([*parts, f'{_count(moved, other)} moved'])}{by}{where}"


def _where(changes: Sequence[Change], difference: Difference) -> str:
    """Rows and columns in which weights differ, if it is not nearly everywhere."""
    first = changes[0]
    places = {
        (change.exact.rows, change.exact.columns) for change in changes if change.exact
    }
    if len(places) != 1 or first.now is None:
        return _slice(changes)
    rows, columns = places.pop()
    if len(rows) == len(columns) == 1 and len(first.now.shape) > 1:
        return f" at [{rows[0]}, {columns[0]}]"
    if len(first.now.shape) == 1:
        columns = ()
    parts = [
        f"{what}{'s' * (len(found) > 1)} {shown}"
        + _heads(first.name, what, found, difference)
        for what, found in (("row", rows), ("column", columns))
        if found and len(shown := ranges(found)) <= _LONGEST_RANGES
    ]
    return f" in {', '.join(parts)}" if parts else ""


def _slice(changes: Sequence[Change]) -> str:
    """The rows in which weights differ, if it is the same part of all tensors.

    A row or two may have come out the same by rounding, of a vector many.
    """
    parts = set()
    spans = []
    for change in changes:
        rows = change.exact.rows if change.exact else ()
        if not rows or change.now is None:
            return ""
        height = change.now.shape[0]
        span = rows[0] / height, (rows[-1] + 1) / height
        spans.append(span)
        if len(change.now.shape) > 1:
            if len(rows) < _NEARLY_ALL * (rows[-1] + 1 - rows[0]):
                return ""
            parts.add(tuple(f"{end:.0%}" for end in span))
    if len(parts) != 1:
        return ""
    first, last = parts.pop()
    ends = float(first[:-1]) / 100 - 0.005, float(last[:-1]) / 100 + 0.005
    if not all(ends[0] <= low and high <= ends[1] for low, high in spans):
        return ""
    return f" in the rows from {first} to {last} of each (what one process saves?)"


def _heads(name: str, what: str, found: Sequence[int], difference: Difference) -> str:
    """The attention heads that rows or columns are, if they are whole ones."""
    width = difference.head
    ours = r"\.o_proj\." if what == "column" else r"\.[qkv]_proj\."
    if not width or not re.search(ours, name):
        return ""
    heads = sorted({place // width for place in found})
    if len(found) != width * len(heads):
        return ""
    return f" (head{'s' * (len(heads) > 1)} {ranges(heads)})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _percent(share: float) -> str:
    """A share with enough digits to tell it from none and from all."""
    percent = 100 * share
    digits = 1
    while (
        digits < 6
        and share not in (0, 1)
        and float(f"{percent:.{digits}f}") in (0, 100)
    ):
        digits += 1
    return f"{percent:.{digits}f} %"


# ------------------------------------------------------------------------ other base


def _other_base(difference: Difference) -> _Line | None:
    """A line of its own where nearly all weights differ, embeddings too."""
    moved = [
        change
        for change in difference.changes
        if change.kind in ("values", "mask") and _norms([change])
    ]
    large = [
        change for change in moved if change.before and len(change.before.shape) > 1
    ]
    count = sum(difference.tensors[change.name] for change in moved)
    total = max(1, sum(difference.tensors.values()))
    outside = [change for change in large if layer_of(change.name) is None]
    if len(large) < _SEVERAL or not outside or count < _NEARLY_ALL * total:
        return None
    apart = sorted(map(_distance, large))[len(large) // 2]
    guess = ""
    if apart > _UNLIKE:
        guess = ", and by much: another model, or one trained anew?"
    elif all(change.looks == "little" for change in large):
        flushed = all(_mask_words(*_shares([c])) == "more zeros" for c in large)
        guess = (
            ", all by little: small weights became zeros?"
            if flushed
            else ", all by little: trained further, or rounded to another dtype?"
        )
    share = f"{len(moved)} of {len(difference.tensors)} tensors"
    if all(change.exact for change in moved):
        counts = (
            change.exact.lost + change.exact.gained + change.exact.moved
            for change in moved
            if change.exact
        )
        share += f", {_percent(sum(counts) / total)} of the weights"
    text = f"tensors all over the model differ, embeddings too ({share}){guess}"
    return _Line(_BASE, 0, text)


def _distance(change: Change) -> float:
    """How unlike two tensors are: about 0.7 for two that have nothing in common.

    Sums of n independent weights around zero differ by about what their norms are.
    """
    before, now = change.before, change.now
    if before is None or now is None:
        return 0.0
    return abs(now.sum - before.sum) / math.hypot(now.norm, before.norm)
