"""A comparison of models by both methods: table, conclusion in words, JSON document."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from ..comparison import Against, Comparison, Number, Row
from ..values import SCHEMA, Key
from .json import plain
from .text import number

_WIDTH = 88
"""Columns where nobody says how many there are."""
_NAMED = 3
"""Models that a sentence names one by one."""
_COLUMNS = (
    ("per token", 10),
    ("per word", 10),
    ("per byte", 9),
    ("bits/byte", 10),
    ("gap", 9),
    ("exponent", 9),
    ("zeros", 8),
)


def comparison_lines(
    comparison: Comparison, *, width: int = _WIDTH, columns: int | None = None
) -> list[str]:
    """The table, where its numbers come from, and what they mean.

    Prose is broken at ``width``; the table has ``columns``, if there are any.
    """
    return [
        *_table(comparison.rows, columns),
        "",
        *_sources(comparison.rows, width),
        "",
        *_wrapped(conclusion(comparison), width),
    ]


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """``{"schema": 1, "models": [...], "against": [...], "conclusion": [...]}``."""
    return {
        "schema": SCHEMA,
        "models": [_row_document(row) for row in comparison.rows],
        "dense": comparison.rows[0].name,
        "against": plain(comparison.against),
        "tokens_per_word": comparison.tokens_per_word,
        "conclusion": conclusion(comparison),
    }


def _row_document(row: Row) -> dict[str, Any]:
    document: dict[str, Any] = plain(row)
    numbers = {
        name: getattr(row, name)
        for name in (
            "token_perplexity",
            "word_perplexity",
            "byte_perplexity",
            "bits_per_byte",
            "gap",
            "exponent",
        )
    }
    return {"name": document.pop("name"), **plain(numbers), **document}


# ------------------------------------------------------------------------------- table


def _table(rows: Sequence[Row], columns: int | None) -> list[str]:
    """A line a model; where names leave no room for numbers, they stand above them."""
    width = max(len("model"), *(len(row.name) for row in rows))
    head = "".join(f"{title:>{size}}" for title, size in _COLUMNS)
    if columns is None or width + 1 + len(head) <= columns:
        return [
            f"{'model':<{width}} {head}",
            *(f"{row.name:<{width}} {_cells(row)}" for row in rows),
        ]
    lines = [f"model {head}"]
    for row in rows:
        lines += [row.name, f"{'':<5} {_cells(row)}"]
    return lines


def _cells(row: Row) -> str:
    cells = (
        number(row.token_perplexity),
        number(row.word_perplexity),
        number(row.byte_perplexity),
        number(row.bits_per_byte),
        _percent(row.gap),
        "-" if row.exponent is None else f"{row.exponent:.3f}",
        "-" if row.sparsity is None else f"{100 * row.sparsity:.2f} %",
    )
    sized = zip(cells, _COLUMNS, strict=True)
    return "".join(f"{cell:>{size}}" for cell, (_, size) in sized)


def _sources(rows: Sequence[Row], width: int) -> list[str]:
    """Which number comes from where, and what is missing and why."""
    lines = [
        *_method("per token: the Wanda code", rows, lambda row: row.token, width),
        *_method("per word and byte: lm-eval", rows, lambda row: row.word, width),
    ]
    zeros: dict[str, list[str]] = {}
    for row in rows:
        if row.sparsity is not None:
            zeros.setdefault(row.sparsity_source, []).append(row.name)
    title = "zeros, in the linear weights of the decoder layers"
    lines += _grouped(title, zeros, rows, width)
    for row in rows:
        lines += [f"{row.name}: not measured: {reason}" for reason in row.failures]
        lines += [f"{row.name}: {note}" for note in row.notes]
    return lines


def _method(
    title: str, rows: Sequence[Row], of: Callable[[Row], Number | None], width: int
) -> list[str]:
    groups: dict[str, list[str]] = {}
    keys: dict[str, None] = {}
    for row in rows:
        if (found := of(row)) is not None:
            keys[found.key] = None
            groups.setdefault(_source(found), []).append(row.name)
    return _grouped(f"{title}, {', '.join(keys)}", groups, rows, width)


def _grouped(
    title: str, groups: dict[str, list[str]], rows: Sequence[Row], width: int
) -> list[str]:
    if not groups:
        return []
    if len(groups) == 1:
        ((source, names),) = groups.items()
        if len(names) == len(rows):
            return [f"{title}: {source}"]
    lines = [title]
    for source, names in groups.items():
        lines += textwrap.wrap(
            f"{source}: {', '.join(names)}",
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines


def _source(found: Number) -> str:
    if found.source == "measured":
        return "measured now"
    if found.source == "published":
        return f"published ({found.reference})"
    return f"measured, recorded {found.reference}".rstrip()


# ------------------------------------------------------------------------------- words


def conclusion(comparison: Comparison) -> list[str]:
    """What the numbers mean, a paragraph each, for people who know neither method."""
    comparison = _with_short_names(comparison)
    dense = comparison.rows[0]
    others = list(zip(comparison.against, comparison.rows[1:], strict=True))
    paragraphs = [_of_one(against, row, dense) for against, row in others]
    untold = [pair for pair, text in zip(others, paragraphs, strict=True) if not text]
    compared = [
        *filter(None, paragraphs),
        *_costs_alone(dense, untold),
        *_without_gap(dense, [row for _, row in untold]),
    ]
    return [
        *_introduction(comparison),
        *_of_dense(dense, comparison),
        *compared,
        *(_assumed(dense, comparison.rows[1:]) if compared else ()),
        *(
            f"{against.name} is in {against.dtypes[0]} and {dense.name} in "
            f"{against.dtypes[1]}: that alone moves numbers."
            for against in comparison.against
            if against.dtypes
        ),
    ]


def _with_short_names(comparison: Comparison) -> Comparison:
    """``wanda-50`` for ``llama-2-7b/wanda-50`` where all are of one file or folder."""
    folders, names = zip(
        *(row.name.rpartition("/")[::2] for row in comparison.rows), strict=True
    )
    if len(set(folders)) > 1 or len(set(names)) < len(names):
        return comparison
    return replace(
        comparison,
        rows=tuple(
            replace(row, name=name)
            for row, name in zip(comparison.rows, names, strict=True)
        ),
        against=tuple(
            replace(against, name=name)
            for against, name in zip(comparison.against, names[1:], strict=True)
        ),
    )


def _introduction(comparison: Comparison) -> list[str]:
    known = [row for row in comparison.rows if row.exponent is not None]
    if not known:
        return []
    ratio = comparison.tokens_per_word
    if ratio is None:
        units = "A word is longer than a token"
    else:
        units = f"A word is about {ratio:.1f} tokens here"
    if all((row.gap or 0) > 0 for row in known):
        units += (
            ", so the number per word is higher, and the higher both are, the wider "
            "is the gap in percent."
        )
    else:
        units += ", so the two numbers are not the same quantity."
    text = (
        "The Wanda code gives a perplexity per token, lm-eval one per word; both are "
        f"right. {units} Two models with the same exponent, ln(per word) / ln(per "
        "token), have gaps that are the methods' own"
    )
    if any(against.exponent is not None for against in comparison.against):
        text += (
            "; it counts as the same if it leaves less than a tenth of a gap (in "
            "logarithms) unexplained"
        )
    text += "."
    if any(map(_is_of_part, known)):
        text += (
            " Only the first windows and pages were read, which are not the same "
            "text: the exponents are rough."
        )
    return [text]


def _is_of_part(row: Row) -> bool:
    """Whether only the first windows or pages were read."""
    return any(
        number is not None and Key.parse(number.key).first is not None
        for number in (row.token, row.word)
    )


def _of_dense(dense: Row, comparison: Comparison) -> list[str]:
    """What the dense model's row lacks, if others could have been held to it."""
    others = [row for row in comparison.rows[1:] if row.exponent is not None]
    lacks = dense.token is None or dense.word is None
    if dense.exponent is not None or not (others or not lacks):
        return []
    names = _listed([row.name for row in others])
    if lacks:
        missing = "lm-eval" if dense.word is None else "the Wanda code"
        return [
            f"{dense.name} has no number by {missing}, so its exponent is not known, "
            f"and whether the gap of {names} is the methods' or came with the pruning "
            "cannot be said. It can once both numbers of both models are measured the "
            "same way."
        ]
    text = _near_one(dense)
    return [f"{text} Whose the gap of {names} is cannot be said." if others else text]


