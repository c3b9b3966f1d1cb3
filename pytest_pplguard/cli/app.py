"""Commands and their options; the work is in the other files of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import (
    JOURNAL_OFF,
    Execution,
    Options,
    parse_batch_size,
    parse_corpora,
    parse_execution,
    parse_given,
    parse_max_memory,
)

app = typer.Typer(
    name="pplguard",
    help="Perplexity baselines of pruned language models: measure, record, compare.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

cache = typer.Typer(
    help="Look at the results that --ppl-cache keeps, or remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")


def _show_versions(asked: bool) -> None:
    if asked:
        from .version import show_versions

        show_versions()
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_versions,
            is_eager=True,
            help="Show the versions of pytest-pplguard, Python and what measures.",
        ),
    ] = False,
) -> None:
    """Only here to have an option."""


def _folder_of(option: str) -> Callable[[str], Path]:
    """An empty folder would be the one where the command was started."""
    return lambda text: Path(parse_given(text, option=option, what="DIR"))


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, an ADAPTER[+BASE], a GGUF file, a Hub id@revision, demo/dense "
        "or demo/wanda-50",
    ),
]
_OTHER_METHODS = "strided, llama-cpp, lora-ft, gptq, vllm, or one that is installed"


def _methods(choice: str, default: str = "the first two") -> Any:
    return typer.Option(
        "--method", metavar="METHOD", help=f"{choice} (repeatable; default: {default})"
    )


Methods = Annotated[
    list[str] | None,
    _methods(f"wanda, lm-eval, kl with --reference, {_OTHER_METHODS}"),
]
MethodsRecorded = Annotated[
    list[str] | None,
    _methods(
        f"wanda, lm-eval, kl with --reference, {_OTHER_METHODS}",
        "those of the entry; for a new one the first two",
    ),
]
MethodsPlanned = Annotated[
    list[str] | None, _methods(f"wanda, lm-eval, kl, {_OTHER_METHODS}")
]
MethodsAlone = Annotated[
    list[str] | None, _methods(f"wanda, lm-eval, {_OTHER_METHODS}")
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The checkpoint that --method kl compares with, usually the dense one",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=2,
        help="Tokens in a window (default: what the method is usually measured at, "
        "else the model's maximum, at most 4096)",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=1,
        help="Tokens from one window's start to the next, for strided (default: 512, "
        "or half the window where that is less)",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Only the first N windows, or pages or documents for lm-eval; the key "
        "ends in :firstN",
    ),
]
Corpora = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        metavar="NAME[=PATH]",
        help="Measure this text, read from a local file if a path is given "
        "(default: wikitext2)",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Measure this task or group of lm-eval, such as hellaswag (repeatable)",
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=0,
        help="Solved examples before each question (default: the task's own number)",
    ),
]
IncludePath = Annotated[
    list[str] | None,
    typer.Option(
        "--include-path",
        metavar="DIR",
        help="Find tasks of lm-eval here first; YAML there can run code (repeatable)",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N or mps; auto places a model that does not fit "
        "one GPU on several",
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE",
        help="Place the model's layers on these devices, at most so much on each: "
        "0=20GiB for a GPU by its number, cpu=60GiB; what is left goes to disk "
        "(repeatable)",
    ),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="WHERE",
        help="Score windows here (local), on replicas of a Ray cluster (ray), or on a "
        "server that runs already (server) (default: local)",
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="With ray: load the checkpoint so many times; with server: send so many "
        "requests at once (default: 1)",
    ),
]
GpusPerReplica = Annotated[
    str | None,
    typer.Option(
        metavar="G",
        help="GPUs of each replica; 0: it runs on a CPU (default: 1 where the cluster "
        "has GPUs)",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray's cluster: HOST:PORT, ray://HOST:PORT or auto (default: RAY_ADDRESS, "
        "else a cluster on this machine alone)",
    ),
]
PortionTimeout = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        help="Give windows to another replica after so long; with a server: ask once "
        "more after so long, and wait so long for one that is away "
        "(default: 600)",
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="With --executor server: an OpenAI-compatible endpoint that tells "
        "log-probabilities of the prompt, http://HOST:8000/v1",
    ),
]
ServerModel = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="The model's id there, or NAME=ID,... of several checkpoints (default: "
        "the one with the checkpoint's name or path, else the only one)",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="auto, float32, float16 or bfloat16; auto is float32 on a CPU, else the "
        "checkpoint's own",
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Windows that the model reads at once, or auto: as many as memory allows "
        "and time gains by",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="KERNEL",
        help="Attention implementation of transformers: eager, sdpa, ... (default: the "
        "model's)",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Threads of torch on a CPU (default: torch's own)"
    ),
]
ReplicaThreads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Threads of torch on a CPU (default: torch's own); with --executor ray "
        "the CPUs of each replica (default: 1)",
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Run the model through torch.compile")
]
JournalFolder = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        help="Where finished windows are kept until the command is done, so that one "
        "that is killed goes on; off keeps none (default: the user's cache)",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Load weights from pickle files, which can run code"
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that a checkpoint brings along"
    ),
]
Baselines = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="Folder of the baseline files",
        parser=_folder_of("--baselines"),
    ),
]


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to put the demo's baselines")
    ],
) -> None:
    """Put the demo's baseline file into DIR and say how to run it."""
    from .demo import copy_demo

    copy_demo(folder)


