"""The pytest plugin: hook functions only, a few lines each.

Imports the standard library and pytest. Every other room is imported inside a function,
after a cheap test that the plugin is in use: `pytest` in a project without checkpoints
must not wait for torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .fixtures import ppl_device, ppl_guard, ppl_model, ppl_model_copy, ppl_tokenizer

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeGuard

    from .session.guard import Guard

__all__ = ["ppl_device", "ppl_guard", "ppl_model", "ppl_model_copy", "ppl_tokenizer"]

_MARKER = (
    "ppl(*methods, checkpoint=None, rel=None, abs=None, max=None, min=None, "
    "drift=None, sigma=None, direction=None, window=None): hold the perplexity of a "
    "checkpoint, or of the model that the test returns, to its recorded baseline; "
    "methods are wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm, or "
    "whole keys like wanda/wikitext2:4096"
)

# ------------------------------------------------------------------------ configuration


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that this plugin calls."""
    from . import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini keys."""
    # Help texts begin with a capital letter and have no period after a single phrase.
    # No option takes an optional value: it would swallow the path behind it.
    group = parser.getgroup("pplguard", "perplexity gates for language models")
    group.addoption(
        "--ppl-model",
        action="append",
        metavar="[NAME=]PATH",
        help="Measure this checkpoint: a folder, an ADAPTER[+BASE], a GGUF file, a Hub "
        "id@revision, a NAME of a baseline file, or demo (repeatable; ini: ppl_model)",
    )
    group.addoption(
        "--ppl-update",
        action="store_true",
        help="Record what this run measures as the new baselines",
    )
    group.addoption(
        "--ppl-update-new",
        action="store_true",
        help="Record only what has no baseline yet",
    )
    group.addoption(
        "--ppl-baselines",
        metavar="DIR",
        help="Folder of the baseline files (ini: ppl_baselines, default: baselines)",
    )
    group.addoption(
        "--ppl-corpus",
        action="append",
        metavar="NAME=PATH",
        help="Read this corpus from a local file: raw text, .jsonl, .parquet or a "
        "save_to_disk folder (repeatable; ini: ppl_corpus)",
    )
    group.addoption(
        "--ppl-include-path",
        action="append",
        metavar="DIR",
        help="Find tasks of lm-eval in this folder first; YAML there can run code "
        "(repeatable; ini: ppl_include_path)",
    )
    group.addoption(
        "--ppl-device",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N or mps; auto places a model that does not fit "
        "one GPU on several (ini: ppl_device, default: auto)",
    )
    group.addoption(
        "--ppl-max-memory",
        action="append",
        metavar="DEVICE=SIZE",
        help="Place the model's layers on these devices, at most so much on each: "
        "0=20GiB for a GPU by its number, cpu=60GiB; what is left goes to disk "
        "(repeatable; ini: ppl_max_memory)",
    )
    group.addoption(
        "--ppl-executor",
        metavar="WHERE",
        help="Score windows here (local), on replicas of a Ray cluster (ray), or on a "
        "server that runs already (server) (ini: ppl_executor, default: local)",
    )
    group.addoption(
        "--ppl-replicas",
        metavar="N",
        help="With ray: load the checkpoint so many times; with server: send so many "
        "requests at once (ini: ppl_replicas, default: 1)",
    )
    group.addoption(
        "--ppl-gpus-per-replica",
        metavar="G",
        help="GPUs of each replica; 0: it runs on a CPU (ini: ppl_gpus_per_replica, "
        "default: 1 where the cluster has GPUs)",
    )
    group.addoption(
        "--ppl-ray-address",
        metavar="ADDRESS",
        help="Ray's cluster: HOST:PORT, ray://HOST:PORT or auto (ini: ppl_ray_address, "
        "default: RAY_ADDRESS, else a cluster on this machine alone)",
    )
    group.addoption(
        "--ppl-portion-timeout",
        metavar="SECONDS",
        help="Give windows to another replica after so long; with a server: ask once "
        "more after so long, and wait so long for one that is away "
        "(ini: ppl_portion_timeout, default: 600)",
    )
    group.addoption(
        "--ppl-server",
        metavar="URL",
        help="With --ppl-executor server: an OpenAI-compatible endpoint that tells "
        "log-probabilities of the prompt, http://HOST:8000/v1 (ini: ppl_server)",
    )
    group.addoption(
        "--ppl-server-model",
        metavar="ID",
        help="The model's id there, or NAME=ID,... of several checkpoints (ini: "
        "ppl_server_model, default: the one with the checkpoint's name or path, else "
        "the only one)",
    )
    group.addoption(
        "--ppl-dtype",
        metavar="DTYPE",
        help="auto, float32, float16 or bfloat16; auto is float32 on a CPU, else the "
        "checkpoint's own (ini: ppl_dtype, default: auto)",
    )
    group.addoption(
        "--ppl-batch-size",
        metavar="N",
        help="Windows that the model reads at once, or auto: as many as memory allows "
        "and time gains by (ini: ppl_batch_size, default: 1)",
    )
    group.addoption(
        "--ppl-attention",
        metavar="KERNEL",
        help="Attention implementation of transformers: eager, sdpa, ... (ini: "
        "ppl_attention, default: the model's)",
    )
    group.addoption(
        "--ppl-threads",
        metavar="N",
        help="Threads of torch on a CPU (ini: ppl_threads, default: torch's own, "
        "shared between xdist's workers); with --ppl-executor ray the CPUs of each "
        "replica (default: 1)",
    )
    group.addoption(
        "--ppl-compile",
        action="store_true",
        default=None,
        help="Run the model through torch.compile (ini: ppl_compile, default: false)",
    )
    group.addoption(
        "--ppl-report",
        action="append",
        metavar="PATH",
        help="Write all verdicts to this .html, .json, .md or .csv file (repeatable)",
    )
    group.addoption(
        "--ppl-ladder",
        action="append",
        metavar="FILE",
        help="Show in .html reports what `pplguard explain --json FILE` measured "
        "(repeatable)",
    )
    group.addoption(
        "--ppl-history",
        metavar="URL",
        help="Add all verdicts to this database, sqlite:///FILE, for `pplguard "
        "history` (ini: ppl_history)",
    )
    group.addoption(
        "--ppl-journal",
        metavar="DIR",
        help="Keep finished windows here until the run is over, so that one that is "
        "killed goes on; off keeps none (ini: ppl_journal, default: the user's cache)",
    )
    group.addoption(
        "--ppl-cache",
        action="store_true",
        default=None,
        help="Take results of unchanged checkpoints from a cache, and keep new ones "
        "there (ini: ppl_cache, which has no effect in CI; default: false)",
    )
    group.addoption(
        "--ppl-cache-dir",
        metavar="DIR",
        help="Folder of --ppl-cache (ini: ppl_cache_dir, default: in the user's cache)",
    )
    group.addoption(
        "--ppl-early",
        action="store_true",
        default=None,
        help="Score windows in a random order, and stop as soon as a gate's verdict is "
        "known (ini: ppl_early, default: false)",
    )
    group.addoption(
        "--ppl-early-cap",
        metavar="NATS",
        help="With --ppl-early: assume that no window has moved by more than this, in "
        "nats a token; without it no gate can pass early (ini: ppl_early_cap)",
    )
    group.addoption(
        "--ppl-early-error",
        metavar="P",
        help="With --ppl-early: the largest probability of a verdict that a full run "
        "would not give (ini: ppl_early_error, default: 0.001)",
    )
    group.addoption(
        "--ppl-allow-pickle",
        action="store_true",
        help="Load weights from pickle files, which can run code",
    )
    group.addoption(
        "--ppl-trust-remote-code",
        action="store_true",
        help="Run Python code that a checkpoint brings along",
    )
    for name, (kind, default, text) in _INI.items():
        parser.addini(name, text, type=kind, default=default)


_INI: dict[str, tuple[Any, Any, str]] = {
    "ppl_model": ("linelist", [], "Twin of --ppl-model"),
    "ppl_baselines": ("string", "baselines", "Twin of --ppl-baselines"),
    "ppl_corpus": ("linelist", [], "Twin of --ppl-corpus"),
    "ppl_include_path": ("linelist", [], "Twin of --ppl-include-path"),
    "ppl_device": ("string", "", "Twin of --ppl-device"),
    "ppl_max_memory": ("linelist", [], "Twin of --ppl-max-memory"),
    "ppl_executor": ("string", "", "Twin of --ppl-executor"),
    "ppl_replicas": ("string", "", "Twin of --ppl-replicas"),
    "ppl_gpus_per_replica": ("string", "", "Twin of --ppl-gpus-per-replica"),
    "ppl_ray_address": ("string", "", "Twin of --ppl-ray-address"),
    "ppl_portion_timeout": ("string", "", "Twin of --ppl-portion-timeout"),
    "ppl_server": ("string", "", "Twin of --ppl-server"),
    "ppl_server_model": ("string", "", "Twin of --ppl-server-model"),
    "ppl_dtype": ("string", "", "Twin of --ppl-dtype"),
    "ppl_batch_size": ("string", "", "Twin of --ppl-batch-size"),
    "ppl_attention": ("string", "", "Twin of --ppl-attention"),
    "ppl_threads": ("string", "", "Twin of --ppl-threads"),
    "ppl_compile": ("bool", False, "Twin of --ppl-compile"),
    "ppl_history": ("string", "", "Twin of --ppl-history"),
    "ppl_journal": ("string", "", "Twin of --ppl-journal"),
    "ppl_cache": ("bool", False, "Twin of --ppl-cache"),
    "ppl_cache_dir": ("string", "", "Twin of --ppl-cache-dir"),
    "ppl_early": ("bool", False, "Twin of --ppl-early"),
    "ppl_early_cap": ("string", "", "Twin of --ppl-early-cap"),
    "ppl_early_error": ("string", "", "Twin of --ppl-early-error"),
    "ppl_published": (
        "string",
        "accept",
        "A published baseline without evidence: accept, warn or fail",
    ),
    "ppl_require": (
        "bool",
        False,
        "Fail gates and marked tests where no --ppl-model is given",
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse mistakes before anything runs, and have the baselines collected."""
    config.addinivalue_line("markers", _MARKER)
    if not (_is_asked(config) or _collects_elsewhere(config)):
        return
    guard = _checked_guard(config)
    if guard.targets or guard.options.require:
        from .session.setup import append_folder

        append_folder(config, guard.files.folder)


