"""``--ppl-update`` and ``--ppl-update-new``: what ran is recorded, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_pplguard.baselines import read_baseline, read_fingerprint
from pytest_pplguard.checkpoints import fingerprint, locate
from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.measure import weights
from tests.model.tiny import save_tiny

from .project import LM_EVAL, WANDA, Project, section

KEYS = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}   # kept
    lm-eval/wikitext+tiny:64: {word_perplexity: {}, byte_perplexity: {}}
"""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders ``one`` and ``two``, of different weights.

    Made before pytester looks what is imported: see conftest.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny(folder / "one", seed=1)
    save_tiny(folder / "two", seed=2)
    return folder


def digest_of(checkpoint: Path) -> str:
    return fingerprint(locate(str(checkpoint))).digest


def values(path: Path, name: str = "w50") -> dict[str, float]:
    """The first metric of each recorded key, rounded."""
    entry = read_baseline(path).checkpoints[name]
    return {
        key: round(next(iter(recorded.metrics.values())), 6)
        for key, recorded in entry.recorded.items()
    }


def digests(path: Path, name: str = "w50") -> dict[str, str | None]:
    """The weights that each key was measured on, and those of the fingerprint."""
    entry = read_baseline(path).checkpoints[name]
    fingerprint = entry.fingerprint
    return {
        **{key: recorded.weights_digest for key, recorded in entry.recorded.items()},
        "fingerprint": fingerprint.digest if fingerprint is not None else None,
    }


def test_what_ran_is_recorded_and_the_next_run_is_green(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    path = project.baseline(KEYS)
    given = project.give(w50="ppl:8")
    result = project.run(*given, "--ppl-update", *plugin_args)
    result.assert_outcomes(passed=3)
    assert values(path)[WANDA] == 8
    assert set(values(path)) == {WANDA, LM_EVAL}
    assert digests(path) == {WANDA: None, LM_EVAL: None, "fingerprint": None}
    assert "# kept" in path.read_text()
    text = section(result)
    assert "  token_perplexity  -  8  -  recorded\n" in text
    assert text.count("  token_perplexity  -  8") == 2  # once per table
    assert text.count("  word_perplexity  -  19759.7") == 2
    before = path.read_bytes()
    result = project.run(*given)
    result.assert_outcomes(passed=3)
    assert path.read_bytes() == before


def test_many_keys_by_two_workers_are_all_recorded(project: Project) -> None:
    windows = range(8, 28)
    gates = "\n".join(
        f"    wanda/tiny:{window}: {{token_perplexity: {{}}}}" for window in windows
    )
    path = project.baseline(
        "".join(f"{name}:\n  gates:\n{gates}\n" for name in ("a", "b", "c"))
    )
    given = project.give(a="ppl:7", b="ppl:8", c="ppl:9")
    result = project.run(*given, "--ppl-update", "-n2")
    result.assert_outcomes(passed=60)
    for name, perplexity in {"a": 7, "b": 8, "c": 9}.items():
        assert values(path, name) == {
            f"wanda/tiny:{window}": perplexity for window in windows
        }
    assert sorted(line.split()[0] for line in project.loads()) == [
        "llama/a",
        "llama/b",
        "llama/c",
    ]


def test_what_did_not_run_stays_as_it_is(project: Project) -> None:
    path = project.baseline(KEYS, w50="ppl:8")
    before = path.read_text()
    result = project.run(*project.give(w50="ppl:6"), "--ppl-update", "-k", "wanda")
    result.assert_outcomes(passed=1, deselected=2)
    after = path.read_text()
    assert values(path)[WANDA] == 6
    entry = re.compile(r"      lm-eval/.*?(?=\n      \S|\Z)", re.DOTALL)
    assert entry.findall(after) == entry.findall(before) != []


def test_update_new_judges_what_is_recorded(project: Project) -> None:
    path = project.baseline(KEYS)
    project.record(path, "w50", "ppl:8", [WANDA])
    result = project.run(*project.give(w50="ppl:9"), "--ppl-update-new")
    result.assert_outcomes(passed=2, failed=1)
    assert values(path)[WANDA] == 8
    assert set(values(path)) == {WANDA, LM_EVAL}
    assert section(result).startswith(
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  9  +12.50 %  REGRESSED\n"
    )


def test_update_new_leaves_a_baseline_that_lacks_a_metric(project: Project) -> None:
    path = project.baseline(KEYS, w50="ppl:8")
    text = re.sub(r"(?m)^ {8}byte_perplexity: .*\n", "", path.read_text())
    path.write_text(text)
    result = project.run(*project.give(w50="ppl:9"), "--ppl-update-new")
    result.assert_outcomes(failed=3)
    assert path.read_text() == text


def test_a_number_that_is_not_finite_is_never_recorded(project: Project) -> None:
    path = project.baseline(KEYS, w50="ppl:8")
    before = path.read_bytes()
    given = project.give(w50="ppl:8,nan:3")
    result = project.run(*given, "--ppl-update", "-k", "wanda")
    result.assert_outcomes(failed=1, deselected=2)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "stop", ["raise KeyboardInterrupt", "pytest.exit('enough')"], ids=["ctrl-c", "exit"]
)
def test_an_interrupted_run_records_what_it_finished(
    project: Project, stop: str
) -> None:
    path = project.baseline(KEYS)
    project.test(f"def test_stop():\n    {stop}\n")
    given = project.give(w50="ppl:8")
    result = project.run("baselines", "test_it.py", *given, "--ppl-update")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert set(values(path)) == {WANDA, LM_EVAL}