@app.command()
def measure(
    model: Model,
    method: Methods = None,
    reference: Reference = None,
    window: Window = None,
    stride: Stride = None,
    limit: Limit = None,
    corpus: Corpora = None,
    task: Tasks = None,
    shots: Shots = None,
    include_path: IncludePath = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    executor: ExecutorName = None,
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    portion_timeout: PortionTimeout = None,
    server: Server = None,
    server_model: ServerModel = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = "1",
    attention: Attention = None,
    threads: ReplicaThreads = None,
    compile: Compile = False,
    journal: JournalFolder = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
) -> None:
    """Measure a checkpoint; no baseline is read or written."""
    from .measure import Wanted, measure_model

    wanted = Wanted.parse(
        method, window=window, stride=stride, limit=limit, corpora=corpus,
        reference=reference, tasks=task, shots=shots,
    )  # fmt: skip
    wanted.check_reference()
    options = _options(
        wanted.files, device, dtype, batch_size, attention, threads, compile, journal,
        allow_pickle, trust_remote_code, include_path,
        max_memory,
        _execution(
            executor, replicas, gpus_per_replica, ray_address, portion_timeout,
            server, server_model,
        ),
    )  # fmt: skip
    measure_model(model, wanted, options, json_path=json)


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint as for measure, a folder with no more than a "
            "config.json, that file, or FILE/NAME for what a baseline has recorded",
        ),
    ],
    method: MethodsPlanned = None,
    window: Window = None,
    stride: Stride = None,
    limit: Limit = None,
    corpus: Corpora = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = "1",
    attention: Attention = None,
    threads: Threads = None,
    gpus: Annotated[
        str,
        typer.Option(
            metavar="[MACHINESx]N",
            help="Plan for N GPUs that are not here; 2x8: on two machines with 8 each",
        ),
    ] = "",
    gpu_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory of each of these GPUs, such as 80GiB"
        ),
    ] = "",
    cpu_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Memory of the machine, for weights that its GPUs have no room for",
        ),
    ] = "",
    gpus_per_replica: Annotated[
        int | None,
        typer.Option(
            metavar="G", min=1, help="GPUs of each replica (default: a machine's)"
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Replicas that share the windows (default: 1)"
        ),
    ] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="What one GPU reaches, in 1e12 FLOPs a second: its peak times the "
            "share of it that is used (default: what this machine reaches)",
        ),
    ] = None,
    no_timing: Annotated[
        bool,
        typer.Option("--no-timing", help="Run nothing, and estimate no time"),
    ] = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    baselines: Baselines = Path("baselines"),
) -> None:
    """Say what a measurement takes, before anything large is loaded.

    The exit status is 0 if it fits somewhere, 1 if it does not, and 2 if it cannot be
    planned.
    """
    from .measure import Wanted
    from .plan import Machine, plan_measurement

    wanted = Wanted.parse(
        method, window=window, stride=stride, limit=limit, corpora=corpus
    )
    options = _options(
        wanted.files, device, dtype, batch_size, attention, threads, False,
        JOURNAL_OFF, allow_pickle, trust_remote_code,
    )  # fmt: skip
    machine = Machine(
        gpus=gpus,
        gpu_memory=gpu_memory,
        cpu_memory=cpu_memory,
        gpus_per_replica=gpus_per_replica,
        replicas=replicas,
        tflops=tflops,
        calibrate=not no_timing,
    )
    fits = plan_measurement(
        model, wanted, options, machine, folder=baselines, json_path=json
    )
    raise typer.Exit(0 if fits else 1)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="The dense model, then those to compare with it; each a checkpoint "
            "as for measure, a recorded baseline FILE/NAME, or a baseline FILE for all "
            "in it; demo: the demo's two",
        ),
    ],
    window: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=2,
            help="Tokens in a window (default: the baselines', else the shortest "
            "maximum of all models, at most 4096)",
        ),
    ] = None,
    limit: Limit = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=PATH]",
            help="Measure this text, read from a local file if a path is given "
            "(default: the baselines', else wikitext2)",
        ),
    ] = None,
    baselines: Baselines = Path("baselines"),
    device: Device = "auto",
    max_memory: MaxMemory = None,
    executor: ExecutorName = None,
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    portion_timeout: PortionTimeout = None,
    server: Server = None,
    server_model: ServerModel = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = "1",
    attention: Attention = None,
    threads: ReplicaThreads = None,
    compile: Compile = False,
    journal: JournalFolder = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
) -> None:
    """Compare models by both methods, and say whose the gap is.

    The exit status is 1 if a model could not be measured.
    """
    from .compare import Asked, compare_models

    files = [corpus] if corpus is not None and "=" in corpus else []
    options = _options(
        files, device, dtype, batch_size, attention, threads, compile, journal,
        allow_pickle, trust_remote_code, None, max_memory,
        _execution(
            executor, replicas, gpus_per_replica, ray_address, portion_timeout,
            server, server_model,
        ),
    )  # fmt: skip
    name = corpus.partition("=")[0] if corpus is not None else None
    complete = compare_models(
        models,
        options,
        Asked(name, window, limit),
        folder=baselines,
        json_path=json,
    )
    raise typer.Exit(0 if complete else 1)


