"""Options and ini keys: resolution of ``--ppl-model``, and mistakes (exit code 4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .project import Project

ONE = """
w50:
  path: out/w50
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""
TWO = """
w50:
  path: out/w50
  gates:
    wanda/tiny:16: {token_perplexity: {}}
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""


def mistake(result: pytest.RunResult) -> str:
    """The usage error's text; the run must have ended with nothing else."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line]
    assert lines[0].startswith("ERROR: ")
    assert "INTERNALERROR" not in str(result.stdout) + str(result.stderr)
    return "\n".join(lines).removeprefix("ERROR: ")


def header(result: pytest.RunResult) -> list[str]:
    return [line for line in result.stdout.lines if line.startswith("pplguard: ")]


@pytest.mark.parametrize(
    ("body", "value", "means"),
    [
        (TWO, "llama/dense=ppl:8", "llama/dense (ppl:8)"),
        (TWO, "llama/w50=a=b", "llama/w50 (a=b)"),
        (TWO, "llama/w50", "llama/w50 (out/w50)"),
        (TWO, "out/w50", "llama/w50 (out/w50)"),
        (TWO, "./out/../out/w50", "llama/w50 (./out/../out/w50)"),
        (ONE, "some/where", "llama/w50 (some/where)"),
        (ONE, "x=y", "llama/w50 (x=y)"),
        (ONE, "llama/w50=z", "llama/w50 (llama/w50=z)"),
    ],
)
def test_what_a_value_means(
    project: Project, body: str, value: str, means: str
) -> None:
    project.baseline(body)
    for folder in ("out/w50", "x=y", "llama/w50=z"):
        (project.path / folder).mkdir(parents=True)
    result = project.run("--collect-only", f"--ppl-model={value}")
    assert result.ret == 0
    assert header(result) == [f"pplguard: {means}"]


def test_demo_is_both_of_the_demo(project: Project) -> None:
    project.baseline("dense: {}\nwanda-50: {}\n", file="baselines/demo.yaml")
    (project.path / "demo").mkdir()
    result = project.run("--collect-only", "--ppl-model=demo")
    assert header(result) == ["pplguard: demo/dense, demo/wanda-50"]


def test_the_same_value_twice_is_one(project: Project) -> None:
    project.baseline(ONE)
    result = project.run(
        "--collect-only", *project.give(w50="x"), *project.give(w50="x")
    )
    assert header(result) == ["pplguard: llama/w50 (x)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "some/where",
            "--ppl-model some/where: no checkpoints have this `path:`; say which it "
            "is, for example --ppl-model llama/w50=some/where (candidates: llama/w50, "
            "llama/dense)",
        ),
        (
            "llama/w5=ppl:8",
            "--ppl-model: 'llama/w5=ppl:8' is no existing path, and 'llama/w5' is no "
            "recorded checkpoint (did you mean 'llama/w50' or 'llama/dense'?) (known: "
            "llama/w50, llama/dense)",
        ),
        (
            "llama/dense",
            "--ppl-model llama/dense: its baseline records no `path:`; say where it "
            "is: --ppl-model llama/dense=PATH",
        ),
        ("llama/w50=", "--ppl-model: no path behind 'llama/w50='"),
        ("", "--ppl-model: empty; give [NAME=]PATH"),
    ],
)
def test_values_that_mean_nothing(project: Project, value: str, text: str) -> None:
    project.baseline(TWO)
    assert mistake(project.run(f"--ppl-model={value}")) == text


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--ppl-baselines", "DIR"),
        ("--ppl-history", "URL"),
        ("--ppl-journal", "DIR"),
        ("--ppl-cache-dir", "DIR"),
    ],
)
def test_an_empty_place_is_no_default(project: Project, option: str, what: str) -> None:
    """``--ppl-cache-dir=$CACHE`` where nobody has set CACHE."""
    project.baseline(ONE)
    text = f"{option}: empty; give {what}, or leave it out"
    # Also in a run that has nothing else of this plugin.
    assert mistake(project.run(f"{option}=")) == text
    assert mistake(project.run(*project.give(w50="ppl:8"), f"{option}=")) == text


