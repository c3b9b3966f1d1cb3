"""What a failing gate says of a damaged checkpoint: which tensor, and where."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import fingerprint, locate
from pytest_pplguard.measure import weights
from tests.model.tiny import save_tiny

from .project import LM_EVAL, WANDA, Project, failure

if TYPE_CHECKING:
    from torch import Tensor

Damage = Callable[["dict[str, Tensor]"], None]

SENTENCE = "the quick brown fox jumps over the lazy dog "
RARE = 300
"""Where the text has its only Z."""
TEXT = f"{SENTENCE * 16:.{RARE}}Z{SENTENCE * 16}"
GATES = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.00001}}
    lm-eval/wikitext+tiny:64: {word_perplexity: {rel: 0.00001}}
"""
TITLE = f"llama/w50 {WANDA} token_perplexity"
ITEM = f"baselines/llama.yaml::w50::{WANDA}"
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
SAME = "the config and the tokenizer are the same"
NUMBER = re.compile(r"\d+\.\d+(e[+-]\d+)?")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint. Made before pytester looks what is imported: see conftest."""
    return save_tiny(tmp_path_factory.mktemp("good") / "tiny", seed=1)


@pytest.fixture
def recorded(good: Path, project: Project) -> Path:
    """The baseline file of a project in which ``good`` is recorded by both keys."""
    (project.path / "text.txt").write_text(TEXT)
    path = project.baseline(GATES)
    given = project.give(w50=str(good))
    project.run(*given, "--ppl-update").assert_outcomes(passed=2)
    return path


def save(good: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a checkpoint with some damage."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def scaled(tensors: dict[str, Tensor]) -> None:
    tensors[UP] *= 1.5


SCALED = [
    "  checkpoint   layer 1, mlp.up_proj: values moved, norm x1.5 (scaled by 1.5?)",
    f"  checkpoint   all other weights (20 tensors), {SAME}",
]


def digest_of(checkpoint: Path) -> str:
    return fingerprint(locate(str(checkpoint))).digest


def checkpoint_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  checkpoint ")]


def test_the_tensor_and_the_place(
    good: Path, recorded: Path, project: Project, plugin_args: tuple[str, ...]
) -> None:
    """The embedding of one token is damaged, and the text has that token once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(good)
    rare = tokenizer.convert_tokens_to_ids("Z")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids.count(rare) == 1
    window, windows = ids.index(rare) // 16, len(ids) // 16
    words = tokenizer.decode(ids[16 * window + 1 : 16 * window + 16]).strip()
    assert "Z" in words

    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDING][rare] *= -2

    save(good, project.path / "out", damage)
    args = (*project.give(w50="out"), "--junitxml=junit.xml", *plugin_args)
    result = project.run(*args)
    result.assert_outcomes(failed=2)
    assert result.ret == 1
    text = NUMBER.sub("#", failure(result, TITLE))
    assert text[text.index("llama/w50") :] == (
        f"llama/w50 {WANDA}: token_perplexity regressed by # %\n"
        "  baseline     # (measured)\n"
        "  measured     #\n"
        "  allowed      # .. # (rel 1e-05, baselines/llama.yaml:7)\n"
        "  recorded in  baselines/llama.yaml:10\n"
        f"  checkpoint   {EMBEDDING}: values moved, norm x#\n"
        f"  checkpoint   all other weights (20 tensors), {SAME}\n"
        f"  where        a few windows moved: 1 of {windows} carries more than half of "
        f"the change (1 of {windows} windows is worse, 0 better); the mean moved by +# "
        "+- # nats a token\n"
        "  where        the predictions moved by roughly # nats a token (KL "
        "divergence, told from how the windows scatter)\n"
        f"  where        window {window + 1} of {windows} moved most: +# nats a token, "
        f'at "...{words}"\n'
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=out --ppl-update\n"
    )
    # The other gate says that of the checkpoint, too; a terminal has it once.
    other = failure(result, f"llama/w50 {LM_EVAL} word_perplexity")
    first, _ = checkpoint_lines(text)
    assert checkpoint_lines(NUMBER.sub("#", other)) == [
        f"{first} ... (in full further up)"
    ]
    tree = ElementTree.parse(project.path / "junit.xml")
    said = [NUMBER.sub("#", failed.text or "") for failed in tree.iter("failure")]
    assert [*map(checkpoint_lines, said)] == 2 * [checkpoint_lines(text)]