def test_a_folder_that_cannot_be_written_is_red(project: Project) -> None:
    path = project.baseline(KEYS)
    # In the way of the evidence, for every user: root may write anywhere.
    (path.parent / "llama").write_text("")
    result = project.run(
        *project.give(w50="ppl:8"), "--ppl-update", "--ppl-report=r.json"
    )
    result.assert_outcomes(passed=3)
    assert result.ret == 1
    last = section(result).splitlines()[-1]
    assert last.startswith(f"FAILED {path}: not updated: ")
    assert (
        last.endswith(
            "cannot be written: File exists: make room or correct the permissions, and "
            "run again"
        )
        or "cannot be written" in last
    )
    assert values(path) == {}
    assert (project.path / "r.json").exists()


def test_marked_tests_record_too(project: Project) -> None:
    path = project.baseline(KEYS)
    project.test(
        """
        from tests.plugin.stub import make

        @pytest.mark.ppl("wanda", window=32)
        def test_new_window():
            pass

        @pytest.mark.ppl("wanda/tiny:16")
        def test_model():
            return make("ppl:9")
        """
    )
    result = project.run("test_it.py", *project.give(w50="ppl:8"), "--ppl-update")
    result.assert_outcomes(passed=2)
    assert values(path) == {"wanda/tiny:32": 8, WANDA: 9}


def test_a_checkpoint_in_files_is_recorded_with_its_fingerprint(
    checkpoints: Path, project: Project, plugin_args: tuple[str, ...]
) -> None:
    path = project.baseline(KEYS)
    given = project.give(w50=str(checkpoints / "one"))
    result = project.run(*given, "--ppl-update", *plugin_args)
    result.assert_outcomes(passed=3)
    expected = fingerprint(locate(str(checkpoints / "one")))
    everything = {WANDA, LM_EVAL, "fingerprint"}
    assert digests(path) == dict.fromkeys(everything, expected.digest)
    recorded = read_baseline(path).checkpoints["w50"].fingerprint
    assert recorded is not None
    assert read_fingerprint(path.parent, recorded, where="") == expected
    before = path.read_bytes()
    project.run(*given, "--ppl-update").assert_outcomes(passed=3)
    assert path.read_bytes() == before
    assert len(list(path.parent.rglob("fingerprint-*.json"))) == 1