def test_an_empty_ini_key_is_none(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.ini("ppl_history = sqlite:///history.db\nppl_journal =\n")
    args = project.give(w50="ppl:8")
    result = project.run(*args, "-o", "ppl_history=")
    assert result.ret == 0
    assert not (project.path / "history.db").exists()
    assert project.run(*args).ret == 0
    assert (project.path / "history.db").exists()


def test_demo_without_its_file(project: Project) -> None:
    assert mistake(project.run("--ppl-model=demo")) == (
        f"--ppl-model demo: no baseline file demo.yaml in {project.path}/baselines; "
        "run `pplguard demo DIR` and use the command that it prints"
    )


def test_no_baseline_file_at_all(project: Project) -> None:
    assert mistake(project.run("--ppl-model=out/w50")) == (
        f"--ppl-model out/w50: no baseline file in {project.path}/baselines; record "
        "one with `pplguard update out/w50 --checkpoint FILE/NAME --base MODEL`"
    )


def test_two_values_for_one_name(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(TWO)
    args = [*project.give(w50="a"), *project.give(w50="b"), *plugin_args]
    assert mistake(project.run(*args)) == (
        "--ppl-model: a and b both stand for the checkpoint llama/w50; say which is "
        "which: --ppl-model NAME=b (known: llama/w50, llama/dense)"
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--ppl-update"],
            "--ppl-update: nothing to record; give --ppl-model [NAME=]PATH",
        ),
        (
            ["--ppl-update-new"],
            "--ppl-update-new: nothing to record; give --ppl-model [NAME=]PATH",
        ),
        (
            ["--ppl-model=x", "--ppl-update", "--ppl-update-new"],
            "--ppl-update and --ppl-update-new exclude each other",
        ),
        (
            ["--ppl-batch-size=0"],
            "--ppl-batch-size: '0' is not a batch size; give a whole number from 1, or "
            "auto",
        ),
        (
            ["--ppl-threads=none"],
            "--ppl-threads: 'none' is no number of threads; give a whole number from 1",
        ),
        (
            ["--ppl-early", "--ppl-early-cap=0"],
            "--ppl-early-cap: '0' is no cap; give nats a token above 0, for example "
            "0.05",
        ),
        (
            ["--ppl-early-error=0.01"],
            "--ppl-early-error is for --ppl-early: add that, or leave it out",
        ),
        (
            ["--ppl-model=x", "--ppl-update", "--ppl-early"],
            "--ppl-early leaves windows out, and a baseline needs all: record without "
            "it (-o ppl_early=false where the ini file has it)",
        ),
        (
            ["--ppl-device=gpu"],
            "--ppl-device 'gpu' is no device (did you mean 'xpu' or 'npu'?): expected "
            "auto, cpu, cuda, cuda:1, or one of mps, xpu, npu, hpu, mlu, musa",
        ),
        (
            ["--ppl-dtype=float31"],
            "--ppl-dtype 'float31' is no dtype (did you mean 'float32' or 'float16'?): "
            "expected auto, float32, float16, bfloat16, float64",
        ),
        (
            ["--ppl-report=r.xml"],
            "--ppl-report: HERE/r.xml must end in .html, .json, .md or .csv",
        ),
        (
            ["--ppl-report=nowhere/r.json"],
            "--ppl-report: the folder of HERE/nowhere/r.json does not exist",
        ),
        (
            ["--ppl-corpus=text.txt"],
            "--ppl-corpus: 'text.txt' is not NAME=PATH, for example "
            "wikitext2=data/wiki.test.raw",
        ),
        (
            ["--ppl-corpus=a=text.txt", "--ppl-corpus=a=b.txt"],
            "--ppl-corpus: a is given twice, as text.txt and b.txt",
        ),
        (
            ["--ppl-corpus=a=nowhere.txt"],
            "--ppl-corpus: a: HERE/nowhere.txt does not exist",
        ),
        (["--ppl-baselines=nowhere"], "--ppl-baselines: HERE/nowhere is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(project: Project, args: list[str], text: str) -> None:
    project.baseline(ONE)
    result = project.run(*args)
    assert mistake(result) == text.replace("HERE", str(project.path))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "ppl_batch_size = many",
            "ini ppl_batch_size: 'many' is not a batch size; give a whole number from "
            "1, or auto",
        ),
        (
            "ppl_published = warm",
            "ppl_published: 'warm' (did you mean 'warn'?) is not one of accept, warn, "
            "fail",
        ),
        (
            "ppl_model = llama/w5=x",
            "--ppl-model: 'llama/w5=x' is no existing path, and 'llama/w5' is no "
            "recorded checkpoint (did you mean 'llama/w50'?) (known: llama/w50)",
        ),
    ],
)
def test_mistakes_in_the_ini_file(project: Project, line: str, text: str) -> None:
    project.baseline(ONE)
    project.ini(line)
    assert mistake(project.run()) == text


