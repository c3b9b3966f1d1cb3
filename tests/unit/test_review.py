"""What counts as loosened, and what else a commit did to baselines."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.review import Fact, GateChange, Review, Row, review
from pytest_pplguard.values import (
    BaselineFile,
    CheckpointEntry,
    Gates,
    Recorded,
    RecordedFingerprint,
    RelativeGate,
    Source,
    SparsityGate,
    Tolerance,
)

KEY = "wanda/wikitext2:4096"
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


# ------------------------------------------------------------------------------- gates


def recorded(value: float = 5.0, **changes: Any) -> Recorded:
    fields: dict[str, Any] = {
        "metrics": {"token_perplexity": value},
        "source": Source(kind="measured"),
        "windows": 83,
        "units": {"tokens": 339885},
        "windows_digest": ONE,
        "corpus_digest": ONE,
        "evidence": f"llama/w50/wanda-{value}.json",
        "first": {"token_perplexity": 4.0, "date": "2026-11-23"},
        "environment": {"dtype": "float16", "torch": "2.12.0"},
    }
    return Recorded(**fields | changes)


def entry(name: str = "w50", **changes: Any) -> CheckpointEntry:
    fields: dict[str, Any] = {
        "recorded": {KEY: recorded()},
        "lines": {"": 4, "gates": 5, "gates.sparsity": 7, f"gates.{KEY}": 6}
        | {f"gates.{KEY}.token_perplexity": 6},
    }
    return CheckpointEntry(name, **fields | changes)


def file(*entries: CheckpointEntry, model: str = "org/m", stem: str = "llama") -> Any:
    checkpoints = {entry.name: entry for entry in entries}
    return {stem: BaselineFile(f"baselines/{stem}.yaml", model, checkpoints)}


def gated(**gates: Any) -> CheckpointEntry:
    return entry(gates=Gates(**gates))


def done(old: CheckpointEntry, new: CheckpointEntry) -> Review:
    return review(file(old), file(new))


HALF = SparsityGate(fraction=0.5, abs=0.001, scope="tensor")
EACH = "fraction 0.5, abs 0.001, scope tensor"
RATIO = RelativeGate(to="dense", key=KEY, max_ratio=1.3)
METRIC = {KEY: {"token_perplexity": Tolerance(rel=0.005)}}


@pytest.mark.parametrize(
    ("old", "new", "gate", "texts", "loosened"),
    [
        ({"metrics": METRIC},
         {"metrics": {KEY: {"token_perplexity": Tolerance(rel=0.05)}}},
         f"{KEY} token_perplexity", ("rel 0.005", "rel 0.05"), True),
        ({"metrics": METRIC}, {}, f"{KEY} token_perplexity", ("rel 0.005", "removed"),
         True),
        ({}, {"metrics": METRIC}, f"{KEY} token_perplexity", ("none", "rel 0.005"),
         False),
        # What is not written is 0.5 %.
        ({"metrics": METRIC}, {"metrics": {KEY: {"token_perplexity": Tolerance()}}},
         f"{KEY} token_perplexity", ("rel 0.005", "the default"), False),
        ({"metrics": METRIC}, {"metrics": {KEY: {"token_perplexity": Tolerance(
            direction="no-worse")}}},
         f"{KEY} token_perplexity", ("rel 0.005", "no-worse"), True),
        ({"weights": "same"}, {"weights": "any"}, "weights", ("same", "any"), True),
        ({"weights": "same"}, {"weights": "mask"}, "weights", ("same", "mask"), True),
        ({"weights": "mask"}, {}, "weights", ("mask", "any"), True),
        ({}, {"weights": "same"}, "weights", ("any", "same"), False),
        ({"against": "dense"}, {}, "against", ("dense", "removed"), True),
        ({"against": "dense"}, {"against": "old"}, "against", ("dense", "old"), True),
        ({}, {"against": "dense"}, "against", ("none", "dense"), False),
        ({"relative": RATIO}, {"relative": replace(RATIO, max_ratio=1.4)}, "relative",
         (f"max_ratio 1.3, to dense, key {KEY}", f"max_ratio 1.4, to dense, key {KEY}"),
         True),
        ({"relative": RATIO}, {"relative": replace(RATIO, max_ratio=1.2)}, "relative",
         (f"max_ratio 1.3, to dense, key {KEY}", f"max_ratio 1.2, to dense, key {KEY}"),
         False),
        ({"relative": RATIO}, {"relative": replace(RATIO, to="old")}, "relative",
         (f"max_ratio 1.3, to dense, key {KEY}", f"max_ratio 1.3, to old, key {KEY}"),
         True),
        ({"sparsity": HALF}, {}, "sparsity",
         (EACH, "removed"), True),
        ({"sparsity": HALF}, {"sparsity": replace(HALF, abs=0.002)}, "sparsity",
         (EACH, EACH.replace("001", "002")),
         True),
        ({"sparsity": HALF}, {"sparsity": replace(HALF, scope="total")}, "sparsity",
         (EACH, "fraction 0.5, abs 0.001"), True),
        ({"sparsity": HALF}, {"sparsity": replace(HALF, fraction=0.4)}, "sparsity",
         (EACH, EACH.replace("0.5", "0.4")),
         True),
        ({"sparsity": HALF}, {"sparsity": replace(HALF, fraction=None)}, "sparsity",
         (EACH, "abs 0.001, scope tensor"), True),
        ({"sparsity": HALF}, {"sparsity": replace(HALF, abs=0.0, pattern="2:4")},
         "sparsity", (EACH,
                      "fraction 0.5, abs 0.0, pattern 2:4, scope tensor"), False),
        ({"sparsity": SparsityGate(pattern="2:4")},
         {"sparsity": SparsityGate(pattern="4:8")}, "sparsity",
         ("abs 0.001, pattern 2:4", "abs 0.001, pattern 4:8"), True),
        ({"sparsity": SparsityGate(pattern="4:8")},
         {"sparsity": SparsityGate(pattern="2:4")}, "sparsity",
         ("abs 0.001, pattern 4:8", "abs 0.001, pattern 2:4"), False),
    ],
)  # fmt: skip
def test_gates(
    old: dict[str, Any],
    new: dict[str, Any],
    gate: str,
    texts: tuple[str, str],
    loosened: bool,
) -> None:
    found = done(gated(**old), gated(**new))
    line = {"sparsity": 7, f"{KEY} token_perplexity": 6}.get(gate, 5)
    change = GateChange(
        checkpoint="llama/w50", gate=gate, old=texts[0], new=texts[1],
        file="baselines/llama.yaml", line=line,
    )  # fmt: skip
    expected = {"loosened" if loosened else "tightened": (change,)}
    assert found == Review(**expected)  # type: ignore[arg-type]


def test_the_default_of_a_task_is_counted_in_standard_errors() -> None:
    key = "lm-eval/piqa:2048"
    values = {
        key: recorded(0.7, metrics={"acc": 0.7}, stderr={"acc": 0.01}, first={}),
    }

    def of(tolerance: Tolerance) -> CheckpointEntry:
        return entry(recorded=values, gates=Gates(metrics={key: {"acc": tolerance}}))

    written = Tolerance(sigma=2.0, direction="no-worse")
    assert done(of(written), of(Tolerance())).loosened == ()
    assert done(of(replace(written, sigma=1.0)), of(Tolerance())).loosened


def test_allow_keys_and_reference() -> None:
    old = entry(reference="dense")
    found = done(old, replace(old, allow_keys=("lm_head.*",), reference="other"))
    assert [(g.gate, g.old, g.new, g.line) for g in found.loosened] == [
        ("allow_keys", "none", "lm_head.*", 4)
    ]
    assert found.incomparable == (Fact("llama/w50", "kl", "reference: dense -> other"),)
    # A divergence from something nearer is smaller.
    of_kl = Gates(metrics={"kl/wikitext2:4096": {"kl_divergence": Tolerance(max=0.1)}})
    old = replace(old, gates=of_kl)
    found = done(old, replace(old, reference="other"))
    assert [(g.gate, g.old, g.new, g.line) for g in found.loosened] == [
        ("reference", "dense", "other", 4)
    ]
    assert done(replace(old, allow_keys=("a", "b")), old).loosened == ()


# ------------------------------------------------------------------------------ values


def test_a_new_value() -> None:
    after = entry(recorded={KEY: recorded(5.5)})
    assert done(entry(), after) == Review(
        rows=(
            Row(
                checkpoint="llama/w50",
                key=KEY,
                metric="token_perplexity",
                old=5.0,
                new=5.5,
                change=5.5 / 5.0 - 1,
                first=4.0,
                drift=5.5 / 4.0 - 1,
            ),
        )
    )


def test_nothing_changed() -> None:
    assert done(entry(), entry()).empty
    assert not done(entry(), entry(recorded={KEY: recorded(5.5)})).empty


def test_a_value_of_other_windows_has_no_change() -> None:
    after = recorded(5.5, windows_digest=TWO, corpus_digest=TWO, windows=40,
                     units={"tokens": 100})  # fmt: skip
    found = done(entry(), entry(recorded={KEY: after}))
    assert found.incomparable == (
        Fact(
            "llama/w50",
            KEY,
            "another text; other token windows; windows: 83 -> 40; "
            "tokens: 339885 -> 100",
        ),
    )
    (row,) = found.rows
    assert (row.change, row.drift, row.note) == (None, None, "not comparable")


def test_a_protocol_that_changed() -> None:
    protocols = {5.0: {"first token": "BOS 1"}, 5.5: {"first token": "EOS 2"}}
    asked = []

    def protocol(stem: str, record: Recorded) -> Any:
        asked.append(stem)
        return protocols[record.metrics["token_perplexity"]]

    found = review(
        file(entry()), file(entry(recorded={KEY: recorded(5.5)})),
        old_protocol=protocol, new_protocol=protocol,
    )  # fmt: skip
    assert asked == ["llama", "llama"]
    (fact,) = found.incomparable
    assert fact.text == "first token: BOS 1 -> EOS 2"


def test_the_environment() -> None:
    environment = {"dtype": "float32", "torch": "2.12.0", "lm_eval": "0.4.13"}
    after = recorded(5.5, environment=environment)
    assert done(entry(), entry(recorded={KEY: after})).environment == (
        Fact(
            "llama/w50", KEY, "dtype: float16 -> float32; lm_eval: none -> 0.4.13"
        ),
    )  # fmt: skip


def test_edits_by_hand() -> None:
    after = recorded(5.5, evidence="llama/w50/wanda-5.0.json",
                     first={"token_perplexity": 5.4, "date": "2027-01-01"})  # fmt: skip
    assert [
        fact.text for fact in done(entry(), entry(recorded={KEY: after})).suspect
    ] == [
        "token_perplexity changed, and the evidence did not: edited by hand",
        "the first record was changed (token_perplexity: 4.0 -> 5.4; date: 2026-11-23 "
        "-> 2027-01-01): the total drift no longer counts from there",
    ]
    forgot = entry(recorded={KEY: recorded(5.5, first={})})
    assert [fact.text for fact in done(entry(), forgot).suspect] == [
        "the first record was removed"
    ]


def test_a_metric_more_in_the_first_record_is_no_edit() -> None:
    first = {"token_perplexity": 4.0, "date": "2026-11-23", "other": 1.0}
    assert (
        done(entry(), entry(recorded={KEY: recorded(5.5, first=first)})).suspect == ()
    )


def test_published_instead_of_measured() -> None:
    paper = Source(kind="published", reference="a paper", digits=1)
    after = Recorded(metrics={"token_perplexity": 5.1}, source=paper)
    found = done(entry(), entry(recorded={KEY: after}))
    assert [(g.gate, g.old, g.new) for g in found.loosened] == [
        (KEY, "measured", "published: a paper")
    ]
    (row,) = found.rows
    assert (row.old, row.new, row.note) == (5.0, 5.1, "was measured")
    back = done(entry(recorded={KEY: after}), entry())
    assert back.loosened == ()
    assert back.rows[0].note == "was published"


def test_keys_and_checkpoints_that_come_and_go() -> None:
    other = "wanda/wikitext2:2048"
    old = [entry(), gated(weights="same", metrics=METRIC)]
    old[1] = replace(old[1], name="gone", recorded={KEY: recorded(7.0)})
    new = [entry(recorded={other: recorded(6.0)}), entry("new", recorded={})]
    found = review(file(*old), file(*new))
    assert found.entries == (
        Fact("llama/w50", KEY, "key removed"),
        Fact("llama/w50", other, "new key"),
        Fact("llama/gone", "", "checkpoint removed"),
        Fact("llama/new", "", "new checkpoint"),
    )
    assert [(row.checkpoint, row.old, row.new, row.note) for row in found.rows] == [
        ("llama/w50", 5.0, None, "removed"),
        ("llama/w50", None, 6.0, "new"),
        ("llama/gone", 7.0, None, "removed"),
    ]
    assert [(g.checkpoint, g.gate, g.old, g.new) for g in found.loosened] == [
        ("llama/gone", "all gates", "2 gates", "checkpoint removed")
    ]


def prints(digest: str, zeros: int = 8) -> RecordedFingerprint:
    return RecordedFingerprint(
        digest, 3, 1, 16, zeros, "llama/w50/f.json", "2026-11-23"
    )


def test_weights_that_changed_or_are_unknown() -> None:
    old = entry(fingerprint=prints(ONE))
    found = done(old, entry(fingerprint=prints(TWO, zeros=4)))
    assert found.environment == (
        Fact("llama/w50", "fingerprint",
             "other weights (3 tensors, zeros 50.00 % -> 25.00 %)"),
    )  # fmt: skip
    assert done(old, entry()).suspect == (
        Fact("llama/w50", "fingerprint",
             "removed: nothing says which weights these values are of"),
    )  # fmt: skip


# ----------------------------------------------------------------------------- renamed


def test_a_checkpoint_that_was_renamed() -> None:
    """Its gates and values are compared with those that it had."""
    old = replace(gated(metrics=METRIC), fingerprint=prints(ONE))
    new = replace(old, name="other", gates=Gates(), recorded={KEY: recorded(5.5)})
    found = review(file(old), file(new))
    assert [(g.checkpoint, g.gate, g.old, g.new) for g in found.loosened] == [
        ("llama/other", "checkpoint", "w50", "other"),
        ("llama/other", f"{KEY} token_perplexity", "rel 0.005", "removed"),
    ]
    assert [row.old for row in found.rows] == [5.0]
    assert found.entries == ()


def test_a_file_that_was_renamed() -> None:
    entries = [entry(), entry("dense", recorded={KEY: recorded(4.0)})]
    changed = [entries[0], replace(entries[1], recorded={KEY: recorded(4.4)})]
    third = entry("third", recorded={KEY: recorded(3.0)})
    found = review(file(*entries, third), file(*changed, third, stem="llama-2"))
    assert [(g.checkpoint, g.gate, g.old, g.new) for g in found.loosened] == [
        ("llama-2", "file", "llama", "llama-2")
    ]
    (row,) = found.rows
    assert (row.checkpoint, row.old, row.new) == ("llama-2/dense", 4.0, 4.4)


def test_a_file_that_came_and_one_that_went() -> None:
    found = review(
        file(entry()), file(entry(recorded={KEY: recorded(9.0)}), stem="opt")
    )
    assert [fact.text for fact in found.entries] == [
        "checkpoint removed",
        "new checkpoint",
    ]


def test_another_base_model_and_files_that_cannot_be_read() -> None:
    found = review(file(entry()), file(entry(), model="org/n"), unread=["x.yaml: bad"])
    assert found.entries == (Fact("llama", "", "model: org/m -> org/n"),)
    assert found.unread == ("x.yaml: bad",)


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        (Tolerance(rel=0.01), Tolerance(rel=0.010000004),
         ("rel 0.01", "rel 0.010000004")),
        (Tolerance(max=5.681231), Tolerance(max=5.681234),
         ("max 5.681231", "max 5.681234")),
    ],
)  # fmt: skip
def test_a_bound_that_differs_in_a_late_digit(
    old: Tolerance, new: Tolerance, texts: tuple[str, str]
) -> None:
    before, after = (
        gated(metrics={KEY: {"token_perplexity": gate}}) for gate in (old, new)
    )
    assert [(g.old, g.new) for g in done(before, after).loosened] == [texts]
    assert [(g.old, g.new) for g in done(after, before).tightened] == [texts[::-1]]


def test_fewer_digits_of_a_published_value_allow_more() -> None:
    def of(digits: int) -> CheckpointEntry:
        source = Source(kind="published", reference="a paper", digits=digits)
        value = Recorded(metrics={"token_perplexity": 7.0}, source=source)
        lines = {"": 4, "gates": 5, f"recorded.{KEY}": 9}
        return entry(recorded={KEY: value}, gates=Gates(metrics=METRIC), lines=lines)

    change = GateChange(
        checkpoint="llama/w50", gate=f"{KEY} digits", old="2", new="0",
        file="baselines/llama.yaml", line=9,
    )  # fmt: skip
    assert done(of(2), of(0)) == Review(loosened=(change,))
    assert done(of(0), of(2)) == Review(
        tightened=(replace(change, old="0", new="2"),),
    )


def test_where_a_checkpoint_lies_is_told() -> None:
    assert done(entry(path="models/a"), entry(path="models/b")) == Review(
        entries=(Fact("llama/w50", "", "path: models/a -> models/b"),)
    )
    assert done(entry(), entry(path="b")).entries[0].text == "path: none -> b"


def test_what_its_evidence_does_not_hold_was_edited() -> None:
    old = recorded(stderr={"token_perplexity": 0.01}, weights_digest=ONE)
    found = done(
        entry(recorded={KEY: old}),
        entry(recorded={KEY: replace(old, stderr={"token_perplexity": 1.0})}),
    )
    assert found == Review(
        suspect=(
            Fact("llama/w50", KEY, "the standard error of token_perplexity changed, "
                 "and the evidence did not"),
        )
    )  # fmt: skip
    found = done(
        entry(recorded={KEY: old}),
        entry(recorded={KEY: replace(old, weights_digest=None)}),
    )
    assert [fact.text for fact in found.suspect] == [
        "weights_digest was removed: nothing says which weights this was measured on"
    ]