def _near_one(row: Row) -> str:
    return (
        f"{row.name} has a perplexity so near 1 that its exponent would be a ratio of "
        "nothings."
    )


def _of_one(against: Against, row: Row, dense: Row) -> str:
    """The paragraph of a model that can be compared by both methods."""
    if row.failures and (row.token is None or row.word is None):
        return (
            f"{row.name} could not be measured by both methods, so whose its gap is "
            "cannot be said" + _cost_sentence(against, dense, row, start=". ")
        )
    if against.other_tokenizer:
        return (
            f"{row.name} has another tokenizer than {dense.name}: what a token is "
            "differs, so their perplexities per token are not comparable, and their "
            "exponents need not agree. Words and bytes are the same"
            + _cost_sentence(against, dense, row, start=": ")
        )
    different = {
        "per token": against.token_differences,
        "per word": against.word_differences,
    }
    reasons = [
        f"{unit}: {'; '.join(found)}" for unit, found in different.items() if found
    ]
    if reasons:
        return (
            f"{row.name} and {dense.name} are not comparable "
            + " / ".join(reasons)
            + _cost_sentence(against, dense, row, start=". ")
        )
    if against.exponent is None:
        near = None not in (row.token, row.word) and row.exponent is None
        return _near_one(row) + _cost_sentence(against, dense, row) if near else ""
    if against.token_change == against.word_change == 0:
        return (
            f"{row.name} has the numbers of {dense.name}, by both methods: nothing was "
            "lost, and the gap is the methods'."
        )
    return " ".join(
        (
            _exponents(against, row, dense),
            _prediction(against, row, dense),
            *_share(against, row, dense),
        )
    ) + _cost_sentence(against, dense, row)


