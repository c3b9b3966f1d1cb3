"""``pplguard review`` in real git repositories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_pplguard.cli.git import Repository
from pytest_pplguard.cli.review import review_baselines
from pytest_pplguard.errors import UsageError

from .recorded import KEY, edit, perplexity, weights, write

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")

FOLDER = Path("baselines")
FILE = FOLDER / "llama.yaml"
OLD, NEW = perplexity((4.0, 5.0)), perplexity((4.4, 5.5))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which a first baseline was recorded."""
    for name in list(os.environ):
        if name.startswith("GIT_"):  # a hook that runs the tests sets some
            monkeypatch.delenv(name)
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    root = tmp_path / "some repository"
    root.mkdir()
    monkeypatch.chdir(root)
    git("init", "--quiet", "--initial-branch=main")
    write(FILE, fingerprint=weights())
    commit("first")
    return root


def git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout.strip()


def commit(message: str) -> str:
    git("add", "--all")
    git("commit", "--quiet", "--message", message)
    return git("rev-parse", "HEAD")


def shown(
    capsys: pytest.CaptureFixture[str],
    revisions: str | None = None,
    *,
    folder: Path = FOLDER,
    markdown: bool = False,
) -> str:
    capsys.readouterr()
    review_baselines(revisions, folder=folder, markdown=markdown, json_path=None)
    return capsys.readouterr().out


def values(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if "token_perplexity  " in line]


CHANGED = "token_perplexity            3.08022    3.44699   +11.91 %     +11.91 %"


def test_the_numbers_of_these_tests() -> None:
    assert (f"{OLD:.6g}", f"{NEW:.6g}") == ("3.08022", "3.44699")
    assert f"{100 * (NEW / OLD - 1):.2f}" == "11.91"