def _is_asked(config: pytest.Config) -> bool:
    """Whether any option of this plugin is set; must stay cheap."""
    given = (
        value for name, value in vars(config.option).items() if name.startswith("ppl_")
    )
    # What is typed and empty is a mistake, and no default.
    return any(value or value == "" for value in given) or any(
        config.getini(name) != default for name, (_, default, _) in _INI.items()
    )


def _collects_elsewhere(config: pytest.Config) -> bool:
    """Whether xdist's workers will find baseline files that this process will not."""
    if config.getoption("dist", "no") == "no":
        return False
    return Path(config.rootpath, config.getini("ppl_baselines")).is_dir()


def _checked_guard(config: pytest.Config) -> Guard:
    """The process's guard; a mistake of the user's is pytest's usage error."""
    from .errors import PplguardError
    from .session.setup import guard_of

    try:
        return guard_of(config)
    except PplguardError as error:
        raise pytest.UsageError(str(error)) from error


def _guard(config: pytest.Config) -> Guard | None:
    """The guard if this process has one, else None."""
    setup = sys.modules.get("pytest_pplguard.session.setup")
    if setup is None or setup.GUARD not in config.stash:
        return None
    guard: Guard = setup.guard_of(config)
    return guard


# --------------------------------------------------------------------------- collection


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing in a checkpoint's folder: code in there came with the weights."""
    guard = _guard(config)
    if guard is None or not guard.targets:
        return None
    return guard.is_checkpoint(collection_path) or None