@app.command()
def update(
    model: Model,
    checkpoint: Annotated[
        str,
        typer.Option(metavar="FILE/NAME", help="The entry to record, llama/wanda-50"),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model, where FILE is new"),
    ] = None,
    method: MethodsRecorded = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|NAME",
            help="The checkpoint that kl compares with; NAME: an entry of FILE with a "
            "path (default: the entry's own reference)",
        ),
    ] = None,
    window: Window = None,
    stride: Stride = None,
    limit: Limit = None,
    corpus: Corpora = None,
    task: Tasks = None,
    shots: Shots = None,
    include_path: IncludePath = None,
    baselines: Baselines = Path("baselines"),
    device: Device = "auto",
    max_memory: MaxMemory = None,
    executor: ExecutorName = None,
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    portion_timeout: PortionTimeout = None,
    server: Server = None,
    server_model: ServerModel = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = "1",
    attention: Attention = None,
    threads: ReplicaThreads = None,
    compile: Compile = False,
    journal: JournalFolder = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    fingerprint: Annotated[
        bool,
        typer.Option(
            "--fingerprint",
            help="Record only the fingerprint of the weights; measure nothing",
        ),
    ] = False,
) -> None:
    """Measure a checkpoint and record it as a baseline.

    Without --method, --window and --limit: everything that the entry already gates or
    records; for a new entry wanda and lm-eval on WikiText-2.
    """
    from .measure import Wanted
    from .update import update_checkpoint, update_fingerprint

    wanted = Wanted.parse(
        method, window=window, stride=stride, limit=limit, corpora=corpus,
        reference=reference, tasks=task, shots=shots,
    )  # fmt: skip
    options = _options(
        wanted.files, device, dtype, batch_size, attention, threads, compile, journal,
        allow_pickle, trust_remote_code, include_path,
        max_memory,
        _execution(
            executor, replicas, gpus_per_replica, ray_address, portion_timeout,
            server, server_model,
        ),
    )  # fmt: skip
    run = update_fingerprint if fingerprint else update_checkpoint
    run(model, wanted, options, folder=baselines, checkpoint=checkpoint, base=base)


