"""The zoo's report: what each case did, and what every rule said about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .others import RULES
from .verdicts import POLICIES, Moved


@dataclass(frozen=True)
class Row:
    """A case on a base, and all that was measured.

    ``kl`` is the damage in nats a token, ``bits_change`` the relative change of bits
    per byte (where the token ids differ, so that there is no KL); ``broken`` says why
    there is neither. ``red`` is by policy, ``named`` of the policy ``any``, ``told``
    what its failure texts gave for a cause, ``culprit`` the patterns that name it.
    ``others`` says by rule whether it was green, None where the rule has nothing to
    say. ``moved`` is by metric what the gates
    measured, ``drift`` the divergence from the recorded windows that the package
    estimates, in nats a token, and ``losses`` are the windows, in nats and tokens.
    ``seconds`` are of one core.
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
    red: dict[str, bool]
    named: bool
    outcomes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    culprit: tuple[str, ...] = ()
    moved: dict[str, Moved] = field(default_factory=dict)
    others: dict[str, bool | None] = field(default_factory=dict)
    drift: float | None = None
    losses: tuple[tuple[float, int], ...] = ()
    seconds: float = 0.0


Test = Callable[[Row], bool]
_LETTERS = {
    "vLLM ppl": "V",
    "vLLM lm-eval": "v",
    "llm-compressor": "c",
    "llama.cpp": "l",
    "NNCF": "n",
}
_SEVERAL = 3