def test_a_commit_in_full(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repository.is_dir()
    parent = git("rev-parse", "HEAD")
    write(FILE, (4.4, 5.5), fingerprint=weights(1, zeros=4))
    edit(FILE, ("{rel: 0.005}", "{rel: 0.02}"))
    now = commit("second")
    assert shown(capsys) == (
        f"baselines: HEAD ({now[:12]}) against its parent ({parent[:12]})\n"
        "\n"
        "LOOSENED: 1 gate\n"
        f"  llama/dense  {KEY} token_perplexity\n"
        "      rel 0.005 -> rel 0.02 (baselines/llama.yaml:6)\n"
        "\n"
        "llama/dense                         old        new     change  since first\n"
        f"  {KEY}\n"
        f"    {CHANGED}\n"
        "\n"
        "Measured with\n"
        "  llama/dense  fingerprint\n"
        "      other weights (1 tensors, zeros 50.00 % -> 25.00 %)\n"
        "\n"
        "1 gate loosened, 1 value changed\n"
    )


@pytest.mark.usefixtures("repository")
def test_the_working_tree_if_it_differs(capsys: pytest.CaptureFixture[str]) -> None:
    head = git("rev-parse", "HEAD")[:12]
    write(FILE, (4.4, 5.5))
    working = f"baselines: working tree against HEAD ({head})"
    assert shown(capsys).startswith(working)
    assert values(shown(capsys)) == [CHANGED]
    git("add", "--all")  # staged or not
    assert values(shown(capsys)) == [CHANGED]
    commit("second")
    assert not shown(capsys).startswith(working)
    # Other files are nobody's business here.
    Path("README.md").write_text("x")
    (FOLDER / "notes.txt").write_text("x")
    assert not shown(capsys).startswith(working)
    write(FOLDER / "opt.yaml")  # not known to git yet
    text = shown(capsys)
    assert text.startswith("baselines: working tree against HEAD")
    assert "opt/dense\n      new checkpoint" in text


@pytest.mark.usefixtures("repository")
def test_before_the_first_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    git("init", "--quiet")
    assert shown(capsys) == (
        "baselines: working tree against nothing, before the first commit\n\n"
        "nothing changed\n"
    )
    write(FILE)
    assert "llama/dense\n      new checkpoint" in shown(capsys)


@pytest.mark.usefixtures("repository")
def test_the_first_commit(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    first = git("rev-parse", "HEAD")[:12]
    assert text.startswith(f"baselines: HEAD ({first}) against nothing: the first comm")
    assert values(text) == [
        "token_perplexity                  -    3.08022          -            -"
    ]


@pytest.mark.usefixtures("repository")
def test_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    first = git("rev-parse", "HEAD")
    git("switch", "--quiet", "--create", "branch")
    write(FILE, (4.4, 5.5))
    second = commit("second")
    git("switch", "--quiet", "main")
    write(FILE, (6.0, 6.0))
    git("add", "--all")
    third = commit("third")
    assert values(shown(capsys, f"{first}..branch")) == [CHANGED]
    assert shown(capsys, f"{first}..branch").startswith(
        f"baselines: branch ({second[:12]}) against {first[:12]}\n"
    )
    assert shown(capsys, "main..branch").startswith(
        f"baselines: branch ({second[:12]}) against main ({third[:12]})"
    )
    # Since the branch began: what main did meanwhile is not the branch's.
    assert shown(capsys, "main...branch").startswith(
        f"baselines: branch against where it left main ({first[:12]})"
    )
    assert values(shown(capsys, "main...branch")) == [CHANGED]
    assert values(shown(capsys, "branch^..branch")) == [CHANGED]
    git("switch", "--quiet", "branch")
    assert values(shown(capsys, "main...")) == [CHANGED]
    assert values(shown(capsys, f"{first}..")) == [CHANGED]
    assert values(shown(capsys, "branch")) == [CHANGED]
    git("tag", "v1")
    assert values(shown(capsys, "v1")) == [CHANGED]


@pytest.mark.usefixtures("repository")
def test_of_a_merge_the_first_parent_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    git("switch", "--quiet", "--create", "branch")
    write(FILE, (4.4, 5.5))
    commit("second")
    git("switch", "--quiet", "main")
    Path("x").write_text("x")
    commit("third")
    git("merge", "--quiet", "--no-edit", "branch")
    assert values(shown(capsys, "HEAD")) == [CHANGED]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    ("revisions", "message"),
    [
        ("nothing", "'nothing' is no commit of HERE"),
        ("HEAD..nothing", "'nothing' is no commit of HERE"),
        ("--output=x", "'--output=x' is no commit of HERE"),
        ("HEAD..-x", "'-x' is no commit of HERE"),
        ("HEAD:baselines", "'HEAD:baselines' is no commit of HERE"),
        ("", "'' is no commit of HERE"),
        (
            "a..b..c",
            "'a..b..c' is no range of commits: write A..B, A...B or one commit",
        ),
        (
            "a....c",
            "'a....c' is no range of commits: write A..B, A...B or one commit",
        ),
    ],
)
def test_revisions_that_are_none(revisions: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        review_baselines(revisions, folder=FOLDER, markdown=False, json_path=None)
    assert str(caught.value) == message.replace("HERE", str(Path.cwd()))
    assert not Path("x").exists()


def test_a_folder_outside_of_any_repository(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repository.is_dir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"^/.*/baselines is in no git repository that "
    ):
        review_baselines(None, folder=FOLDER, markdown=False, json_path=None)


@pytest.mark.usefixtures("repository")
def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError) as caught:
        review_baselines(None, folder=FOLDER, markdown=False, json_path=None)
    assert str(caught.value) == "git is not installed, and review reads from it"


def test_a_shallow_clone(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = git("rev-parse", "HEAD")
    write(FILE, (4.4, 5.5))
    commit("second")
    clone = tmp_path / "clone"
    git("clone", "--quiet", "--depth=1", repository.as_uri(), str(clone))
    monkeypatch.chdir(clone)
    deeper = (
        "this clone is shallow: fetch more of the history (`git fetch --deepen 50`; "
        "actions/checkout: `fetch-depth: 0`; GitLab: GIT_DEPTH: 0)"
    )
    head = git("rev-parse", "HEAD")
    for revisions, message in {
        "HEAD": f"the parent of {head[:12]} is not here: {deeper}",
        f"{first}..HEAD": f"'{first}' is no commit of {clone}; {deeper}",
    }.items():
        with pytest.raises(UsageError) as caught:
            review_baselines(revisions, folder=FOLDER, markdown=False, json_path=None)
        assert str(caught.value) == message
    git("fetch", "--quiet", "--deepen", "1")
    assert values(shown(capsys)) == [CHANGED]


def test_from_a_folder_below(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(FILE, (4.4, 5.5))
    commit("second")
    (repository / "src" / "deep").mkdir(parents=True)
    monkeypatch.chdir(repository / "src" / "deep")
    assert values(shown(capsys, folder=Path("../../baselines"))) == [CHANGED]
    monkeypatch.chdir(repository / "baselines")
    assert values(shown(capsys, folder=Path())) == [CHANGED]


def test_a_folder_that_is_the_repository(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert repository.is_dir()
    (tmp_path / "flat").mkdir()
    monkeypatch.chdir(tmp_path / "flat")
    git("init", "--quiet")
    write(Path("llama.yaml"))
    commit("first")
    write(Path("llama.yaml"), (4.4, 5.5))
    assert values(shown(capsys, folder=Path())) == [CHANGED]


@pytest.mark.usefixtures("repository")
def test_a_folder_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(FOLDER)
    text = shown(capsys)
    assert "all gates\n      1 gate -> checkpoint removed (" in text
    commit("removed")
    assert "checkpoint removed" in shown(capsys)


@pytest.mark.usefixtures("repository")
def test_a_file_that_was_renamed(capsys: pytest.CaptureFixture[str]) -> None:
    git("mv", str(FILE), str(FOLDER / "llama-2.yaml"))
    text = shown(capsys)
    assert "LOOSENED: 1 gate\n  llama-2  file\n      llama -> llama-2\n" in text
    assert text.endswith("\n1 gate loosened\n")
    commit("renamed")
    assert shown(capsys).endswith("\n1 gate loosened\n")


@pytest.mark.usefixtures("repository")
def test_a_value_that_was_edited(capsys: pytest.CaptureFixture[str]) -> None:
    edit(FILE, (f"token_perplexity: {OLD!r}\n", "token_perplexity: 3.1\n"))
    evidence = next(FOLDER.glob("llama/dense/wanda-*.json"))
    expected = (
        "NOT WHAT RECORDING DOES\n"
        f"  llama/dense  {KEY}\n"
        "      token_perplexity changed, and the evidence did not: edited by hand\n"
        f"  llama/dense  {KEY}\n"
        "      token_perplexity 3.1 is recorded, but its evidence\n"
    )
    text = shown(capsys)
    assert expected in text
    assert f"        llama/dense/{evidence.name} gives\n" in text
    commit("edited")
    assert expected in shown(capsys)


@pytest.mark.usefixtures("repository")
def test_evidence_that_is_not_committed_or_was_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(".gitignore").write_text("*.json\n")
    write(FILE, (4.4, 5.5))
    evidence = next(FOLDER.glob("llama/dense/wanda-*.json"))
    text = " ".join(shown(capsys).split())
    assert (
        f"git ignores its evidence llama/dense/{evidence.name}: nobody else will have "
        "it; look at .gitignore"
    ) in text
    now = commit("without")
    text = " ".join(shown(capsys).split())
    # No word of the temporary folder.
    assert f"evidence baselines/llama/dense/{evidence.name}: the file does not" in text
    assert "pplguard-review-" not in text
    git("add", "--force", str(evidence))
    evidence.write_text(evidence.read_text().replace("4.4", "4.5"))
    git("add", "--force", str(evidence))
    commit("forged")
    assert now
    text = " ".join(shown(capsys).split())
    assert "is not what its name says" in text
    assert text.endswith("1 record to look at")


@pytest.mark.usefixtures("repository")
def test_evidence_alone_that_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = next(FOLDER.glob("llama/dense/fingerprint-*.json"))
    fingerprint.unlink()
    assert shown(capsys).endswith("1 record to look at\n")
    assert "llama/dense  fingerprint\n      evidence" in shown(capsys)


@pytest.mark.usefixtures("repository")
def test_a_protocol_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    protocol = {"window": 16, "first token": "EOS 2"}
    write(FILE, (4.4, 5.5), protocol=protocol, environment={"dtype": "float16"})
    text = shown(capsys)
    assert (
        "NOT COMPARABLE WITH WHAT WAS RECORDED BEFORE\n"
        f"  llama/dense  {KEY}\n"
        "      first token: BOS 0 -> EOS 2\n"
    ) in text
    assert "      dtype: float32 -> float16; torch: 2.13.0 -> none\n" in text
    assert "    not comparable" not in values(text)


@pytest.mark.usefixtures("repository")
def test_files_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    good = FILE.read_text()
    FILE.write_text("schema: 1\nmodel: [\n")
    write(FOLDER / "opt.yaml")
    broken = commit("broken")
    text = shown(capsys)
    assert "Cannot be read, and was left out\n  baselines/llama.yaml:3: not val" in text
    assert "opt/dense\n      new checkpoint" in text
    FILE.write_text(good)
    text = shown(capsys)
    assert f"  {broken[:12]}:baselines/llama.yaml:3: not valid YAML" in text
    FILE.write_bytes(b"\xff")
    assert "baselines/llama.yaml: not UTF-8: save the file as UTF-8" in shown(capsys)


@pytest.mark.usefixtures("repository")
def test_two_files_that_name_the_same_checkpoints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(FILE, FILE.with_suffix(".yml"))
    both = commit("both")
    text = (
        "baselines: llama.yaml and llama.yml would both name their checkpoints "
        "llama/...: rename one of the two"
    )
    said = " ".join(shown(capsys).split())
    assert f"Cannot be read, and was left out {text} 1 gate" in said
    # As pytest stops with an error: nobody judges these gates.
    assert "LOOSENED: 1 gate llama all gates" in said
    FILE.with_suffix(".yml").unlink()
    said = " ".join(shown(capsys).split())
    assert f"Cannot be read, and was left out {both[:12]}:{text}" in said


@pytest.mark.usefixtures("repository")
def test_names_that_are_not_plain(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("base lines é\n$(touch x)")
    write(folder / "llama.yaml")
    commit("odd")
    write(folder / "llama.yaml", (4.4, 5.5))
    text = shown(capsys, folder=folder)
    assert values(text) == [CHANGED]
    assert text.splitlines()[0].startswith("base lines é\\n$(touch x): working tree")
    commit("odd again")
    assert values(shown(capsys, folder=folder)) == [CHANGED]
    assert not Path("x").exists()


@pytest.mark.usefixtures("repository")
def test_links_and_hidden_files_are_no_baselines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (FOLDER / "link.yaml").symlink_to("/etc/passwd")
    (FOLDER / ".hidden.yaml").write_text("x: [\n")
    commit("odd")
    assert shown(capsys).endswith("\nnothing changed\n")


@pytest.mark.usefixtures("repository")
def test_markdown_json_and_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(FILE, ("{rel: 0.005}", "{rel: 0.02}"))
    text = shown(capsys, markdown=True)
    assert "Baselines: 1 gate loosened\n" in text
    path = tmp_path / "review.json"
    assert review_baselines(None, folder=FOLDER, markdown=False, json_path=str(path))
    capsys.readouterr()
    assert review_baselines(None, folder=FOLDER, markdown=False, json_path="-")
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(path.read_text())
    assert document["loosened"] == [
        {
            "checkpoint": "llama/dense",
            "gate": f"{KEY} token_perplexity",
            "old": "rel 0.005",
            "new": "rel 0.02",
            "file": "baselines/llama.yaml",
            "line": 6,
        }
    ]
    edit(FILE, ("{rel: 0.02}", "{rel: 0.001}"))
    assert not review_baselines(None, folder=FOLDER, markdown=False, json_path="-")


@pytest.mark.usefixtures("repository")
def test_programs_of_the_repository_are_not_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    git("config", "core.fsmonitor", "touch ran; false")
    git("config", "diff.external", "touch ran")
    write(FILE, (4.4, 5.5))
    assert values(shown(capsys)) == [CHANGED]
    assert not Path("ran").exists()


@pytest.mark.usefixtures("repository")
def test_in_a_hook_of_a_work_tree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    git("worktree", "add", "--quiet", "../other", "HEAD")
    monkeypatch.chdir(tmp_path / "other")
    edit(FILE, ("rel: 0.005", "rel: 0.5"))
    plain = shown(capsys)
    assert plain.startswith("baselines: working tree against HEAD")
    assert "LOOSENED: 1 gate\n" in plain
    # What git tells hooks, where they run for a work tree.
    directory = git("rev-parse", "--absolute-git-dir")
    monkeypatch.setenv("GIT_DIR", directory)
    monkeypatch.setenv("GIT_INDEX_FILE", f"{directory}/index")
    monkeypatch.setenv("GIT_PREFIX", "")
    assert shown(capsys) == plain


@pytest.mark.usefixtures("repository")
def test_in_a_hook_of_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    subprocess.run(["git", "init", "--quiet", str(outer)], check=True)
    monkeypatch.setenv("GIT_DIR", f"{outer}/.git")
    monkeypatch.setenv("GIT_INDEX_FILE", f"{outer}/.git/index")
    assert "llama.yaml" in Repository(FOLDER).staged_files()


@pytest.mark.usefixtures("repository")
def test_a_file_that_is_no_baseline_any_more_has_lost_its_gates(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Pytest does not collect it: nothing is red.
    edit(FILE, ("schema:", "Schema:"), ("checkpoints:", "Checkpoints:"))
    lost = "LOOSENED: 1 gate\n  llama  all gates\n      1 gate -> cannot be read\n"
    assert lost in shown(capsys)
    assert review_baselines(None, folder=FOLDER, markdown=True, json_path=None)
    commit("lost")
    # What was not read before has lost nothing.
    edit(FILE, ("model:", "Model:"))
    assert not review_baselines(None, folder=FOLDER, markdown=True, json_path=None)