@app.command()
def diff(
    one: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A checkpoint, or a recorded baseline FILE/NAME"
        ),
    ],
    other: Annotated[str, typer.Argument(metavar="B", help="What to compare with it")],
    everything: Annotated[
        bool, typer.Option("--all", help="All lines, and not a screen of them")
    ] = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    baselines: Baselines = Path("baselines"),
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say what differs between two checkpoints, or from a baseline.

    The exit status is 0 if nothing that matters differs, 1 if something does, and 2 if
    they cannot be compared.
    """
    from .diff import diff as run

    options = Options(
        device="cpu", allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    differs = run(
        one, other, options, folder=baselines, everything=everything, json_path=json
    )
    raise typer.Exit(int(differs))


@app.command()
def explain(
    model: Model,
    start: Annotated[
        str, typer.Option("--from", metavar="METHOD", help="The method to begin with")
    ] = "wanda",
    goal: Annotated[
        str, typer.Option("--to", metavar="METHOD", help="The method to end with")
    ] = "lm-eval",
    window: Window = None,
    stride: Stride = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="PAGES", min=1, help="Only the first pages of the text, at each end"
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=PATH]",
            help="The text, read from a local file if a path is given (default: "
            "wikitext2)",
        ),
    ] = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    executor: ExecutorName = None,
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    portion_timeout: PortionTimeout = None,
    server: Server = None,
    server_model: ServerModel = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = "1",
    attention: Attention = None,
    threads: ReplicaThreads = None,
    compile: Compile = False,
    journal: JournalFolder = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Draw the steps, as .png, .svg or .pdf"),
    ] = None,
    baselines: Baselines = Path("baselines"),
) -> None:
    """Say why two methods give two numbers, one change at a time.

    Every step is measured, and both ends are the two methods' own numbers.
    """
    from ..measure import check_ends
    from .explain import explain_model
    from .measure import Wanted

    check_ends(start, goal)
    wanted = Wanted.parse(
        [start, goal], window=window, stride=stride, limit=None,
        corpora=[corpus] if corpus else None,
    )  # fmt: skip
    options = _options(
        wanted.files, device, dtype, batch_size, attention, threads, compile, journal,
        allow_pickle, trust_remote_code, None, max_memory,
        _execution(
            executor, replicas, gpus_per_replica, ray_address, portion_timeout,
            server, server_model,
        ),
    )  # fmt: skip
    explain_model(
        model, wanted, options, pages=limit, json_path=json, plot=plot, folder=baselines
    )


@app.command()
def inspect(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="A task, group or tag of lm-eval, or a YAML file"
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Show how this checkpoint's tokenizer cuts the pages of wikitext; no "
            "weights are read",
        ),
    ] = None,
    window: Window = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the first N pages"),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=PATH]",
            help="The text of wikitext, from a local file if a path is given "
            "(default: wikitext2)",
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
) -> None:
    """Say what lm-eval will really do with a task; nothing is measured.

    The exit status is 1 if the task's data cannot be reached.
    """
    from .inspect import inspect_task

    files = [corpus] if corpus is not None and "=" in corpus else []
    options = Options(
        corpora=parse_corpora(files, option="--corpus"),
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    reached = inspect_task(
        task,
        model,
        options,
        corpus=corpus.partition("=")[0] if corpus is not None else None,
        window=window,
        first=limit,
        json_path=json,
    )
    raise typer.Exit(0 if reached else 1)


@app.command()
def doctor(
    model: Model,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", min=2, help="Check that a window of so many tokens fits"
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    heatmap: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Draw where the zeros are, as .png, .svg or .pdf"
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every row of the table of zeros")
    ] = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Look a checkpoint over without running it.

    The exit status is 1 if it has an error.
    """
    from .doctor import doctor_model

    healthy = doctor_model(
        model,
        window=window,
        json_path=json,
        heatmap=heatmap,
        everything=everything,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    raise typer.Exit(0 if healthy else 1)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(metavar="FILE[/NAME]", help="Only these (default: all)"),
    ] = None,
    baselines: Baselines = Path("baselines"),
) -> None:
    """List recorded baselines."""
    from .show import show_baselines

    show_baselines(baselines, name)


@app.command()
def check(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE|DIR",
            help="Baseline files, or folders of them (default: the folder of "
            "--baselines)",
        ),
    ] = None,
    baselines: Baselines = Path("baselines"),
) -> None:
    """Check baseline files and their evidence; needs no model.

    The exit status is 1 if anything is wrong.
    """
    from .check import check_baselines

    sound = check_baselines(paths or [baselines])
    raise typer.Exit(0 if sound else 1)


@app.command()
def review(
    revisions: Annotated[
        str | None,
        typer.Argument(
            metavar="REV[..REV]",
            help="What to compare, as for git: A..B, A...B, or one commit with its "
            "parent (default: what is not committed, else the last commit)",
        ),
    ] = None,
    baselines: Baselines = Path("baselines"),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A table for a pull request")
    ] = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    fail_if_loosened: Annotated[
        bool,
        typer.Option("--fail-if-loosened", help="Exit with 1 if a gate allows more"),
    ] = False,
) -> None:
    """Show what a commit did to baselines and gates."""
    from .review import review_baselines

    loosened = review_baselines(
        revisions, folder=baselines, markdown=markdown, json_path=json
    )
    raise typer.Exit(int(loosened and fail_if_loosened))


@app.command()
def card(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint's folder, which has or gets a README.md"
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE/NAME",
            help="The baseline with its numbers (default: the one of these weights)",
        ),
    ] = None,
    baselines: Baselines = Path("baselines"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, and write nothing")
    ] = False,
) -> None:
    """Write recorded numbers into the model card, each with its method."""
    from .card import write_card

    write_card(model, checkpoint, folder=baselines, dry_run=dry_run)