def markdown(rows: Sequence[Row], head: str) -> str:
    """The whole report."""
    defects = [row for row in rows if not row.harmless]
    changes = [row for row in rows if row.harmless]
    damaging = [row for row in defects if row.damaging]
    parts = [
        "# The zoo\n",
        head,
        "## Summary\n",
        summary(rows),
        "## Damaging defects that stay green\n",
        _missed(damaging),
        "## Damaging defects that are red under `any`, but not named\n",
        _listed(row for row in damaging if row.red["any"] and not row.named),
        "## Harmless changes that are red\n",
        _refused(changes),
        "## Perplexity, divergence, and the estimate of it\n",
        sensitivity(rows),
        "## Defects\n",
        "Perplexity and KL, that is `kl_divergence` from the dense model, are given in "
        "units of their default tolerances: beyond 1 and -1 is red. `drift` is the "
        "divergence from the recorded windows as it is estimated from their losses, in "
        "nats a token. Red under which policies; others' rules that are red: "
        f"{', '.join(f'{letter} {rule}' for rule, letter in _LETTERS.items())}.\n",
        table(defects),
        "## Harmless changes\n",
        changes_table(changes),
    ]
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Counts by rule: damaging defects caught and named, harmless changes refused."""
    damaging = [row for row in rows if not row.harmless and row.damaging]
    slight = [row for row in rows if not row.harmless and not row.damaging]
    harmless = [row for row in rows if row.harmless]
    cases = {row.case for row in rows if not row.harmless}
    changes = {row.case for row in harmless}
    first = (
        f"{len(cases)} defects and {len(changes)} harmless changes over "
        f"{len({row.base for row in rows})} checkpoints, each where it applies: "
        f"{len(damaging)} damaging, {len(slight)} below the threshold, "
        f"{len(harmless)} harmless.\n"
    )
    head = ("rule", "damaging, red", "red and named", "slight, red", "harmless, red")

    def counts(rule: str, red: Test, named: Test | None = None) -> tuple[str, ...]:
        return (
            rule,
            _share(damaging, red),
            _share(damaging, named) if named else "",
            _share(slight, red),
            _share(harmless, red),
        )

    body = [
        counts(
            f"`{policy}`",
            _is_red(policy),
            (lambda row: row.red["any"] and row.named) if policy == "any" else None,
        )
        for policy in POLICIES
    ]
    body += [counts(rule, _is_refused(rule)) for rule in RULES]
    return "\n".join([first, _grid(head, body), ""])


def table(rows: Sequence[Row]) -> str:
    """Every row, in the order of the bases and their cases."""
    head = ("defect", "damage", "perplexity", "KL", "drift", "red", "named", "others")
    parts = []
    for base in dict.fromkeys(row.base for row in rows):
        body = [
            (
                row.case,
                damage_text(row),
                _units(row, "token_perplexity"),
                _units(row, "kl_divergence"),
                _number(row.drift),
                " ".join(
                    [policy for policy in POLICIES if row.red[policy]]
                    if not row.red["any"]
                    else ["any"]
                )
                or "-",
                ("yes" if row.named else "no") if row.red["any"] else "",
                "".join(
                    letter
                    for rule, letter in _LETTERS.items()
                    if row.others[rule] is False
                ),
            )
            for row in rows
            if row.base == base
        ]
        parts += [f"### {base}\n", _grid(head, body), ""]
    return "\n".join(parts)


def changes_table(rows: Sequence[Row]) -> str:
    """By case, over all bases: where it is red, and by how much numbers moved."""
    body = []
    for case in dict.fromkeys(row.case for row in rows):
        ours = [row for row in rows if row.case == case]
        red = [row.base for row in ours if any(row.red.values())]
        moved = [
            _largest(
                abs(row.moved[metric].units) for row in ours if metric in row.moved
            )
            for metric in ("token_perplexity", "kl_divergence")
        ]
        drift = _largest(row.drift for row in ours if row.drift is not None)
        body.append(
            (case, ours[0].what, str(len(ours)), *moved, drift, ", ".join(red) or "-")
        )
    head = ("change", "", "bases", "perplexity", "KL", "drift", "red on")
    return "\n".join([_grid(head, body), ""])


def sensitivity(rows: Sequence[Row]) -> str:
    """How the three measures see the same windows."""
    defects = [
        row
        for row in rows
        if not row.harmless
        and {"token_perplexity", "kl_divergence"} <= row.moved.keys()
    ]
    head = ("", "defects", "perplexity red", "`kl` red", "median of KL / perplexity")
    body = []
    for pruned in (True, False):
        for word, lowest, highest in (
            ("damage below 0.001", 0.0, 1e-3),
            ("0.001 to 0.01", 1e-3, 1e-2),
            ("0.01 to 0.1", 1e-2, 1e-1),
            ("0.1 and more", 1e-1, float("inf")),
        ):
            some = [
                row
                for row in defects
                if row.base.endswith("/dense") != pruned
                and row.kl is not None
                and lowest <= row.kl < highest
            ]
            if not some:
                continue
            ratios = [
                abs(row.moved["kl_divergence"].units)
                / max(abs(row.moved["token_perplexity"].units), 1e-9)
                for row in some
            ]
            body.append(
                (
                    f"{'pruned' if pruned else 'dense'}, {word}",
                    str(len(some)),
                    *(
                        str(
                            sum(
                                any(
                                    abs(row.moved[m].units) > 1
                                    for m in metrics
                                    if m in row.moved
                                )
                                for row in some
                            )
                        )
                        for metrics in (
                            ("token_perplexity",),
                            ("kl_divergence", "top1_agreement"),
                        )
                    ),
                    f"{statistics.median(ratios):.2g}",
                )
            )
    lines = [
        "Of defects that leave the windows comparable, how many each measure sees, and "
        "how many times as many units of its tolerance the divergence from the dense "
        "model moves as the perplexity of the same windows:\n",
        _grid(head, body),
        "",
    ]
    estimated = [row for row in rows if row.drift is not None]
    for text, some, sign in (
        ("Damaging, smallest drift", [r for r in estimated if r.damaging], 1),
        ("Harmless, largest drift", [r for r in estimated if r.harmless], -1),
    ):
        order = sorted(
            (row for row in some if not (sign > 0 and row.harmless)),
            key=lambda row: sign * (row.drift or 0.0),
        )
        told = (
            f"{row.case} on {row.base} {_number(row.drift)} (KL {damage_text(row)})"
            for row in order[:_SEVERAL]
        )
        lines.append(f"{text}: {'; '.join(told)}.\n")
    return "\n".join(lines)


def damage_text(row: Row) -> str:
    """The damage in a cell; damaging in bold."""
    if row.broken:
        text = "broken"
    elif row.kl is not None:
        text = f"{row.kl:.2g}" if row.kl >= 1e-9 else "0"
    else:
        text = f"bits {(row.bits_change or 0) * 100:+.2g} %"
    return f"**{text}**" if row.damaging else text


def _missed(damaging: Sequence[Row]) -> str:
    lines = [
        f"- {row.case} ({row.what}) on {row.base}: KL {damage_text(row)}, perplexity "
        f"{_units(row, 'token_perplexity')} and `kl_divergence` "
        f"{_units(row, 'kl_divergence')} tolerances, drift {_number(row.drift)}; red "
        f"under {', '.join(p for p in POLICIES if row.red[p]) or 'none'}"
        for row in damaging
        if not row.red["any"]
    ]
    return "\n".join([*(lines or ["None."]), ""])


def _refused(changes: Sequence[Row]) -> str:
    lines = [
        f"- under `{policy}`: {row.case} on {row.base}"
        for policy in POLICIES
        for row in changes
        if row.red[policy]
    ]
    return "\n".join([*(lines or ["None."]), ""])


def _listed(rows: Iterable[Row]) -> str:
    by_case: dict[str, list[str]] = {}
    for row in rows:
        by_case.setdefault(f"{row.case} ({row.what})", []).append(row.base)
    lines = [f"- {case}: {', '.join(bases)}" for case, bases in by_case.items()]
    return "\n".join([*(lines or ["None."]), ""])


def _units(row: Row, metric: str) -> str:
    return f"{row.moved[metric].units:+.2g}" if metric in row.moved else "-"


def _largest(values: Iterable[float]) -> str:
    largest = max(values, default=None)
    return _number(largest if largest is None or largest > 1e-6 else 0.0)


def _is_red(policy: str) -> Test:
    return lambda row: row.red[policy]


def _is_refused(rule: str) -> Test:
    return lambda row: row.others[rule] is False


def _share(rows: Sequence[Row], test: Test) -> str:
    return f"{sum(map(test, rows))} of {len(rows)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
