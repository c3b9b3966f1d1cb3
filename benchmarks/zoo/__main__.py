"""Run the zoo and write its table: ``python -m benchmarks.zoo --out zoo.md``."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from pytest_pplguard.gates import paired
from pytest_pplguard.values import WindowScore

from . import others
from .all_cases import all_cases
from .bases import LENGTH, NAMES, USUAL, Maker
from .cases import Case
from .damage import Damage, Undamaged
from .site import Base, Text
from .table import Row, markdown, summary
from .verdicts import Gates, Outcome, site_of


def main(argv: Sequence[str] | None = None) -> int:
    """Make bases, run all cases over them, write the table."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = {
        (row.base, row.case): row
        for file in options.merge
        for row in msgspec.json.decode(file.read_bytes(), type=list[Row])
    }
    if not options.merge:
        for row in _run(options):
            rows[row.base, row.case] = row
            if options.json:
                options.json.write_bytes(msgspec.json.encode(list(rows.values())))
    text = markdown(list(rows.values()), _head(options, list(rows.values())))
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def _run(options: argparse.Namespace) -> Iterator[Row]:
    """Every case over every base."""
    cases = [
        case
        for case in all_cases().values()
        if not options.only or any(fnmatchcase(case.name, one) for one in options.only)
    ]
    with tempfile.TemporaryDirectory() as work:
        for number, base in enumerate(_bases(options)):
            room = Path(work, str(number))
            room.mkdir()
            rows = []
            for row in run_base(base, cases, room):
                rows.append(row)
                yield row
            print(summary(rows), file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.zoo", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.md", help="where to write the table")
    add("--json", type=Path, metavar="FILE", help="every row, as they come")
    add(
        "--merge",
        nargs="*",
        type=Path,
        default=(),
        metavar="FILE",
        help="run nothing: write the table of rows that --json kept; the last row of "
        "a case on a base counts",
    )
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
    add("--window", type=int, default=LENGTH, help="tokens (default: %(default)s)")
    add("--limit", type=int, help="windows (default: 40; 16 for --base)")
    return parser


def _bases(options: argparse.Namespace) -> Iterator[Base]:
    if not options.base:
        maker = Maker(options.cache, windows=options.limit or 40, window=options.window)
        yield from map(maker.make, options.bases)
        return
    name, _, path = (options.corpus or "").partition("=")
    if not path:
        raise SystemExit("--base needs --corpus NAME=PATH")
    yield from given_bases(
        options.base[0],
        options.base[1],
        Text(name, Path(path).resolve(), options.window, options.limit or 16, pages=1),
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


def run_base(base: Base, cases: Sequence[Case], folder: Path) -> Iterator[Row]:
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
    for case in cases:
        if not case.fits(base):
            continue
        started = time.process_time()
        row = run_case(case, base, gates, undamaged, folder)
        row = replace(row, seconds=time.process_time() - started)
        said = "red" if row.red["any"] else "green"
        print(f"{base.name} {case.name}: {said}, {row.seconds:.1f} s", file=sys.stderr)
        yield row


def run_case(
    case: Case, base: Base, gates: Gates, undamaged: Undamaged, folder: Path
) -> Row:
    """Change a copy, measure the damage, ask every rule."""
    with site_of(case, base, folder) as (site, culprit):
        with contextlib.redirect_stderr(io.StringIO()):
            damage = undamaged.damage_of(site.spec)
        outcome = gates.judge(site.spec, options=site.options, threads=site.threads)
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
        red=outcome.red,
        named=outcome.names(culprit),
        outcomes=outcome.outcomes,
        told=outcome.told,
        culprit=culprit,
        moved=outcome.moved,
        others=others.verdicts(_numbers(undamaged, damage)),
        drift=_drift(gates.windows, outcome),
        losses=tuple((one.nll_sum, one.scored) for one in outcome.windows),
    )


def _drift(recorded: Sequence[WindowScore], outcome: Outcome) -> float | None:
    """What the package estimates from the windows; None where they are others."""
    if "token_perplexity" not in outcome.moved:
        return None
    return paired(outcome.windows, recorded).divergence


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


def _head(options: argparse.Namespace, rows: Sequence[Row]) -> str:
    seconds = sum(row.seconds for row in rows)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "lm-eval")
    )
    gated = (
        f"{options.corpus.partition('=')[0]}, the first {options.limit or 16}"
        if options.base
        else f"the demo's, the first {options.limit or 40}"
    )
    return (
        "Damage is mean KL(undamaged || damaged) in nats a token on held-out text, by "
        "plain transformers in float64; 0.01 or more, a change of bits per byte by 1 % "
        "or more where token ids differ, or no finite output at all is damaging and "
        f"bold. The gates read another text ({gated} windows of {options.window} "
        f"tokens, and pages of it by lm-eval). {len(rows)} runs in "
        f"{seconds / 60:.0f} minutes of one core ({platform.machine()}, CPU, "
        f"Python {platform.python_version()}, {versions}).\n"
    )


if __name__ == "__main__":
    sys.exit(main())
