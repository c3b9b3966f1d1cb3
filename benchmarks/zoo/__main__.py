"""Run the zoo and write its table: ``python -m benchmarks.zoo --out zoo.md``."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from . import others
from .bases import NAMES, USUAL, Maker
from .cases import Case, all_cases
from .damage import Damage, Undamaged
from .site import Base, Text
from .table import Row, divergence, markdown, rms_shift, summary
from .verdicts import POLICIES, Gates, judge_case, site_of


def main(argv: Sequence[str] | None = None) -> int:
    """Make bases, run all cases over them, write the table."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    cases = [
        case
        for case in all_cases().values()
        if not options.only or any(fnmatchcase(case.name, one) for one in options.only)
    ]
    rows: list[Row] = []
    policies: tuple[str, ...] = POLICIES
    with tempfile.TemporaryDirectory() as work:
        for number, base in enumerate(_bases(options)):
            room = Path(work, str(number))
            room.mkdir()
            gates, fresh = run_base(base, cases, room)
            # A dense checkpoint has no sparsity gate that could tell.
            policies = tuple(one for one in policies if one in gates.built)
            rows += fresh
            print(summary(fresh, policies), file=sys.stderr, flush=True)
    seconds = time.perf_counter() - started
    text = markdown(rows, policies, _head(rows, policies, seconds))
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    if options.json:
        lines = (json.dumps(asdict(row)) for row in rows)
        options.json.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.zoo", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.md", help="where to write the table")
    add("--json", type=Path, metavar="FILE", help="every row as a line of JSON")
    add(
        "--bases",
        nargs="*",
        choices=NAMES,
        default=USUAL,
        help="checkpoints of the zoo's own",
    )
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir(), "pplguard-zoo"),
        help="where trained checkpoints are kept",
    )
    add("--only", nargs="*", metavar="GLOB", help="only cases of these names")
    add(
        "--base",
        nargs=2,
        type=Path,
        metavar=("DENSE", "PRUNED"),
        help="run over these folders, and not over the zoo's own",
    )
    add("--corpus", metavar="NAME=PATH", help="text for --base; its end is held out")
    add("--window", type=int, default=128, help="tokens, for --base (default: 128)")
    add("--limit", type=int, default=16, help="windows, for --base (default: 16)")
    return parser


def _bases(options: argparse.Namespace) -> Iterator[Base]:
    if not options.base:
        maker = Maker(options.cache)
        yield from map(maker.make, options.bases)
        return
    name, _, path = (options.corpus or "").partition("=")
    if not path:
        raise SystemExit("--base needs --corpus NAME=PATH")
    yield from given_bases(
        options.base[0],
        options.base[1],
        Text(name, Path(path).resolve(), options.window, options.limit, pages=1),
    )


def given_bases(dense: Path, pruned: Path, text: Text) -> Iterator[Base]:
    """Somebody's dense checkpoint and its pruned one.

    The gates read the beginning of the text; the last tenth is held out for the
    damage, the tenth before it is what a fine-tuning run sees.
    """
    content = text.path.read_text(encoding="utf-8")
    lines = content.splitlines(keepends=True)
    tenth = max(1, len(lines) // 10)
    for folder in (dense.resolve(), pruned.resolve()):
        yield Base(
            name=folder.name,
            folder=folder,
            dense=dense.resolve(),
            text=text,
            heldout=_short("".join(lines[-tenth:]), folder, text),
            training="".join(lines[-2 * tenth : -tenth]),
        )


def _short(heldout: str, folder: Path, text: Text) -> str:
    """As much of it as the gates read, so that a large vocabulary fits into memory."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    joined = " ".join(line.strip() for line in heldout.splitlines() if line.strip())
    ids = tokenizer(joined, add_special_tokens=False, verbose=False).input_ids
    return str(tokenizer.decode(ids[: text.window * text.windows]))


def run_base(
    base: Base, cases: Sequence[Case], folder: Path
) -> tuple[Gates, list[Row]]:
    """Record the base, then run every case that fits it."""
    gates = Gates.record(base, folder / "gates")
    undamaged = Undamaged(
        base.folder,
        base.heldout,
        window=base.text.window,
        windows=base.text.windows,
    )
    print(
        f"{base.name}: perplexity {undamaged.perplexity:.2f}, by frequencies alone "
        f"{undamaged.unigram:.0f}",
        file=sys.stderr,
    )
    if not undamaged.perplexity < undamaged.unigram / 2:
        raise SystemExit(f"{base.name} has learnt nothing that could be damaged")
    rows = []
    for case in cases:
        if not case.fits(base):
            continue
        started = time.perf_counter()
        row = run_case(case, base, gates, undamaged, folder)
        rows.append(row)
        seconds = time.perf_counter() - started
        said = "red" if row.red["any"] else "green"
        print(f"{base.name} {case.name}: {said}, {seconds:.1f} s", file=sys.stderr)
    return gates, rows


def run_case(
    case: Case, base: Base, gates: Gates, undamaged: Undamaged, folder: Path
) -> Row:
    """Change a copy, measure the damage, ask every rule."""
    with site_of(case, base, folder) as (site, culprit):
        with contextlib.redirect_stderr(io.StringIO()):
            damage = undamaged.damage_of(site.spec)
        outcome = judge_case(case, site, culprit, gates)
    verdict = outcome.verdict
    windows = verdict.windows if verdict.comparable else ()
    return Row(
        base=base.name,
        case=case.name,
        kind=case.kind,
        what=case.what,
        harmless=case.harmless,
        damaging=damage.damaging,
        kl=damage.kl,
        bits_change=damage.bits_change,
        broken=damage.broken,
        change=verdict.change,
        red=outcome.red,
        named=outcome.named,
        outcomes=tuple(f"{g['key']} {g['outcome']}" for g in verdict.gates),
        others=others.verdicts(_numbers(undamaged, damage)),
        rms=rms_shift(gates.windows, windows),
        divergence=divergence(gates.windows, windows),
    )


def _numbers(undamaged: Undamaged, damage: Damage) -> others.Numbers:
    """Before and after, on the held-out text."""
    size, tokens = undamaged.size, undamaged.tokens
    before = others.perplexity(undamaged.bits, size=size, tokens=tokens)
    after = (
        math.nan
        if damage.bits is None
        else others.perplexity(damage.bits, size=size, tokens=tokens)
    )
    return others.Numbers(
        perplexity=before,
        score=undamaged.accuracy,
        new_perplexity=after,
        new_score=damage.accuracy or 0.0,
        crashed=damage.accuracy is None,
    )


def _head(rows: Sequence[Row], policies: Sequence[str], seconds: float) -> str:
    missing = [policy for policy in POLICIES if policy not in policies]
    later = f" This version cannot check {', '.join(missing)} yet." if missing else ""
    return (
        "Damage is mean KL(undamaged || damaged) in nats a token on held-out text, by "
        "plain transformers in float64; 0.01 or more, a change of bits per byte by 1 % "
        "or more where token ids differ, or no finite output at all is damaging and "
        f"bold. {len(rows)} runs in {seconds / 60:.1f} minutes.{later}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