def test_an_invalid_loss(good: Path, recorded: Path, project: Project) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[UP][3, 4] = float("nan")

    save(good, project.path / "out", damage)
    result = project.run(*project.give(w50="out"), "-k", WANDA)
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        f"llama/w50 {WANDA}: token_perplexity is invalid\n"
        "  recorded in  baselines/llama.yaml:10\n"
        "  because      the loss of window 1 of 38 is nan\n"
        "  checkpoint   layer 1, mlp.up_proj: 1 weight is NaN or infinite\n"
        f"  checkpoint   all other weights (20 tensors), {SAME}\n"
        '  where        window 1 of 38, at "the quick brown fox"\n'
    )


def test_a_checkpoint_that_cannot_be_loaded(
    good: Path, recorded: Path, project: Project
) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][1:].clone()

    save(good, project.path / "out", damage)
    result = project.run(*project.give(w50="out"), "-k", WANDA)
    result.assert_outcomes(errors=1)
    text = failure(result, f"ERROR at setup of {TITLE}")
    assert checkpoint_lines(text) == [
        "  checkpoint   model.norm.weight: shape [32] -> [31]",
        f"  checkpoint   all other weights (20 tensors), {SAME}",
    ]


def test_what_a_test_brings(good: Path, recorded: Path, project: Project) -> None:
    """A path has files in which to look; a model may be anything."""
    save(good, project.path / "out", scaled)
    project.test(
        f"""
        from tests.plugin.stub import make

        @pytest.mark.ppl({WANDA!r})
        def test_path():
            return "out"

        @pytest.mark.ppl({WANDA!r})
        def test_model():
            return make("ppl:9")
        """
    )
    result = project.run("test_it.py", *project.give(w50=str(good)))
    result.assert_outcomes(failed=2)
    assert checkpoint_lines(failure(result, "test_path")) == SCALED
    text = failure(result, "test_model")
    assert checkpoint_lines(text) == []
    assert "is not comparable to its baseline\n" in text


# ------------------------------------------------------------------- what is recorded


def test_another_key_was_recorded_on_other_weights(
    good: Path, recorded: Path, project: Project
) -> None:
    """The fingerprint is then not what an older key was measured on."""
    new = save(good, project.path / "new", scaled)
    given = project.give(w50="new")
    project.run(*given, "--ppl-update", "-k", "lm-eval").assert_outcomes(passed=1)
    entry = read_baseline(recorded).checkpoints["w50"]
    digests = [entry.recorded[key].weights_digest for key in (WANDA, LM_EVAL)]
    assert digests == [digest_of(good), digest_of(new)]

    result = project.run(*given, "-k", WANDA)
    result.assert_outcomes(failed=1)
    assert checkpoint_lines(failure(result, TITLE)) == [
        "  checkpoint   these weights are those of the recorded fingerprint, and this "
        "baseline was measured on others: record this key again too"
    ]

    def damage(tensors: dict[str, Tensor]) -> None:
        scaled(tensors)
        tensors[UP][:] = 0.0

    save(good, project.path / "out", damage)
    result = project.run(*project.give(w50="out"))
    result.assert_outcomes(failed=2)
    lines = [
        "  checkpoint   layer 1, mlp.up_proj: all zeros now",
        f"  checkpoint   all other weights (20 tensors), {SAME}",
    ]
    assert checkpoint_lines(failure(result, TITLE)) == [
        "  checkpoint   this baseline was measured on other weights than those of the "
        "recorded fingerprint, from which differ:",
        *lines,
    ]
    other = failure(result, f"llama/w50 {LM_EVAL} word_perplexity")
    assert checkpoint_lines(other) == lines

    # The number cannot pass, and yet nothing in the checkpoint is to blame.
    text = recorded.read_text()
    recorded.write_text(
        text.replace("token_perplexity: {rel: 0.00001", "token_perplexity: {max: 2.0")
    )
    result = project.run(*project.give(w50=str(good)), "-k", WANDA)
    assert checkpoint_lines(failure(result, TITLE)) == [
        "  checkpoint   the weights are those that this baseline was measured on: look "
        "at config, tokenizer and environment (the recorded fingerprint is of other "
        "ones)"
    ]


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_fingerprint_that_cannot_be_read_hides_no_failure(
    good: Path, recorded: Path, project: Project, harm: str
) -> None:
    (evidence,) = recorded.parent.rglob("fingerprint-*.json")
    if harm == "gone":
        evidence.unlink()
        why = "the file does not exist"
    else:
        evidence.write_text(evidence.read_text().replace("zeros", "ones"))
        why = "its content (sha256 "
    project.run(*project.give(w50=str(good))).assert_outcomes(passed=2)
    save(good, project.path / "out", scaled)
    result = project.run(*project.give(w50="out"), "-k", WANDA)
    result.assert_outcomes(failed=1)
    text = failure(result, TITLE)
    assert "llama/w50 wanda/tiny:16: token_perplexity improved by " in text
    (line,) = checkpoint_lines(text)
    assert line.startswith(
        "  checkpoint   what differs from the recorded one is not known: llama/w50, "
        f"fingerprint: evidence {evidence}: {why}"
    )
    assert "  where        " in text