def _exponents(against: Against, row: Row, dense: Row) -> str:
    one, other = f"{row.exponent:.3f}", f"{dense.exponent:.3f}"
    both = f"({one}, {other})"
    if against.exponent == "same":
        nearly = "" if one == other else "nearly "
        told = "as far as so little text tells, " if _is_of_part(row) else ""
        return (
            f"{row.name} has {nearly}the exponent of {dense.name} {both}: {told}its "
            f"gap of {_gap(row)} is the methods', not {_what(row, dense)}'s."
        )
    return f"{row.name} has a {against.exponent} exponent than {dense.name} {both}."


def _prediction(against: Against, row: Row, dense: Row) -> str:
    predicted = against.predicted
    said = "no finite number" if predicted is None else f"{predicted:.4g}"
    text = (
        f"With the exponent of {dense.name} it would read {said} per word; it reads "
        f"{row.word_perplexity:.4g}"
    )
    if against.off is None:
        return f"{text}."
    off = f"{abs(100 * against.off):.1f} %"
    if off == "0.0 %":
        return f"{text}, the same."
    return f"{text}, {off} {'more' if against.off > 0 else 'less'}."


def _share(against: Against, row: Row, dense: Row) -> list[str]:
    share, what = against.methods_share, _what(row, dense)
    if against.exponent == "same":
        return []
    if against.exponent == "smaller":
        return [f"So {what} has narrowed the gap that the methods make."]
    if share is None:
        return [f"So {what} has moved the two numbers apart."]
    if share < 0.5:
        return [
            f"So less than half of its gap of {_gap(row)} is the methods' "
            f"({100 * share:.0f} % of its logarithm); most of it came with {what}."
        ]
    return [
        f"So most of its gap of {_gap(row)} is the methods' ({100 * share:.0f} % of "
        f"its logarithm); the rest came with {what}."
    ]