def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    """Collect baseline files: in the baseline folder, or typed."""
    if file_path.suffix not in (".yaml", ".yml"):
        return None
    from .items import BaselineModule
    from .session.setup import is_ours

    if not is_ours(file_path, parent):
        return None
    module: pytest.Collector = BaselineModule.from_parent(parent, path=file_path)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuse bad marker arguments while collecting."""
    for marker in metafunc.definition.iter_markers("ppl"):
        from .errors import UsageError
        from .session.failing import fail
        from .session.marker import parse_request

        try:
            parse_request(marker.args, marker.kwargs, what="@pytest.mark.ppl")
        except UsageError as error:
            fail(str(error))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Deselect gates of checkpoints that were not given; sort the others."""
    guard = _guard(config)
    if guard is None:
        return
    from .items import remove_gates
    from .lifetime import sort_by_checkpoint
    from .session.controller import note_deselected

    all_fail = not guard.targets and guard.options.require
    given = guard.targets
    removed = remove_gates(items, unless=lambda g: all_fail or g.checkpoint in given)
    if removed:
        config.hook.pytest_deselected(items=removed)
        note_deselected(config, len(removed))
    sort_by_checkpoint(items)


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    """Say in one line why gates were deselected."""
    guard = _guard(config)
    if guard is None or guard.targets:
        return None
    from .session.controller import controller_of, deselected_text

    controller = controller_of(config)
    if controller is None or not controller.deselected:
        return None
    return deselected_text(controller.deselected)


