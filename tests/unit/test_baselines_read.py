"""Tests that baseline files are read in full, and that every trap is explained."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_pplguard.baselines import parse_baseline, read, read_baseline
from pytest_pplguard.errors import BaselineError
from pytest_pplguard.values import (
    CheckpointEntry,
    Gates,
    Recorded,
    RecordedFingerprint,
    RelativeGate,
    Source,
    SparsityGate,
    Tolerance,
)

FILE = "baselines/llama.yaml"
DIGEST = "sha256:" + "0a" * 32
TEXT = dedent(
    f"""\
    schema: 1
    model: meta-llama/Llama-2-7b-hf
    checkpoints:
      dense:
        recorded:
          wanda/wikitext2:4096:
            token_perplexity: 5.12
            source: {{kind: published, reference: Wanda table 2, digits: 2}}
      wanda-50:
        path: out/x
        allow_keys: [lm_head.*]
        gates:
          wanda/wikitext2:4096: {{token_perplexity: {{rel: 0.005}}}}
          lm-eval/wikitext:4096:
            word_perplexity: {{abs: 1, max: 20, direction: no-worse}}
            byte_perplexity:
            bits_per_byte: {{}}
          relative: {{to: dense, key: wanda/wikitext2:4096, max_ratio: 1.30}}
          sparsity: {{fraction: 0.5, pattern: "2:4", scope: layer}}
          weights: mask
          against: dense
        recorded:
          wanda/wikitext2:4096:
            token_perplexity: 6.3062154
            windows: 83
            units: {{tokens: 339885}}
            windows_digest: {DIGEST}
            corpus_digest: {DIGEST}
            evidence: llama/wanda-50/wanda-wikitext2-4096-3f2a91c0d4e7.json
            source: {{kind: measured}}
            first: {{token_perplexity: 6.25, date: 2026-11-23}}
            published: {{token_perplexity: 6.3, reference: r, digits: 1}}
            environment: {{dtype: float16, torch: 2.6.0, scale: 0.5, native: yes}}
            weights_digest: {DIGEST}
          fingerprint:
            digest: {DIGEST}
            tensors: 272
            linear: 210
            weights: 106168320
            zeros: 53084160
            evidence: llama/wanda-50/fingerprint-3f2a91c0d4e7.json
            date: 2026-11-25
    """
)
KEY = "wanda/wikitext2:4096"
GATES = "checkpoint wanda-50, gates"
RECORDED = f"checkpoint wanda-50, recorded, {KEY}"
FINGERPRINT = "checkpoint wanda-50, recorded, fingerprint"


def test_every_field_of_schema_1() -> None:
    baseline = parse_baseline(TEXT, FILE)
    assert (baseline.path, baseline.model) == (FILE, "meta-llama/Llama-2-7b-hf")
    assert list(baseline.checkpoints) == ["dense", "wanda-50"]
    assert baseline.checkpoints["wanda-50"] == CheckpointEntry(
        name="wanda-50",
        path="out/x",
        allow_keys=("lm_head.*",),
        gates=Gates(
            metrics={
                KEY: {"token_perplexity": Tolerance(rel=0.005)},
                "lm-eval/wikitext:4096": {
                    "word_perplexity": Tolerance(
                        abs=1.0, max=20.0, direction="no-worse"
                    ),
                    "byte_perplexity": Tolerance(),
                    "bits_per_byte": Tolerance(),
                },
            },
            relative=RelativeGate(to="dense", key=KEY, max_ratio=1.3),
            sparsity=SparsityGate(fraction=0.5, pattern="2:4", scope="layer"),
            weights="mask",
            against="dense",
        ),
        recorded={
            KEY: Recorded(
                metrics={"token_perplexity": 6.3062154},
                source=Source(kind="measured"),
                windows=83,
                units={"tokens": 339885},
                windows_digest=DIGEST,
                corpus_digest=DIGEST,
                evidence="llama/wanda-50/wanda-wikitext2-4096-3f2a91c0d4e7.json",
                first={"token_perplexity": 6.25, "date": "2026-11-23"},
                published={"token_perplexity": 6.3, "reference": "r", "digits": 1},
                environment={
                    "dtype": "float16",
                    "torch": "2.6.0",
                    "scale": 0.5,
                    "native": True,
                },
                weights_digest=DIGEST,
            )
        },
        fingerprint=RecordedFingerprint(
            digest=DIGEST,
            tensors=272,
            linear=210,
            weights=106168320,
            zeros=53084160,
            evidence="llama/wanda-50/fingerprint-3f2a91c0d4e7.json",
            date="2026-11-25",
        ),
        lines={
            "": 9,
            "gates": 12,
            f"gates.{KEY}": 13,
            f"gates.{KEY}.token_perplexity": 13,
            "gates.lm-eval/wikitext:4096": 14,
            "gates.lm-eval/wikitext:4096.word_perplexity": 15,
            "gates.lm-eval/wikitext:4096.byte_perplexity": 16,
            "gates.lm-eval/wikitext:4096.bits_per_byte": 17,
            "gates.relative": 18,
            "gates.sparsity": 19,
            "gates.weights": 20,
            "gates.against": 21,
            f"recorded.{KEY}": 23,
            "recorded.fingerprint": 35,
        },
        reference="dense",
    )
    assert baseline.checkpoints["dense"].recorded[KEY].source == Source(
        kind="published", reference="Wanda table 2", digits=2
    )


def test_the_reference_is_the_one_written_else_an_entry_called_dense() -> None:
    def references(text: str) -> list[str | None]:
        entries = parse_baseline(text, FILE).checkpoints.values()
        return [entry.reference for entry in entries]

    assert references(TEXT) == [None, "dense"]
    assert references(
        TEXT.replace("  dense:", "  whole:", 1)
        .replace(": dense\n", ": whole\n")
        .replace("to: dense", "to: whole")
    ) == [None, None]
    other = TEXT + "  tuned: {}\n"
    assert references(other) == [None, "dense", "dense"]
    other = other.replace("path: out/x", "reference: tuned")
    assert references(other) == [None, "tuned", "dense"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
    ],
    ids=["CRLF", "byte order mark", "no final newline"],
)
def test_the_form_of_the_text_does_not_matter(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "llama.yaml"
    path.write_bytes(change(TEXT).encode())
    assert read_baseline(path).checkpoints == parse_baseline(TEXT, FILE).checkpoints


def test_marks_and_empty_sections() -> None:
    text = "%YAML 1.1\n---\nschema: 1\nmodel: m\ncheckpoints:\n...\n"
    assert parse_baseline(text, FILE).checkpoints == {}
    text = "schema: 1\nmodel: m\ncheckpoints:\n  a:\n  b: {gates:, recorded: ~}\n"
    entries = parse_baseline(text, FILE).checkpoints
    assert entries["a"] == CheckpointEntry(name="a", lines={"": 4})
    assert entries["b"].gates == Gates()


MISSING_METRIC = f"write for example {KEY}: {{token_perplexity: {{rel: 0.005}}}}"
RESTORE = "restore it from version control or record again with `pplguard update`"


CASES = [
    # -- YAML itself
    (
        '"2:4"',
        "2:4",
        f"19: {GATES}, sparsity, pattern: unquoted 2:4 is read by YAML as the "
        'number 124: quote it: "2:4"',
    ),
    (
        "rel: 0.005",
        "rel: 1e-3",
        f"13: {GATES}, {KEY}, token_perplexity, rel: YAML reads 1e-3 as a text, "
        "not as a number: write 1.0e-3 or 0.001 (or quote it, "
        '"1e-3", if a text is meant)',
    ),
    (
        "rel: 0.005",
        "rel: 1.5e7",
        f"13: {GATES}, {KEY}, token_perplexity, rel: YAML reads 1.5e7 as a text, "
        "not as a number: write 1.5e+7 or 15000000 (or quote it, "
        '"1.5e7", if a text is meant)',
    ),
    (
        "rel: 0.005",
        "rel: .nan",
        f"13: {GATES}, {KEY}, token_perplexity, rel: .nan is not a finite number: "
        "write a finite one",
    ),
    (
        "token_perplexity: 6.3062154",
        "token_perplexity: -.inf",
        f"24: {RECORDED}, token_perplexity: -.inf is not a finite number: write "
        "a finite one",
    ),
    (
        "token_perplexity: 6.3062154",
        "token_perplexity: 1.0e+999",
        f"24: {RECORDED}, token_perplexity: 1.0e+999 is not a finite number: "
        "write a finite one",
    ),
    (
        "windows: 83",
        "windows: 083\n        # 0123",
        f"25: {RECORDED}: windows must be a whole number, not the text '083': "
        "remove the quotes",
    ),
    (
        "windows: 83",
        "windows: 0123",
        f"25: {RECORDED}, windows: 0123 is read by YAML as the octal number 83: "
        'drop the leading zero, or quote it: "0123"',
    ),
    (
        "windows: 83",
        "windows: " + "9" * 5000,
        f"25: {RECORDED}, windows: 999999999999999999... is too long for a whole "
        "number",
    ),
    (
        "windows: 83",
        "windows: 0x_",
        f"25: {RECORDED}, windows: 0x_ is no number",
    ),
    (
        "path: out/x",
        "path: out/x\n    path: out/y",
        "11: checkpoint wanda-50: the key 'path' is already on line 10: keep one "
        "of the two",
    ),
    (
        "path: out/x",
        "path: &here out/x",
        "10: checkpoint wanda-50, path: the anchor &here is not allowed here: "
        "remove it and write the value out where it is used",
    ),
    (
        "path: out/x",
        "path: *here",
        "10: checkpoint wanda-50, path: the alias *here is not allowed here: "
        "write the value out",
    ),
    (
        "path: out/x",
        "path: !!python/name:os.system x",
        "10: checkpoint wanda-50, path: the tag !!python/name:os.system is not "
        "allowed here: remove it (quote texts)",
    ),
    (
        "path: out/x",
        "path: ! x",
        "10: checkpoint wanda-50, path: the tag ! is not allowed here: remove it "
        "(quote texts)",
    ),
    (
        "path: out/x",
        "<<: {path: x}",
        "10: checkpoint wanda-50: the merge key << is not allowed here: write the "
        "fields out",
    ),
    (
        "  dense:\n",
        "  50:\n",
        "4: checkpoints: YAML reads the key 50 as a number, not as a text: "
        'quote it: "50"',
    ),
    (
        "  dense:\n",
        "  no:\n",
        "4: checkpoints: YAML reads the key no as a yes/no value, not as a text: "
        'quote it: "no"',
    ),
    (
        "  dense:\n",
        "  ~:\n",
        "4: checkpoints: YAML reads the key ~ as an empty value, not as a text: "
        'quote it: "~"',
    ),
    (
        "  dense:\n",
        "  ?\n  :\n",
        "4: checkpoints: the key before the colon is missing",
    ),
    (
        "  dense:\n",
        "  ? [a]\n  :\n",
        "4: checkpoints: a mapping or list cannot be a key here: write a text",
    ),
    (
        "    path: out/x\n",
        "<<<<<<< HEAD\n    path: out/x\n=======\n    path: y\n>>>>>>> other\n",
        "10: a merge-conflict marker (<<<<<<<): resolve the conflict, keep one "
        "side and remove the marker lines",
    ),
    (
        "    path: out/x\n",
        "    path: out/x\n=======\n",
        "11: a merge-conflict marker (=======): resolve the conflict, keep one "
        "side and remove the marker lines",
    ),
    (
        "    path: out/x\n",
        "    path: out/x\r\n>>>>>>> branch\r\n",
        "11: a merge-conflict marker (>>>>>>>): resolve the conflict, keep one "
        "side and remove the marker lines",
    ),
    (
        "    path: out/x\n",
        "\tpath: out/x\n",
        "10: a tab where YAML allows only spaces: use spaces",
    ),
    (
        "path: out/x",
        "path:\tout/x",
        "10: a tab where YAML allows only spaces: use spaces",
    ),
    (
        "path: out/x",
        "path: out/x: y",
        "10: not valid YAML: mapping values are not allowed here: mend this line "
        "or the one above",
    ),
    (
        "path: out/x",
        "path: \x07",
        "10: the character U+0007 may not stand in YAML: remove it",
    ),
    (
        "path: out/x",
        "path: " + "[" * 100_000,
        "10: checkpoint wanda-50, path: nested deeper than 20 levels: flatten",
    ),
    (
        "    path: out/x\n",
        "    path: out/x\n---\n",
        "11: a second YAML document starts here: keep one per file",
    ),
    # -- the file
    (
        "schema: 1",
        "schema: 2",
        "1: was written by a newer pytest-pplguard (schema 2, this version reads "
        "1): upgrade",
    ),
    ("schema: 1", "schema: 0", "1: schema 0 never existed: write 1"),
    (
        "schema: 1",
        "schema: '1'",
        "1: schema must be a whole number, not the text '1': remove the quotes",
    ),
    (
        "schema: 1",
        "shcema: 1",
        "1: 'schema' is missing (did you mean 'shcema'?): add 'schema: 1'",
    ),
    (
        "model: meta-llama/Llama-2-7b-hf\n",
        "",
        "1: 'model' is missing: add 'model: ' and the base model's name",
    ),
    ("meta-llama/Llama-2-7b-hf", '""', "2: model is empty: fill it in"),
    (
        "model: meta-llama/Llama-2-7b-hf",
        "model: m\nmodels: n",
        "3: unknown field 'models' (did you mean 'model'?): known are schema, "
        "model, checkpoints",
    ),
    (
        "  dense:\n",
        "  den se:\n",
        "4: 'den se' cannot name a checkpoint: use letters, digits and ._+- only, "
        "starting with a letter or digit",
    ),
    # -- a checkpoint
    (
        "    gates:\n",
        "    gate:\n",
        "12: checkpoint wanda-50: unknown field 'gate' (did you mean 'gates'?): "
        "known are path, allow_keys, reference, gates, recorded",
    ),
    (
        "path: out/x",
        "path: 50",
        "10: checkpoint wanda-50: path must be a text, not the number 50: quote it",
    ),
    (
        "path: out/x",
        "reference: wanda-50",
        "10: checkpoint wanda-50: reference: 'wanda-50' is not another checkpoint of "
        "this file: expected one of: dense",
    ),
    (
        "path: out/x",
        "reference: dens",
        "10: checkpoint wanda-50: reference: 'dens' is not another checkpoint of this "
        "file (did you mean 'dense'?): expected one of: dense",
    ),
    (
        "path: out/x",
        "path: {a: b}",
        "10: checkpoint wanda-50: path must be a text, not a mapping",
    ),
    (
        "path: out/x",
        "path:",
        "10: checkpoint wanda-50: path must be a text, not nothing",
    ),
    (
        "[lm_head.*]",
        "lm_head.*",
        "11: checkpoint wanda-50: allow_keys must be a list of texts like "
        "[lm_head.*], not the text 'lm_head.*'",
    ),
    (
        "[lm_head.*]",
        "[a,\n      1]",
        "12: checkpoint wanda-50: allow_keys must be a list of texts like "
        "[lm_head.*], not the number 1",
    ),
    # -- gates
    (
        "{rel: 0.005}",
        "{min: 0}",
        f"13: {GATES}, {KEY}, token_perplexity: min must be greater than 0, not 0",
    ),
    (
        "{rel: 0.005}",
        "{min: 7, max: 6}",
        f"13: {GATES}, {KEY}, token_perplexity: nothing is at least 7.0 (min) and at "
        "most 6.0 (max)",
    ),
    (
        "to: dense, key: wanda/wikitext2:4096",
        "to: dense, key: kl/wikitext2:4096",
        f"18: {GATES}, relative: key: kl/wikitext2:4096 is relative to another "
        "checkpoint by itself: gate its metrics with max or min instead",
    ),
    (
        "{token_perplexity: {rel: 0.005}}",
        "{rel: 0.005}",
        f"13: {GATES}, {KEY}: 'rel' stands where a metric is expected: "
        f"{MISSING_METRIC}",
    ),
    (
        "{token_perplexity: {rel: 0.005}}",
        "0.005",
        f"13: {GATES}, {KEY}: expected metrics, for example {KEY}: "
        "{token_perplexity: {rel: 0.005}}, not the number 0.005",
    ),
    (
        "{token_perplexity: {rel: 0.005}}",
        "{}",
        f"13: {GATES}, {KEY}: gates no metric: {MISSING_METRIC}, or remove the line",
    ),
    (
        "{rel: 0.005}",
        "0.005",
        f"13: {GATES}, {KEY}, token_perplexity: expected a mapping like "
        "{rel: 0.005}, not the number 0.005",
    ),
    (
        "token_perplexity: {rel",
        "Token-Perplexity: {rel",
        f"13: {GATES}, {KEY}: 'Token-Perplexity' is not the name of a metric: "
        "expected lower-case letters, digits and _, for example "
        "token_perplexity (did you mean 'token_perplexity' or "
        "'word_perplexity'?)",
    ),
    (
        "rel: 0.005",
        "rell: 0.005",
        f"13: {GATES}, {KEY}, token_perplexity: unknown field 'rell' (did you "
        "mean 'rel'?): known are rel, abs, max, min, drift, sigma, direction",
    ),
    (
        "rel: 0.005",
        'rel: "0.005"',
        f"13: {GATES}, {KEY}, token_perplexity: rel must be a number, not the "
        "text '0.005': remove the quotes",
    ),
    (
        "rel: 0.005",
        "rel: yes",
        f"13: {GATES}, {KEY}, token_perplexity: rel must be a number, not true",
    ),
    (
        "rel: 0.005",
        "rel: -0.1",
        f"13: {GATES}, {KEY}, token_perplexity: rel must be at least 0, not -0.1",
    ),
    (
        "max: 20",
        "max: 0",
        f"15: {GATES}, lm-eval/wikitext:4096, word_perplexity: max must be "
        "greater than 0, not 0",
    ),
    (
        "direction: no-worse",
        "direction: lower",
        f"15: {GATES}, lm-eval/wikitext:4096, word_perplexity: direction must be "
        "one of both, no-worse, not the text 'lower'",
    ),
    (
        "wikitext:4096:\n",
        "wikitext:04096:\n",
        f"14: {GATES}: 'lm-eval/wikitext:04096' is not a measurement key: "
        "expected METHOD/TEXT[+CORPUS]:WINDOW[:strideS][:shotsK][:firstN], for example "
        "wanda/wikitext2:4096 or lm-eval/wikitext+demo:256",
    ),
    (
        "weights: mask",
        "weigths: mask",
        f"20: {GATES}: unknown gate 'weigths' (did you mean 'weights'?): expected "
        "a measurement key like wanda/wikitext2:4096, or one of relative, "
        "sparsity, weights, against",
    ),
    (
        "weights: mask",
        "weights: sane",
        f"20: {GATES}: weights must be one of same, mask, any, not the text 'sane'",
    ),
    (
        "{to: dense",
        "{to: dens",
        f"18: {GATES}, relative: to: 'dens' is not another checkpoint of this "
        "file (did you mean 'dense'?): expected one of: dense",
    ),
    (
        "{to: dense",
        "{to: wanda-50",
        f"18: {GATES}, relative: to: 'wanda-50' is not another checkpoint of this "
        "file: expected one of: dense",
    ),
    (
        "max_ratio: 1.30",
        "max_ratio: 0",
        f"18: {GATES}, relative: max_ratio must be greater than 0, not 0",
    ),
    (
        "max_ratio: 1.30",
        "metric: PPL, max_ratio: 1.30",
        f"18: {GATES}, relative: 'PPL' is not the name of a metric: expected "
        "lower-case letters, digits and _, for example token_perplexity",
    ),
    (
        ", max_ratio: 1.30",
        "",
        f"18: {GATES}, relative: 'max_ratio' is missing: expected a mapping like "
        "{to: dense, key: wanda/wikitext2:4096, max_ratio: 1.3}",
    ),
    (
        "fraction: 0.5",
        "fraction: 50",
        f"19: {GATES}, sparsity: fraction must be between 0 and 1, not 50",
    ),
    (
        '"2:4"',
        '"4:2"',
        f"19: {GATES}, sparsity: pattern: '4:2' is not N:M with 0 < N < M, for "
        'example "2:4"',
    ),
    (
        '{fraction: 0.5, pattern: "2:4", scope: layer}',
        "{abs: 0.1}",
        f"19: {GATES}, sparsity: bounds nothing: give fraction, pattern or both, "
        'for example {fraction: 0.5, pattern: "2:4"}, or {scope: tensor} to hold each '
        "tensor to its recorded share",
    ),
    (
        "against: dense",
        "against: dens",
        f"21: {GATES}: against: 'dens' is not another checkpoint of this file (did "
        "you mean 'dense'?): expected one of: dense",
    ),
    (
        "against: dense",
        "against: wanda-50",
        f"21: {GATES}: against: 'wanda-50' is not another checkpoint of this file: "
        "expected one of: dense",
    ),
    # -- recorded
    (
        "token_perplexity: 6.3062154",
        "token_perplexity: -1.0",
        f"24: {RECORDED}: token_perplexity must be at least 0, not -1.0",
    ),
    (
        "token_perplexity: 6.3062154",
        "token_perplexity: nan",
        f"24: {RECORDED}: token_perplexity must be a number, not the text 'nan'",
    ),
    (
        "        token_perplexity: 6.3062154\n",
        "",
        f"23: {RECORDED}: no metric: add for example 'token_perplexity: 6.31', or "
        "remove the entry",
    ),
    (
        "windows: 83",
        "window: 83",
        f"25: {RECORDED}: unknown field 'window' (did you mean 'windows'?)",
    ),
    (
        "windows: 83",
        "windows: 0",
        f"25: {RECORDED}: windows must be at least 1, not 0",
    ),
    (
        "windows: 83",
        "windows: 83.5",
        f"25: {RECORDED}: windows must be a whole number, not the number 83.5",
    ),
    (
        "{tokens: 339885}",
        "{}",
        f"23: {RECORDED}: a measured record needs units: record it again with "
        "`pplguard update`, or restore the entry from version control",
    ),
    (
        "{tokens: 339885}",
        "{tokens: many}",
        f"26: {RECORDED}, units: tokens must be a whole number, not the text 'many'",
    ),
    (
        f"windows_digest: {DIGEST}",
        "windows_digest: sha256:0a",
        f"27: {RECORDED}: windows_digest: 'sha256:0a' is no digest: expected "
        f"sha256: and 64 hexadecimal digits; {RESTORE}",
    ),
    (
        "evidence: llama/",
        "evidence: ../llama/",
        f"29: {RECORDED}: evidence: '../llama/wanda-50/wanda-wikitext2-4096-"
        "3f2a91c0d4e7.json' must be a path inside the baseline folder that ends "
        f"in .json, with / and without '..'; {RESTORE}",
    ),
    (
        "        source: {kind: measured}\n",
        "",
        f"23: {RECORDED}: 'source' is missing: add {{kind: published, reference: "
        "..., digits: 2} for a value from a paper, or record it with `pplguard "
        "update`",
    ),
    (
        "{kind: measured}",
        "{kind: mesured}",
        f"30: {RECORDED}, source: kind must be one of measured, published, not "
        "the text 'mesured'",
    ),
    (
        ", digits: 2",
        "",
        f"8: checkpoint dense, recorded, {KEY}, source: a published value needs "
        "'digits': write for example {kind: published, reference: 'Wanda paper, "
        "table 2', digits: 2}",
    ),
    (
        "digits: 2",
        "digits: -1",
        f"8: checkpoint dense, recorded, {KEY}, source: digits must be at least "
        "0, not -1",
    ),
    (
        "date: 2026-11-23",
        "date: yesterday",
        f"31: {RECORDED}, first: date: 'yesterday' is no date: write it like "
        "2026-11-23",
    ),
    (
        "{token_perplexity: 6.25",
        "{token_perplexity: x",
        f"31: {RECORDED}, first: token_perplexity must be a number, not the text 'x'",
    ),
    (
        "dtype: float16",
        "dtype: [float16]",
        f"33: {RECORDED}, environment: dtype must be a single value, not a list",
    ),
    (
        f"        weights_digest: {DIGEST}",
        "        weights_digest: md5:0a",
        f"34: {RECORDED}: weights_digest: 'md5:0a' is no digest: expected "
        f"sha256: and 64 hexadecimal digits; {RESTORE}",
    ),
    (
        "        weights_digest: ",
        "        weight_digest: ",
        f"34: {RECORDED}: unknown field 'weight_digest' (did you mean "
        "'weights_digest'?)",
    ),
    # -- the fingerprint
    (
        "      fingerprint:\n",
        "      fingreprint:\n",
        "35: checkpoint wanda-50, recorded: unknown field 'fingreprint' (did you mean "
        "'fingerprint'?)",
    ),
    (
        f"fingerprint:\n        digest: {DIGEST}\n",
        "fingerprint:\n        digest: 0a0a\n",
        f"36: {FINGERPRINT}: digest: '0a0a' is no digest: expected sha256: and 64 "
        f"hexadecimal digits; {RESTORE}",
    ),
    (
        "        tensors: 272\n",
        "",
        f"35: {FINGERPRINT}: 'tensors' is missing: expected a mapping of digest, "
        "tensors, linear, weights, zeros, evidence, date",
    ),
    (
        "tensors: 272",
        "tensor: 272",
        f"37: {FINGERPRINT}: unknown field 'tensor' (did you mean 'tensors'?): known "
        "are digest, tensors, linear, weights, zeros, evidence, date",
    ),
    (
        "tensors: 272",
        "tensors: some",
        f"37: {FINGERPRINT}: tensors must be a whole number, not the text 'some'",
    ),
    (
        "tensors: 272",
        "tensors: 0",
        f"37: {FINGERPRINT}: tensors must be at least 1, not 0",
    ),
    (
        "linear: 210",
        "linear: 273",
        f"38: {FINGERPRINT}: linear must be between 0 and 272, not 273",
    ),
    (
        "weights: 106168320",
        "weights: -1",
        f"39: {FINGERPRINT}: weights must be at least 0, not -1",
    ),
    (
        "zeros: 53084160",
        "zeros: 530841600",
        f"40: {FINGERPRINT}: zeros must be between 0 and 106168320, not 530841600",
    ),
    (
        "evidence: llama/wanda-50/fingerprint",
        "evidence: /llama/wanda-50/fingerprint",
        f"41: {FINGERPRINT}: evidence: '/llama/wanda-50/fingerprint-3f2a91c0d4e7.json' "
        "must be a path inside the baseline folder that ends in .json, with / and "
        f"without '..'; {RESTORE}",
    ),
    (
        "date: 2026-11-25",
        "date: 25.11.2026",
        f"42: {FINGERPRINT}: date: '25.11.2026' is no date: write it like 2026-11-23",
    ),
    (
        "date: 2026-11-25",
        "date: 2026-11-25\n        by: me",
        f"43: {FINGERPRINT}: unknown field 'by': known are digest, tensors, linear, "
        "weights, zeros, evidence, date",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), CASES, ids=range(len(CASES)))
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(BaselineError) as caught:
        parse_baseline(TEXT.replace(old, new, 1), FILE)
    assert str(caught.value) == f"{FILE}:{message}"


TASK = dedent(
    f"""\
    schema: 1
    model: m
    checkpoints:
      x:
        gates:
          lm-eval/piqa:2048:
            acc: {{sigma: 2, min: 0.5, direction: no-worse}}
        recorded:
          lm-eval/piqa:2048:
            acc: 0.75
            mcc: -0.25
            stderr: {{acc: 0.0125, mcc: 0}}
            windows: 200
            units: {{documents: 100}}
            windows_digest: {DIGEST}
            corpus_digest: {DIGEST}
            evidence: x/a.json
            source: {{kind: measured}}
            first: {{acc: 0.5, mcc: -0.5, date: 2026-11-23}}
    """
)
TASK_KEY = "lm-eval/piqa:2048"


def test_standard_errors() -> None:
    entry = parse_baseline(TASK, FILE).checkpoints["x"]
    assert entry.gates.metrics == {
        TASK_KEY: {"acc": Tolerance(sigma=2.0, min=0.5, direction="no-worse")}
    }
    recorded = entry.recorded[TASK_KEY]
    assert recorded.metrics == {"acc": 0.75, "mcc": -0.25}
    assert recorded.stderr == {"acc": 0.0125, "mcc": 0.0}
    assert recorded.first["mcc"] == -0.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sigma: 2", "sigma: 0", "7: {gate}: sigma must be greater than 0, not 0"),
        ("sigma: 2", "sigma: -1", "7: {gate}: sigma must be greater than 0, not -1"),
        (
            "sigma: 2",
            "sigma: .nan",
            "7: {gate}, sigma: .nan is not a finite number: write a finite one",
        ),
        (
            "min: 0.5",
            "abs: 0.02",
            "7: {gate}: mixed units in one gate: sigma counts standard errors, abs "
            "does not; keep one of them (max and min may stand with either)",
        ),
        (
            "{acc: 0.0125,",
            "{ac: 0.0125,",
            "12: {record}: 'ac' is no recorded metric (did you mean 'acc'?): there are "
            "acc, mcc",
        ),
        ("acc: 0.0125", "acc: -1", "12: {record}: acc must be at least 0, not -1"),
        (
            "acc: 0.0125",
            "acc: N/A",
            "12: {record}: acc must be a number, not the text 'N/A'",
        ),
        (
            "stderr: {acc: 0.0125, mcc: 0}",
            "stderr: 0.1",
            "12: {record}: expected a mapping from metrics to their standard errors, "
            "not the number 0.1",
        ),
        (
            "stderr:",
            "stder:",
            "12: checkpoint x, recorded, lm-eval/piqa:2048: unknown field 'stder' (did "
            "you mean 'stderr'?)",
        ),
    ],
)
def test_standard_errors_that_mean_nothing(old: str, new: str, message: str) -> None:
    assert old in TASK
    with pytest.raises(BaselineError) as caught:
        parse_baseline(TASK.replace(old, new, 1), FILE)
    text = message.format(
        gate=f"checkpoint x, gates, {TASK_KEY}, acc",
        record=f"checkpoint x, recorded, {TASK_KEY}, stderr",
    )
    assert str(caught.value) == f"{FILE}:{text}"


MINIMUM = "a baseline file starts with 'schema: 1', 'model: NAME' and 'checkpoints:'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"1: the file is empty: {MINIMUM}"),
        ("# only\n", f"1: the file is empty: {MINIMUM}"),
        ("- a\n", f"1: the file is no mapping: {MINIMUM}"),
        ("--- \n...\n", f"2: the file is no mapping: {MINIMUM}"),
        (
            "schema: 1\nmodel: m\n",
            "1: 'checkpoints' is missing: add 'checkpoints: {}'",
        ),
        (
            "schema: 1\nmodel: m\ncheckpoints: [a]\n",
            "3: checkpoints: expected a mapping from names to checkpoints, not a list",
        ),
        (
            "schema: 1\nmodel: m\ncheckpoints:\n  a: {gates: {relative: {to: b, "
            "key: a/b:1, max_ratio: 1}}}\n",
            "4: checkpoint a, gates, relative: to: 'b' is not another checkpoint of "
            "this file: expected one of: there is none",
        ),
    ],
)
def test_files_that_are_nearly_empty(text: str, message: str) -> None:
    with pytest.raises(BaselineError) as caught:
        parse_baseline(text, FILE)
    assert str(caught.value) == f"{FILE}:{message}"


def test_the_file_name_becomes_part_of_names() -> None:
    with pytest.raises(BaselineError) as caught:
        parse_baseline(TEXT, "b/my model.yaml")
    assert str(caught.value) == (
        "b/my model.yaml: the file name's stem 'my model' becomes part of checkpoint "
        "names: rename the file, using letters, digits and ._+- only"
    )


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"schema: 1\nmodel: caf\xe9\n")
    with pytest.raises(BaselineError) as caught:
        read_baseline(path)
    assert str(caught.value) == (
        f"{path}:2: not UTF-8 (byte 0xe9): save the file as UTF-8"
    )


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"#" * (read.MAX_BYTES + 1))
    with pytest.raises(BaselineError) as caught:
        read_baseline(path)
    assert str(caught.value) == (
        f"{path}: larger than 5 MB: this is no baseline file, or it should be split"
    )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BaselineError) as caught:
        read_baseline(tmp_path / "m.yaml")
    path = tmp_path / "m.yaml"
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.text(max_size=8))
def test_damage_is_an_error_of_one_line_or_harmless(
    position: int, cut: int, pasted: str
) -> None:
    text = TEXT[:position] + pasted + TEXT[position + cut :]
    message = f"{FILE}:"
    try:
        parse_baseline(text, FILE)
    except BaselineError as error:
        message = str(error)
    assert message.startswith(f"{FILE}:")
    assert "\n" not in message