def test_no_fingerprint_no_lines(good: Path, recorded: Path, project: Project) -> None:
    """As in baselines from before there were fingerprints."""
    text = re.sub(r"(?m)^ +fingerprint:\n( {8}.*\n)+", "", recorded.read_text())
    recorded.write_text(re.sub(r"(?m)^ +weights_digest: .*\n", "", text))
    assert read_baseline(recorded).checkpoints["w50"].fingerprint is None
    save(good, project.path / "out", scaled)
    result = project.run(*project.give(w50="out"))
    result.assert_outcomes(failed=2)
    text = failure(result, TITLE)
    assert checkpoint_lines(text) == []
    assert "  where        " in text


def test_a_key_without_a_baseline_has_no_lines(
    good: Path, recorded: Path, project: Project
) -> None:
    recorded.write_text(
        recorded.read_text().replace(f"{WANDA}: {{t", "wanda/tiny:24: {t")
    )
    save(good, project.path / "out", scaled)
    result = project.run(*project.give(w50="out"), "-k", "wanda")
    result.assert_outcomes(failed=1)
    text = failure(result, "llama/w50 wanda/tiny:24 token_perplexity")
    assert "token_perplexity has no baseline\n" in text
    assert checkpoint_lines(text) == []


def test_what_passes_costs_no_look_at_the_weights(
    good: Path, recorded: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked at")

    monkeypatch.setattr(weights, "fingerprint", refuse)
    project.run(*project.give(w50=str(good))).assert_outcomes(passed=2)


def test_what_cannot_be_read_is_said_once(
    good: Path, recorded: Path, project: Project
) -> None:
    result = project.run(*project.give(w50="out/no/where/at"), "-k", WANDA)
    result.assert_outcomes(errors=1)
    text = failure(result, f"ERROR at setup of {TITLE}")
    assert "  because      out/no/where/at does not exist" in text
    assert checkpoint_lines(text) == []
    (evidence,) = recorded.parent.rglob("fingerprint-*.json")
    evidence.unlink()
    recorded.write_text(
        recorded.read_text().replace("  gates:\n", "  gates:\n      weights: same\n")
    )
    result = project.run(*project.give(w50=str(good)), "-k", "weights")
    result.assert_outcomes(errors=1)
    text = failure(result, "ERROR at setup of llama/w50 weights same")
    assert "  because      llama/w50, fingerprint: evidence " in text
    assert checkpoint_lines(text) == []