def test_ini_twins(project: Project) -> None:
    project.baseline(ONE, file="mine/llama.yaml", w50="ppl:8")
    project.ini(
        """
        ppl_model = llama/w50=ppl:8
        ppl_baselines = mine
        ppl_device = cpu
        ppl_dtype = float32
        ppl_batch_size = 2
        ppl_attention = eager
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1)
    # The command line wins.
    result = project.run(*project.give(w50="ppl:9"))
    result.assert_outcomes(failed=1)


def test_another_executor_than_the_ini_files(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.ini(
        """
        ppl_executor = server
        ppl_server = http://127.0.0.1:9/v1
        ppl_replicas = 8
        """
    )
    models = project.give(w50="ppl:8")
    project.run(*models, "--ppl-executor=local").assert_outcomes(passed=1)
    # What is typed beside it is a mistake.
    assert mistake(project.run("--ppl-executor=local", "--ppl-replicas=2")) == (
        "--ppl-replicas is for --ppl-executor ray or server: add that, or leave it out"
    )
    result = project.run(*models)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        "note: pytest_pplguard_load_model (*conftest.py) is not asked: checkpoints are "
        "measured elsewhere (server)"
    )


@pytest.mark.parametrize(
    ("ini", "typed", "words"),
    [
        (
            "ppl_dtype = float16",
            (),
            "ini ppl_dtype is for models that are loaded here, and the executor is a "
            "server, which was started with its own: leave it out, or add "
            "-o ppl_dtype=",
        ),
        (
            "ppl_compile = true",
            (),
            "ini ppl_compile is for models that are loaded here, and the executor is a "
            "server, which was started with its own: leave it out, or add "
            "-o ppl_compile=false",
        ),
        (
            "ppl_dtype = float16",
            ("--ppl-dtype=bfloat16",),
            "--ppl-dtype is for models that are loaded here, and the executor is a "
            "server, which was started with its own: leave it out",
        ),
        (
            "ppl_server_model = a/b=x,c/d=x",
            (),
            "ini ppl_server_model: a/b and c/d would both be the server's model x: "
            "give each its own, or measure one at a time",
        ),
        (
            "",
            ("--ppl-server=y",),
            "--ppl-server: 'y' is no address; give http://HOST:PORT/v1",
        ),
        (
            "",
            ("-o", "ppl_server=y"),
            "ini ppl_server: 'y' is no address; give http://HOST:PORT/v1",
        ),
    ],
)
def test_what_does_not_go_with_a_server_is_named_as_it_was_given(
    project: Project, ini: str, typed: tuple[str, ...], words: str
) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.ini(
        f"""
        ppl_executor = server
        ppl_server = http://127.0.0.1:9/v1
        {ini}
        """
    )
    assert mistake(project.run(*project.give(w50="ppl:8"), *typed)) == words


def test_what_the_ini_file_asks_for_can_be_taken_back(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.ini(
        """
        ppl_executor = server
        ppl_server = http://127.0.0.1:9/v1
        ppl_dtype = float16
        ppl_compile = true
        """
    )
    back = ("-o", "ppl_dtype=", "-o", "ppl_compile=false")
    result = project.run(*project.give(w50="ppl:8"), *back)
    result.assert_outcomes(errors=1)
    # The checkpoint itself is what is missing now.
    result.stdout.fnmatch_lines("*because      ppl:8 does not exist (looked at *")


def test_paths_typed_in_a_folder_below(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.baseline(ONE, w50="ppl:8")
    below = project.path / "below"
    below.mkdir()
    (below / "text.txt").write_text(Path("text.txt").read_text())
    monkeypatch.chdir(below)
    result = project.run(
        "../baselines",
        *project.give(w50="ppl:8"),
        "--ppl-baselines=../baselines",
        "--ppl-corpus=tiny=text.txt",
        "--ppl-report=r.json",
    )
    result.assert_outcomes(passed=1)
    assert (below / "r.json").exists()


def test_help(project: Project) -> None:
    lines = project.run("--help").stdout.lines
    start = lines.index("perplexity gates for language models:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    words = " ".join(" ".join(lines[start:end]).split())
    assert words == (
        "perplexity gates for language models: "
        "--ppl-model=[NAME=]PATH Measure this checkpoint: a folder, an ADAPTER[+BASE], "
        "a GGUF file, a Hub id@revision, a NAME of a baseline file, or demo "
        "(repeatable; ini: ppl_model) "
        "--ppl-update Record what this run measures as the new baselines "
        "--ppl-update-new Record only what has no baseline yet "
        "--ppl-baselines=DIR Folder of the baseline files (ini: ppl_baselines, "
        "default: baselines) "
        "--ppl-corpus=NAME=PATH Read this corpus from a local file: raw text, .jsonl, "
        ".parquet or a save_to_disk folder (repeatable; ini: ppl_corpus) "
        "--ppl-include-path=DIR Find tasks of lm-eval in this folder first; YAML there "
        "can run code (repeatable; ini: ppl_include_path) "
        "--ppl-device=DEVICE auto, cpu, cuda, cuda:N or mps; auto places a model that "
        "does not fit one GPU on several (ini: ppl_device, default: auto) "
        "--ppl-max-memory=DEVICE=SIZE Place the model's layers on these devices, at "
        "most so much on each: 0=20GiB for a GPU by its number, cpu=60GiB; what is "
        "left goes to disk (repeatable; ini: ppl_max_memory) "
        "--ppl-executor=WHERE Score windows here (local), on replicas of a Ray cluster "
        "(ray), or on a server that runs already (server) (ini: ppl_executor, default: "
        "local) "
        "--ppl-replicas=N With ray: load the checkpoint so many times; with server: "
        "send so many requests at once (ini: ppl_replicas, default: 1) "
        "--ppl-gpus-per-replica=G GPUs of each replica; 0: it runs on a CPU (ini: "
        "ppl_gpus_per_replica, default: 1 where the cluster has GPUs) "
        "--ppl-ray-address=ADDRESS Ray's cluster: HOST:PORT, ray://HOST:PORT or auto "
        "(ini: ppl_ray_address, default: RAY_ADDRESS, else a cluster on this machine "
        "alone) "
        "--ppl-portion-timeout=SECONDS Give windows to another replica after so long; "
        "with a server: ask once more after so long, and wait so long for one that is "
        "away (ini: ppl_portion_timeout, default: 600) "
        "--ppl-server=URL With --ppl-executor server: an OpenAI-compatible endpoint "
        "that tells log-probabilities of the prompt, http://HOST:8000/v1 (ini: "
        "ppl_server) "
        "--ppl-server-model=ID The model's id there, or NAME=ID,... of several "
        "checkpoints (ini: ppl_server_model, default: the one with the checkpoint's "
        "name or path, else the only one) "
        "--ppl-dtype=DTYPE auto, float32, float16 or bfloat16; auto is float32 on a "
        "CPU, else the checkpoint's own (ini: ppl_dtype, default: auto) "
        "--ppl-batch-size=N Windows that the model reads at once, or auto: as many as "
        "memory allows and time gains by (ini: ppl_batch_size, default: 1) "
        "--ppl-attention=KERNEL Attention implementation of transformers: eager, "
        "sdpa, ... (ini: ppl_attention, default: the model's) "
        "--ppl-threads=N Threads of torch on a CPU (ini: ppl_threads, default: torch's "
        "own, shared between xdist's workers); with --ppl-executor ray the CPUs of "
        "each replica (default: 1) "
        "--ppl-compile Run the model through torch.compile (ini: ppl_compile, default: "
        "false) "
        "--ppl-report=PATH Write all verdicts to this .html, .json, .md or .csv file "
        "(repeatable) "
        "--ppl-ladder=FILE Show in .html reports what `pplguard explain --json FILE` "
        "measured (repeatable) "
        "--ppl-history=URL Add all verdicts to this database, sqlite:///FILE, for "
        "`pplguard history` (ini: ppl_history) "
        "--ppl-journal=DIR Keep finished windows here until the run is over, so that "
        "one that is killed goes on; off keeps none (ini: ppl_journal, default: the "
        "user's cache) "
        "--ppl-cache Take results of unchanged checkpoints from a cache, and keep new "
        "ones there (ini: ppl_cache, which has no effect in CI; default: false) "
        "--ppl-cache-dir=DIR Folder of --ppl-cache (ini: ppl_cache_dir, default: in "
        "the user's cache) "
        "--ppl-early Score windows in a random order, and stop as soon as a gate's "
        "verdict is known (ini: ppl_early, default: false) "
        "--ppl-early-cap=NATS With --ppl-early: assume that no window has moved by "
        "more than this, in nats a token; without it no gate can pass early (ini: "
        "ppl_early_cap) "
        "--ppl-early-error=P With --ppl-early: the largest probability of a verdict "
        "that a full run would not give (ini: ppl_early_error, default: 0.001) "
        "--ppl-allow-pickle Load weights from pickle files, which can run code "
        "--ppl-trust-remote-code Run Python code that a checkpoint brings along"
    )


def test_markers(project: Project) -> None:
    lines = project.run("--markers").stdout.lines
    (line,) = [line for line in lines if line.startswith("@pytest.mark.ppl")]
    assert line == (
        "@pytest.mark.ppl(*methods, checkpoint=None, rel=None, abs=None, max=None, "
        "min=None, drift=None, sigma=None, direction=None, window=None): hold the "
        "perplexity of a checkpoint, or of the model that the test returns, to its "
        "recorded baseline; methods are wanda, lm-eval, kl, strided, llama-cpp, "
        "lora-ft, gptq and vllm, or whole keys like wanda/wikitext2:4096"
    )


def test_a_path_behind_a_space_that_moves_the_root_directory(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two equal commands, where the first has made the folder."""
    below = project.path / "project"
    outside = project.path / "elsewhere" / "journal"
    for folder in (below, outside):
        folder.mkdir(parents=True)
    for name in ("pytest.ini", "conftest.py", "text.txt"):
        (project.path / name).rename(below / name)
    project.baseline(ONE, file="project/baselines/llama.yaml")
    monkeypatch.chdir(below)
    given = project.give(w50="ppl:8")
    spaced = project.run(*given, "--ppl-journal", "../elsewhere/journal")
    assert mistake(spaced) == (
        "--ppl-model: 'llama/w50=ppl:8' is no existing path, and 'llama/w50' is no "
        "recorded checkpoint (no baseline file is known)\n"
        f"pytest's root directory is {project.path}; if that is not your project, "
        "write options that name an existing path with an equals sign: "
        "--ppl-model=PATH, --ppl-journal=PATH"
    )
    run = project.run(*given, "--ppl-journal=../elsewhere/journal", "--collect-only")
    assert run.ret == pytest.ExitCode.OK