def _cost_sentence(against: Against, dense: Row, row: Row, *, start: str = " ") -> str:
    """What the change cost by each method that says so."""
    costs = _costs(against)
    if not costs:
        return "" if start == " " else "."
    if _better(against):
        text = f"it is better than {dense.name}, {costs}."
    else:
        text = f"against {dense.name} it costs {costs}."
    sentence = text if start == ": " else text[0].upper() + text[1:]
    if _disagree(against):
        sentence += " The methods do not agree on which of the two is better."
    return f"{start}{sentence}"


def _assumed(dense: Row, others: Sequence[Row]) -> list[str]:
    """Published numbers have no windows that could be compared."""
    pairs = (
        pair
        for row in others
        for pair in ((dense.token, row.token), (dense.word, row.word))
    )
    if not any(
        number is not None and number.windows_digest is None
        for pair in pairs
        if None not in pair
        for number in pair
    ):
        return []
    return [
        "Published numbers come without their windows; that these were cut alike is "
        "assumed."
    ]


def _costs(against: Against) -> str:
    parts = [
        f"{_percent(change)} {unit}"
        for change, unit in (
            (against.token_change, "per token"),
            (against.word_change, "per word"),
        )
        if change is not None
    ]
    if against.bits_change is not None:
        parts.append(f"{against.bits_change:+.4f} bits per byte")
    return _listed(parts)


def _better(against: Against) -> bool:
    changes = [
        change
        for change in (against.token_change, against.word_change)
        if change is not None
    ]
    return bool(changes) and all(change < 0 for change in changes)


def _disagree(against: Against) -> bool:
    token, word = against.token_change, against.word_change
    return token is not None and word is not None and token * word < 0


def _costs_alone(dense: Row, others: Sequence[tuple[Against, Row]]) -> list[str]:
    """One paragraph for all models of which only the costs are known."""
    texts = []
    for unit in ("token", "word"):
        changes = {
            against.name: getattr(against, f"{unit}_change") for against, _ in others
        }
        parts = [
            f"{name} {_percent(change)}"
            for name, change in changes.items()
            if change is not None
        ]
        if parts:
            texts.append(f"Against {dense.name}, per {unit}: {', '.join(parts)}.")
    return texts


def _without_gap(dense: Row, others: Sequence[Row]) -> list[str]:
    """Which models lack a number, where that is all that is missing for an answer."""
    lacking = [
        row
        for row in others
        if not row.failures and (row.token, row.word).count(None) == 1
    ]
    if dense.exponent is None or not lacking:
        return []
    names = "These" if len(lacking) > _NAMED else _listed([row.name for row in lacking])
    one = len(lacking) == 1
    missing = {"lm-eval" if row.word is None else "the Wanda code" for row in lacking}
    method = missing.pop() if len(missing) == 1 else "one of the methods"
    return [
        f"{names} {'has' if one else 'have'} no number by {method}, so nothing can be "
        f"said of {'its gap' if one else 'their gaps'}."
    ]


def _what(row: Row, dense: Row) -> str:
    """``the pruning``, unless it is known that the model has no more zeros."""
    if row.sparsity is None or dense.sparsity is None:
        return "the pruning"
    return "the pruning" if row.sparsity > dense.sparsity + 0.001 else "the change"


def _percent(change: float | None) -> str:
    if change is None:
        return "-"
    return f"{100 * change:+.{0 if abs(change) >= 10 else 1}f} %"


def _gap(row: Row) -> str:
    assert row.gap is not None
    return f"{100 * row.gap:.0f} %"


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _wrapped(paragraphs: Iterable[str], width: int) -> list[str]:
    """Lines; a percent sign stays with its number."""
    return [
        line.replace("\0", " ")
        for text in paragraphs
        for line in textwrap.wrap(
            text.replace(" %", "\0%"),
            width,
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]