def test_keys_of_other_weights_are_named(checkpoints: Path, project: Project) -> None:
    one, two = checkpoints / "one", checkpoints / "two"
    path = project.baseline(KEYS)
    result = project.run(*project.give(w50=str(one)), "--ppl-update")
    result.assert_outcomes(passed=3)
    result = project.run(*project.give(w50=str(two)), "--ppl-update", "-k", "wanda")
    result.assert_outcomes(passed=1, deselected=2)
    assert digests(path) == {
        WANDA: digest_of(two),
        LM_EVAL: digest_of(one),
        "fingerprint": digest_of(two),
    }
    assert section(result).splitlines()[-1] == (
        "note: llama/w50: other weights than those that are recorded now were measured "
        f"for {LM_EVAL}: record these keys again too"
    )


def test_update_new_leaves_the_recorded_weights(
    checkpoints: Path, project: Project
) -> None:
    """Else ``weights: same`` would be green of weights that nobody accepted."""
    one, two = checkpoints / "one", checkpoints / "two"
    gates = KEYS.replace("  gates:\n", "  gates:\n    weights: same\n")
    path = project.baseline(gates)
    given = project.give(w50=str(one))
    project.run(*given, "--ppl-update", "-k", "wanda").assert_outcomes(
        passed=1, deselected=3
    )
    given = project.give(w50=str(two))
    project.run(*given, "--ppl-update-new").assert_outcomes(passed=2, failed=2)
    assert digests(path) == {
        WANDA: digest_of(one),
        LM_EVAL: digest_of(two),
        "fingerprint": digest_of(one),
    }
    result = project.run(*given, "-k", "weights")
    result.assert_outcomes(failed=1, deselected=3)


def test_accepting_a_number_accepts_no_weights_that_a_gate_holds(
    checkpoints: Path, project: Project
) -> None:
    one, two = checkpoints / "one", checkpoints / "two"
    gates = KEYS.replace("  gates:\n", "  gates:\n    weights: same\n")
    path = project.baseline(gates)
    given = project.give(w50=str(one))
    project.run(*given, "--ppl-update").assert_outcomes(passed=4)
    given = project.give(w50=str(two))
    result = project.run(*given, "--ppl-update", "-k", "wanda")
    result.assert_outcomes(passed=1, deselected=3)
    assert digests(path) == {
        WANDA: digest_of(two),
        LM_EVAL: digest_of(one),
        "fingerprint": digest_of(one),
    }
    assert section(result).splitlines()[-1] == (
        f"note: llama/w50: {WANDA} was measured on other weights than those of the "
        "recorded fingerprint, which stays: accept its own gate, or `pplguard update "
        "PATH --checkpoint llama/w50 --fingerprint`"
    )
    project.run(*given, "-k", "weights").assert_outcomes(failed=1, deselected=3)
    project.run(*given, "--ppl-update").assert_outcomes(passed=4)
    everything = {WANDA, LM_EVAL, "fingerprint"}
    assert digests(path) == dict.fromkeys(everything, digest_of(two))


def test_what_a_test_brings(checkpoints: Path, project: Project) -> None:
    """A path has weights in files; a model may be anything."""
    path = project.baseline(KEYS)
    project.test(
        f"""
        from tests.plugin.stub import make

        @pytest.mark.ppl("wanda", window=32)
        def test_path():
            return {str(checkpoints / "two")!r}

        @pytest.mark.ppl("wanda", window=24)
        def test_model():
            return make("ppl:9")
        """
    )
    given = project.give(w50=str(checkpoints / "one"))
    project.run("test_it.py", *given, "--ppl-update").assert_outcomes(passed=2)
    digest = digest_of(checkpoints / "two")
    assert digests(path) == {
        "wanda/tiny:32": digest,
        "wanda/tiny:24": None,
        "fingerprint": digest,
    }


def test_a_fingerprint_that_cannot_be_taken_is_a_notice(
    checkpoints: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CheckpointError("model.safetensors cannot be read")

    monkeypatch.setattr(weights, "fingerprint", refuse)
    path = project.baseline(KEYS)
    given = project.give(w50=str(checkpoints / "one"))
    result = project.run(*given, "--ppl-update")
    result.assert_outcomes(passed=3)
    assert digests(path) == {WANDA: None, LM_EVAL: None, "fingerprint": None}
    notes = [line for line in section(result).splitlines() if "fingerprint" in line]
    assert notes == [
        "note: llama/w50: recorded without a fingerprint: model.safetensors cannot be "
        "read"
    ]