# ------------------------------------------------------------------------------ running


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test without a checkpoint; refuse one that cannot be judged."""
    if _is_marked(item):
        from .fixtures import check_marked

        check_marked(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """After the body of a marked test: judge what it returned, or the checkpoint."""
    if not _is_marked(item):
        return (yield)
    from .fixtures import judge_marked
    from .session.returning import catching_result

    with catching_result(item) as result:
        yield
    judge_marked(item, result.value)
    return None


def _is_marked(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return (
        isinstance(item, pytest.Function) and item.get_closest_marker("ppl") is not None
    )


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Give a checkpoint's memory back as soon as no test needs it any more."""
    guard = _guard(item.config)
    if guard is None:
        return
    if nextitem is None:
        guard.forget_reference()
    if not guard.ready:
        return
    from .lifetime import is_needed_after

    guard.reclaim()
    if guard.ready and (
        nextitem is None or not any(is_needed_after(item, name) for name in guard.ready)
    ):
        guard.store.evict()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the test produced on its report, as plain JSON types."""
    report = yield
    guard = _guard(item.config)
    if guard is None:
        return report
    from .session.controller import add_properties, forget_properties
    from .session.failing import shorten

    shorten(report, call)
    if call.when == "setup":
        forget_properties(item)
    add_properties(item, guard.outbox.verdicts)
    wire = guard.outbox.drain()
    if wire is not None:
        # An attribute of our own: reports carry it across processes as it is.
        report.__dict__["pplguard"] = wire
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give back what runs elsewhere, also after Ctrl-C."""
    guard = _guard(config)
    if guard is not None:
        guard.close()


# -------------------------------------------------------------------------------- xdist


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a checkpoint's gates on one worker, so that it is loaded once."""
    guard = _guard(config)
    if config.getoption("dist", "no") != "load" or guard is None:
        return None
    from .session.xdist import make_scheduler

    return make_scheduler(config, log, guard.files.references())


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers(
    config: pytest.Config,
) -> Generator[None, int, int]:
    """One worker a GPU, and no more than there are checkpoints."""
    answer = yield
    # Called before pytest_configure.
    guard = _checked_guard(config) if _is_asked(config) else None
    if guard is None or not guard.targets:
        return answer
    from .session.xdist import count_workers

    return count_workers(answer, len(guard.targets), guard.options)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Have the controller say what workers deselected."""
    guard = _guard(node.config)
    if guard is not None:
        from .session.controller import take_deselected

        take_deselected(node)
