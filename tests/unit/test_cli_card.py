"""``pplguard card`` on copies of the demo, which has real weights; without torch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints.locate import DEMO
from pytest_pplguard.cli.card import write_card
from pytest_pplguard.errors import BaselineError, UsageError

BASELINES = Path(__file__).parents[2] / "baselines"
NAME = "demo/wanda-50"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO / "wanda-50", "w50")
    shutil.copytree(BASELINES / "demo", "baselines/demo")
    shutil.copy(BASELINES / "demo.yaml", "baselines")
    return tmp_path


def card(model: str = "w50", checkpoint: str | None = None, *, dry_run: bool = False,
         folder: str = "baselines") -> None:  # fmt: skip
    write_card(model, checkpoint, folder=Path(folder), dry_run=dry_run)


def edited(old: str, new: str) -> None:
    path = Path("baselines/demo.yaml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def recorded_values() -> list[float]:
    entry = read_baseline(Path("baselines/demo.yaml")).checkpoints["wanda-50"]
    return sorted(v for r in entry.recorded.values() for v in r.metrics.values())


@pytest.mark.usefixtures("here")
def test_a_card_is_made_and_found_by_its_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    card()
    assert capsys.readouterr().out == (
        "       3.13273  Perplexity per token, the Wanda code's method, windows of 256 "
        "tokens\n"
        "        5.5577  Perplexity per word, lm-eval's task wikitext, windows of 256 "
        "tokens\n"
        "       1.39229  Perplexity per byte, lm-eval's task wikitext, windows of 256 "
        "tokens\n"
        "      0.477464  Bits per byte, lm-eval's task wikitext, windows of 256 tokens"
        "\n"
        "     0.0505695  KL divergence in nats per token from dense, text cut as in "
        "the Wanda code, windows of 256 tokens, the first 16 windows only\n"
        "      0.855392  Agreement on the most likely token with dense, text cut as in "
        "the Wanda code, windows of 256 tokens, the first 16 windows only\n"
        "w50/README.md: 6 results of demo/wanda-50\n"
    )
    data = ModelCard.load("w50/README.md").data.to_dict()
    assert data["tags"] == ["pruned"]
    assert data["library_name"] == "transformers"
    assert "base_model" not in data  # the demo's is no Hub id
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "w50"
    assert sorted(result.metric_value for result in results) == recorded_values()
    evidence = json.loads(
        next(Path("baselines/demo/wanda-50").glob("kl-*")).read_text()
    )
    of_kl = [r for r in results if r.metric_type == "kl_divergence"]
    assert of_kl[0].metric_args is not None
    assert of_kl[0].metric_args["protocol"] == {
        name: value for name, value in evidence["protocol"].items() if value is not None
    }


@pytest.mark.usefixtures("here")
def test_a_second_time_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    card()
    capsys.readouterr()
    path = Path("w50/README.md")
    os.utime(path, (1, 1))
    card(checkpoint=NAME)
    assert capsys.readouterr().out == "w50/README.md: up to date with demo/wanda-50\n"
    assert path.stat().st_mtime == 1
    assert sorted(p.name for p in Path("w50").iterdir() if "README" in p.name) == [
        "README.md"
    ]


@pytest.mark.usefixtures("here")
def test_a_dry_run_prints_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    card(dry_run=True)
    text = capsys.readouterr().out
    assert not Path("w50/README.md").exists()
    card()
    assert Path("w50/README.md").read_text() == text


@pytest.mark.usefixtures("here")
def test_mode_and_body_stay() -> None:
    path = Path("w50/README.md")
    path.write_bytes(b"---\r\nlicense: mit\r\n---\r\n# caf\xc3\xa9\r\n")
    path.chmod(0o640)
    card()
    data = path.read_bytes()
    assert data.startswith(b"---\r\nlicense: mit\r\nmodel-index:\r\n- name: w50\r\n")
    assert data.endswith(b"\r\n---\r\n# caf\xc3\xa9\r\n")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("here")
def test_other_weights_are_refused() -> None:
    shutil.copytree(DEMO / "dense", "dense")
    for arguments, message in {
        ("dense", NAME): (
            "dense does not hold the weights that were recorded as demo/wanda-50, and "
            "its numbers are theirs alone: see `pplguard diff demo/wanda-50 dense`, or "
            "record these with `pplguard update`"
        ),
        ("w50", "demo/wanda"): (
            "no checkpoint demo/wanda in the baseline files of baselines (did you mean "
            "'demo/wanda-50' or 'demo/dense'?)"
        ),
    }.items():
        with pytest.raises(UsageError) as caught:
            card(*arguments)
        assert str(caught.value) == message
    card("dense")  # those of the other entry
    assert not Path("w50/README.md").exists()
    path = Path("w50/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        card()
    assert str(caught.value) == (
        "no baseline in baselines was recorded of the weights of w50: record them with "
        "`pplguard update w50 --checkpoint FILE/NAME`, or look at what differs with "
        "`pplguard diff FILE/NAME w50`"
    )


@pytest.mark.usefixtures("here")
def test_weights_that_were_recorded_twice() -> None:
    text = Path("baselines/demo.yaml").read_text()
    Path("baselines/copy.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        card()
    assert str(caught.value) == (
        "the weights of w50 were recorded as copy/wanda-50 and as demo/wanda-50: say "
        "which, for example --checkpoint copy/wanda-50"
    )
    card(checkpoint="copy/wanda-50")


@pytest.mark.usefixtures("here")
def test_what_was_not_measured_on_these_weights_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    edited(
        "    recorded:\n      wanda/demo:256:\n        token_perplexity: 3.13",
        "    recorded:\n      wanda/demo:128:\n        token_perplexity: 3.5\n"
        "        source: {kind: published, reference: a paper, digits: 1}\n"
        "      wanda/demo:256:\n"
        f"        weights_digest: sha256:{'9' * 64}\n        token_perplexity: 3.13",
    )
    card()
    out, err = capsys.readouterr()
    assert err == (
        "pplguard: left out, published elsewhere and not measured here: "
        "wanda/demo:128\n"
        "pplguard: left out, measured on other weights: wanda/demo:256\n"
        "pplguard: without a weights_digest, as it is not recorded on which weights "
        "they were measured: lm-eval/wikitext+demo:256, kl/demo:256:first16; `pplguard "
        "update` records that\n"
    )
    assert "Perplexity per token" not in out
    assert out.endswith("5 results of demo/wanda-50\n")


@pytest.mark.usefixtures("here")
def test_values_without_their_evidence_are_not_published() -> None:
    edited("token_perplexity: 3.1327331589094136\n", "token_perplexity: 3.1\n")
    with pytest.raises(BaselineError, match=r"token_perplexity 3\.1 is recorded, but"):
        card()
    assert not Path("w50/README.md").exists()


@pytest.mark.usefixtures("here")
def test_no_fingerprint_and_no_folder() -> None:
    text = Path("baselines/demo.yaml").read_text()
    start = text.rindex("      fingerprint:")
    end = text.index("      kl/demo:256:first16:\n", start)
    Path("baselines/demo.yaml").write_text(text[:start] + text[end:])
    with pytest.raises(UsageError) as caught:
        card(checkpoint=NAME)
    assert str(caught.value) == (
        "demo/wanda-50 has no recorded fingerprint, so nobody can tell whether w50 is "
        "what was measured: record it with `pplguard update w50 --checkpoint "
        "demo/wanda-50`"
    )
    with pytest.raises(
        UsageError, match=r"^nowhere is no folder; give --baselines DIR$"
    ):
        card(folder="nowhere")


def test_folders_of_others_are_not_written_to(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        card(NAME)
    assert str(caught.value) == (
        "demo/wanda-50 is part of the package, which is not written to: copy it with "
        "`pplguard demo DIR`, or give --dry-run"
    )
    card(NAME, dry_run=True)
    assert capsys.readouterr().out.startswith("---\n")
    # As in the Hub's cache: a snapshot of links to blobs.
    blob = here / "hub/models--o--n/blobs/abc"
    blob.parent.mkdir(parents=True)
    blob.write_text("---\nlicense: mit\n---\n")
    shown = "hub/models--o--n/snapshots/0123"
    snapshot = here / shown
    shutil.copytree("w50", snapshot)
    (snapshot / "README.md").symlink_to("../../blobs/abc")
    reason = (
        ", and what is written there would be lost, or seen by others: copy the "
        "checkpoint to a folder of its own, or give --dry-run"
    )
    with pytest.raises(UsageError) as caught:
        card(str(snapshot))
    assert str(caught.value) == f"{shown}/README.md is in the Hub's cache{reason}"
    card(str(snapshot), dry_run=True)
    assert blob.read_text() == "---\nlicense: mit\n---\n"
    Path("w50/README.md").symlink_to(blob)
    with pytest.raises(UsageError) as caught:
        card()
    assert str(caught.value) == f"w50/README.md is a link{reason}"


@pytest.mark.usefixtures("here")
def test_cards_that_cannot_be_read_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("w50/README.md")
    path.write_bytes(b"\xff")
    with pytest.raises(
        UsageError, match=r"^w50/README.md is not UTF-8: save it as UTF"
    ):
        card()
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"^w50/README.md cannot be read: Is a direct"):
        card()
    path.rmdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError) as caught:
        card()
    assert str(caught.value) == (
        "w50/README.md cannot be written: No space left on device; give --dry-run to "
        "see what it would hold"
    )
    assert not [p for p in Path("w50").iterdir() if "README" in p.name]
