"""The zoo's table: what each case did, and what every rule said about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .others import RULES

Windows = Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Row:
    """A case on a base, and all that was measured.

    ``kl`` is in nats a token, ``bits_change`` the relative change of bits per byte
    (where the token ids differ, so that there is no KL); ``broken`` says why there is
    neither. ``red`` and ``named`` are by policy of ``weights``; ``others`` says by rule
    whether it was green, None where the rule has nothing to say. The estimates
    are of :func:`rms_shift` and :func:`divergence`.
    """

    base: str
    case: str
    kind: str
    what: str
    harmless: bool
    damaging: bool
    kl: float | None
    bits_change: float | None
    broken: str
    change: float | None
    red: dict[str, bool]
    named: dict[str, bool]
    outcomes: tuple[str, ...]
    others: dict[str, bool | None]
    rms: float | None = None
    divergence: float | None = None


Test = Callable[[Row], bool]
_COLOURS = {True: "green", False: "red", None: "n/a"}


def rms_shift(before: Windows, after: Windows) -> float | None:
    """Root mean square of the windows' differences of mean NLL, nats a token.

    None where the windows are not the same.
    """
    pairs = _differences(before, after)
    if not pairs:
        return None
    return math.sqrt(math.fsum((d / n) ** 2 for d, n in pairs) / len(pairs))


def divergence(before: Windows, after: Windows) -> float | None:
    """The KL divergence that the scatter of the windows' differences lets one expect.

    With ``d`` the difference of log-likelihood of one token, KL is about ``Var(d)/2``
    for a small change (the second order of ``E exp(d) = 1``). A window's difference
    ``D`` is a sum over its ``n`` tokens, so that ``Var(D) / (2 n)``, centred on
    the mean per token, estimates it, as far as neighbouring tokens are independent.
    None where the windows are not the same, or fewer than two.
    """
    pairs = _differences(before, after)
    if len(pairs) < 2:
        return None
    mean = math.fsum(d for d, _ in pairs) / sum(n for _, n in pairs)
    parts = [(d - mean * n) ** 2 / (2 * n) for d, n in pairs]
    return math.fsum(parts) / (len(pairs) - 1)


def _differences(before: Windows, after: Windows) -> list[tuple[float, int]]:
    if [n for _, n in before] != [n for _, n in after]:
        return []
    return [(new - old, n) for (old, n), (new, _) in zip(before, after, strict=True)]


# -------------------------------------------------------------------------- Markdown


def markdown(rows: Sequence[Row], policies: Sequence[str], head: str) -> str:
    """The whole report."""
    defects = [row for row in rows if not row.harmless]
    changes = [row for row in rows if row.harmless]
    parts = [
        "# The zoo\n",
        head,
        "## Summary\n",
        summary(rows, policies),
        "## Damaging defects that stay green\n",
        _missed(defects, policies),
        "## Damaging defects that are red, but whose culprit is not named\n",
        _listed(row for row in defects if row.damaging and _is_nameless(row)),
        "## Harmless changes that are red\n",
        _listed(row for row in changes if any(row.red.values())),
        "## What a more sensitive rule would see\n",
        sensitive(rows),
        "## Defects\n",
        table(defects, policies),
        "## Harmless changes\n",
        table(changes, policies),
    ]
    return "\n".join(parts)


def summary(rows: Sequence[Row], policies: Sequence[str]) -> str:
    """Counts by rule: damaging defects caught and named, harmless changes refused."""
    damaging = [row for row in rows if not row.harmless and row.damaging]
    slight = [row for row in rows if not row.harmless and not row.damaging]
    harmless = [row for row in rows if row.harmless]
    cases = {row.case for row in rows if not row.harmless}
    changes = {row.case for row in harmless}
    lines = [
        f"{len(cases)} defects and {len(changes)} harmless changes over "
        f"{len({row.base for row in rows})} checkpoints, each where it applies: "
        f"{len(damaging)} damaging, {len(slight)} below the threshold, "
        f"{len(harmless)} harmless.\n",
    ]
    head = ("rule", "damaging, red", "culprit named", "slight, red", "harmless, red")

    def counts(rule: str, red: Test, named: Test | None = None) -> tuple[str, ...]:
        return (
            rule,
            _share(damaging, red),
            _share(damaging, named) if named else "",
            _share(slight, red),
            _share(harmless, red),
        )

    body = [
        counts(f"`{policy}`", _is_red(policy), _is_named(policy)) for policy in policies
    ]
    body += [counts(rule, _is_refused(rule)) for rule in RULES]
    return "\n".join([*lines, _grid(head, body), ""])


def table(rows: Sequence[Row], policies: Sequence[str]) -> str:
    """Every row, in the order of the cases."""
    head = (
        *("case", "base", "KL", "perplexity"),
        *(f"`{policy}`" for policy in policies),
        *("named", *RULES),
    )
    body = [
        (
            row.case,
            row.base,
            kl_text(row),
            "-" if row.change is None else f"{row.change * 100:+.3g} %",
            *("red" if row.red[policy] else "green" for policy in policies),
            "" if row.harmless else "yes" if _all_named(row) else "no",
            *(_COLOURS[row.others[rule]] for rule in RULES),
        )
        for row in rows
    ]
    return "\n".join([_grid(head, body), ""])


def sensitive(rows: Sequence[Row]) -> str:
    """The estimates for what is green though it damages, and the largest harmless."""
    interesting = [
        row
        for row in rows
        if row.rms is not None
        and (row.harmless or (row.damaging and not row.red["any"]) or not row.damaging)
    ]
    moved = [row for row in interesting if not row.harmless or (row.rms or 0) > 0]
    still = len(interesting) - len(moved)
    head = ("case", "base", "", "KL", "perplexity", "rms shift", "divergence")
    body = [
        (
            row.case,
            row.base,
            "harmless" if row.harmless else "damaging" if row.damaging else "slight",
            kl_text(row),
            "-" if row.change is None else f"{row.change * 100:+.3g} %",
            _number(row.rms),
            _number(row.divergence),
        )
        for row in sorted(moved, key=lambda row: -(row.divergence or 0))
    ]
    caught = [
        row
        for row in rows
        if not row.harmless and row.damaging and row.divergence is not None
    ]
    lines = [_grid(head, body), "", f"{still} harmless changes: exactly 0 in both.\n"]
    for name in ("rms", "divergence"):
        order = sorted((getattr(row, name), n) for n, row in enumerate(caught))
        told = (
            f"{row.case} on {row.base} {_number(value)} (KL {kl_text(row)})"
            for value, row in ((value, caught[n]) for value, n in order[:3])
        )
        lines.append(f"Damaging with the smallest {name}: {'; '.join(told)}.\n")
    return "\n".join(lines)


def kl_text(row: Row) -> str:
    """The damage in a cell; damaging in bold."""
    if row.broken:
        text = "broken"
    elif row.kl is not None:
        text = f"{row.kl:.2g}" if row.kl >= 1e-9 else "0"
    else:
        text = f"bits {(row.bits_change or 0) * 100:+.2g} %"
    return f"**{text}**" if row.damaging else text


def _missed(defects: Iterable[Row], policies: Sequence[str]) -> str:
    rows = [row for row in defects if row.damaging]
    lines = [
        f"- under `{policy}`: {row.case} on {row.base}, KL {kl_text(row)}, "
        f"perplexity {(row.change or 0) * 100:+.3g} %"
        for policy in policies
        for row in rows
        if not row.red[policy]
    ]
    return "\n".join([*(lines or ["None."]), ""])


def _listed(rows: Iterable[Row]) -> str:
    by_case: dict[str, list[str]] = {}
    for row in rows:
        by_case.setdefault(f"{row.case} ({row.what})", []).append(row.base)
    lines = [f"- {case}: {', '.join(bases)}" for case, bases in by_case.items()]
    return "\n".join([*(lines or ["None."]), ""])


def _is_red(policy: str) -> Test:
    return lambda row: row.red[policy]


def _is_named(policy: str) -> Test:
    return lambda row: row.red[policy] and row.named[policy]


def _is_refused(rule: str) -> Test:
    return lambda row: row.others[rule] is False


def _is_nameless(row: Row) -> bool:
    return row.red["any"] and not _all_named(row)


def _all_named(row: Row) -> bool:
    return row.named["any"]


def _share(rows: Sequence[Row], test: Test) -> str:
    return f"{sum(map(test, rows))} of {len(rows)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