@app.command()
def history(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="The database of --ppl-history, sqlite:///FILE"
        ),
    ],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE/NAME", help="Only these (default: all)"),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="Only this key (repeatable)"),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="METRIC", help="Only this metric (repeatable)"
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the last N runs (default: all)"),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Draw the values, as .html, .png, .svg or .pdf"
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Send what is new to this MLflow tracking server"
        ),
    ] = None,
    experiment: Annotated[
        str, typer.Option(metavar="NAME", help="MLflow's experiment")
    ] = "pplguard",
) -> None:
    """Show perplexity and sparsity over time and commits."""
    from .history import Wanted, show_history

    wanted = Wanted(
        tuple(checkpoints or ()), tuple(key or ()), tuple(metric or ()), last
    )
    show_history(
        url, wanted, plot=plot, json_path=json, mlflow=mlflow, experiment=experiment
    )


@app.command()
def noise(
    model: Model,
    variations: Annotated[
        int,
        typer.Option(
            "-n",
            metavar="N",
            min=1,
            help="Variations that are measured beside the first run: the same again, "
            "another number of threads, batch size, attention kernel and dtype, then "
            "several of these together",
        ),
    ] = 5,
    method: MethodsAlone = None,
    window: Window = None,
    stride: Stride = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Only the first N windows, or pages for lm-eval (default: so many "
            "that all runs take about a minute)",
        ),
    ] = None,
    corpus: Corpora = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    dtype: Dtype = "auto",
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N", help="Windows that the model reads at once in the first run"
        ),
    ] = "1",
    attention: Attention = None,
    threads: Threads = None,
    compile: Compile = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH|-", help="Write JSON to a file, or to stdout"),
    ] = None,
) -> None:
    """Measure how numbers move without any change; propose a tolerance."""
    from .measure import Wanted
    from .noise import measure_noise

    wanted = Wanted.parse(
        method, window=window, stride=stride, limit=limit, corpora=corpus
    )
    options = _options(
        wanted.files, device, dtype, batch_size, attention, threads, compile,
        JOURNAL_OFF, allow_pickle, trust_remote_code, None, max_memory,
    )  # fmt: skip
    measure_noise(model, wanted, options, variations=variations, json_path=json)


CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        parser=_folder_of("--cache-dir"),
        help="Folder of results (default: in the user's cache)",
    ),
]


@cache.command()
def info(cache_dir: CacheFolder = None) -> None:
    """List what is kept, of which checkpoints, and how old it is."""
    from .cache import show_cache

    show_cache(cache_dir)


@cache.command()
def clear(
    cache_dir: CacheFolder = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", min=0, help="Only those that were not used for so long"
        ),
    ] = None,
) -> None:
    """Remove results; other files in the folder are left alone.

    The exit status is 1 if some could not be removed.
    """
    from .cache import clear_cache

    complete = clear_cache(cache_dir, older_than=older_than)
    raise typer.Exit(0 if complete else 1)


def _execution(
    executor: str | None,
    replicas: str | None,
    gpus_per_replica: str | None,
    ray_address: str | None,
    portion_timeout: str | None,
    server: str | None,
    server_model: str | None,
) -> Execution:
    from ..executors import check_execution

    execution = parse_execution(
        {
            "executor": (executor or "", "--executor"),
            "replicas": (replicas or "", "--replicas"),
            "gpus_per_replica": (gpus_per_replica or "", "--gpus-per-replica"),
            "ray_address": (ray_address or "", "--ray-address"),
            "portion_timeout": (portion_timeout or "", "--portion-timeout"),
            "server": (server or "", "--server"),
            "server_model": (server_model or "", "--server-model"),
        }
    )
    check_execution(execution)
    return execution


def _options(
    files: list[str],
    device: str,
    dtype: str,
    batch_size: str,
    attention: str | None,
    threads: int | None,
    compile: bool,
    journal: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    include_path: list[str] | None = None,
    max_memory: list[str] | None = None,
    execution: Execution | None = None,
) -> Options:
    if journal is not None:
        parse_given(journal, option="--journal", what="DIR")
    return Options(
        max_memory=parse_max_memory(max_memory or (), option="--max-memory"),
        execution=execution or Execution(),
        corpora=parse_corpora(files, option="--corpus"),
        device=device,
        dtype=dtype,
        batch_size=parse_batch_size(batch_size, option="--batch-size"),
        attention=attention,
        threads=threads,
        compile=compile,
        journal=journal,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        include_path=tuple(include_path or ()),
    )
