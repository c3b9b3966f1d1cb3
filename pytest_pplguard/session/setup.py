"""From pytest's configuration to a guard: options, baseline files, targets, loader."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..baselines import looks_like_baseline
from ..cache import Cache
from ..cache import default_folder as default_cache_folder
from ..checkpoints import Hardware, Loaded, choose_device, choose_dtype
from ..corpora import Corpus, open_corpus
from ..errors import DeviceError, UsageError
from ..executors import check_execution, check_options, make_executor
from ..history import checked_url
from ..options import (
    DEMO_CHECKPOINTS,
    JOURNAL_OFF,
    PUBLISHED_POLICIES,
    Early,
    Execution,
    Known,
    Options,
    Target,
    parse_batch_size,
    parse_cap,
    parse_choice,
    parse_corpora,
    parse_error,
    parse_execution,
    parse_given,
    parse_max_memory,
    parse_targets,
    parse_threads,
)
from ..report import check_report_path, read_ladder
from ..safetext import one_line
from ..startup import importing
from ..values import LadderDetail
from .controller import PLUGIN_NAME, Controller
from .files import BaselineFiles
from .guard import Guard
from .progress import watch
from .terminal import FAILURES_NAME, Failures
from .xdist import is_worker, share_threads, threads_share, worker_index

if TYPE_CHECKING:
    from ..measure import Executor, Results, Store

GUARD = pytest.StashKey[Guard]()

_LONGEST_PATH = 400
_REPEATED = (
    "baselines",
    "corpus",
    "include_path",
    "device",
    "max_memory",
    "executor",
    "replicas",
    "gpus_per_replica",
    "ray_address",
    "portion_timeout",
    "server",
    "server_model",
    "dtype",
    "batch_size",
    "attention",
    "threads",
    "compile",
    "allow_pickle",
    "trust_remote_code",
)
"""Options that change what is measured, or how."""

_TYPED_ONLY = ("allow_pickle", "trust_remote_code")
"""Those that have no twin in the ini file."""

_PLACES = {
    "baselines": "DIR",
    "history": "URL",
    "journal": "DIR",
    "cache_dir": "DIR",
}
"""Options that say where something is, and what they are given."""


def guard_of(config: pytest.Config) -> Guard:
    """The process's guard, made at the first call.

    Raises:
        UsageError: an option is wrong.
    """
    if GUARD not in config.stash:
        guard = config.stash[GUARD] = _make_guard(config)
        if not is_worker(config):
            controller = Controller(config, guard.options, guard.targets, guard.files)
            config.pluginmanager.register(controller, PLUGIN_NAME)
            config.pluginmanager.register(Failures(), FAILURES_NAME)
    return config.stash[GUARD]


def _make_guard(config: pytest.Config) -> Guard:
    options = read_options(config)
    typed = _typed_files(config)
    files = BaselineFiles(baselines_folder(config), typed)
    targets = {target.name: target for target in _targets(config, options, files)}
    check_options(options, targets)

    def make_store() -> Store:
        with importing():
            from ..measure import Store, journals_of

        return Store(
            targets,
            load=_Loader(config, guard),
            open_corpus=lambda name: _open(name, options),
            watch=functools.partial(watch, config),
            batch_size=options.batch_size,
            compile=options.compile,
            threads=options.threads,
            journals=journals_of(options),
            results=_results(config, guard),
            task_folders=options.include_path,
            trust_remote_code=options.trust_remote_code,
            executor=_executor(config, guard),
            allow_keys=guard.allow_keys,
        )

    guard = Guard(options, targets, files, make_store)
    if targets:
        guard.tell(*_not_in_ci(config))
    if targets and options.early is not None and options.early.cap is None:
        guard.tell(
            "--ppl-early without --ppl-early-cap: only a regression can be known "
            "early, a pass takes every window"
        )
    return guard


def _executor(config: pytest.Config, guard: Guard) -> Executor | None:
    """What measures elsewhere, None where this process does."""
    made = make_executor(guard.options, tell=guard.tell, names=guard.targets)
    brought = config.hook.pytest_pplguard_load_model.get_hookimpls()
    if made is not None and brought:
        guard.tell(
            f"pytest_pplguard_load_model ({brought[-1].plugin_name}) is not asked: "
            f"checkpoints are measured elsewhere ({guard.options.execution.where})"
        )
    return made


def _results(config: pytest.Config, guard: Guard) -> Results | None:
    """The cache of results, None where the user wants none, or there can be none."""
    if guard.options.cache is None:
        return None
    where = guard.options.execution.where
    if where != "local":
        guard.tell(f"results are not cached: they are measured elsewhere ({where})")
        return None
    brought = config.hook.pytest_pplguard_load_model.get_hookimpls()
    if brought:
        guard.tell(
            "results are not cached: pytest_pplguard_load_model "
            f"({brought[-1].plugin_name}) may bring any model"
        )
        return None
    from ..measure import Results

    return Results(
        Cache(Path(guard.options.cache), tell=guard.tell),
        guard.options,
        locate=guard.weights.located,
        allow_keys=guard.allow_keys,
        tell=guard.tell,
        worker=worker_index(config),
        threads=guard.options.threads or threads_share(config),
    )


def _targets(
    config: pytest.Config, options: Options, files: BaselineFiles
) -> tuple[Target, ...]:
    try:
        return parse_targets(options.models, _known(config, files))
    except UsageError as error:
        # A checkpoint may be unknown only because its file cannot be read.
        broken = files.broken()
        # Then the file's own fault is all that there is to mend.
        if broken and (
            not files.names()
            or any(
                _may_mean(model, stem) for model in options.models for stem in broken
            )
        ):
            raise UsageError("\n".join(broken.values())) from error
        reasons = "".join(f"{reason}\n" for reason in broken.values())
        raise UsageError(f"{reasons}{error}{_elsewhere(config, files)}") from error


def _may_mean(model: str, stem: str) -> bool:
    """Whether a value of --ppl-model names a checkpoint of the file, or none at all."""
    name, equals, _ = model.partition("=")
    return name.partition("/")[0] == stem or not (equals or "/" in model)


def _elsewhere(config: pytest.Config, files: BaselineFiles) -> str:
    """A line where pytest may have found its root directory in a wrong place.

    It looks for it before it knows this plugin's options: an existing path behind one
    of them, and a space, counts as a test.
    """
    if files.paths or config.rootpath == config.invocation_params.dir:
        return ""
    return (
        f"\npytest's root directory is {config.rootpath}; if that is not your project, "
        "write options that name an existing path with an equals sign: "
        "--ppl-model=PATH, --ppl-journal=PATH"
    )


def read_options(config: pytest.Config) -> Options:
    """Command line first, then the ini file, then the default.

    Raises:
        UsageError: a value is wrong; the message names the option or ini key.
    """
    option = config.option
    for name, what in _PLACES.items():
        if (typed := getattr(option, f"ppl_{name}")) is not None:
            parse_given(typed, option=f"--ppl-{name.replace('_', '-')}", what=what)
    models = tuple(option.ppl_model or config.getini("ppl_model"))
    if (option.ppl_update or option.ppl_update_new) and not models:
        flag = "--ppl-update" if option.ppl_update else "--ppl-update-new"
        raise UsageError(f"{flag}: nothing to record; give --ppl-model [NAME=]PATH")
    if option.ppl_update and option.ppl_update_new:
        raise UsageError("--ppl-update and --ppl-update-new exclude each other")
    early = _early(config)
    if early is not None and (option.ppl_update or option.ppl_update_new):
        raise UsageError(
            "--ppl-early leaves windows out, and a baseline needs all: record without "
            "it (-o ppl_early=false where the ini file has it)"
        )
    reports = tuple(
        str(config.invocation_params.dir / path) for path in option.ppl_report or ()
    )
    for path in reports:
        check_report_path(path, option="--ppl-report")
    history = _history(config)
    batch_size, origin = _either(config, "batch_size")
    threads, threads_origin = _either(config, "threads")
    device = _either(config, "device")[0] or "auto"
    dtype = _either(config, "dtype")[0] or "auto"
    _check_names(device, dtype)
    return Options(
        models=models,
        baselines=option.ppl_baselines or config.getini("ppl_baselines"),
        corpora=_corpora(config),
        device=device,
        max_memory=_max_memory(config),
        execution=_execution(config),
        dtype=dtype,
        attention=_either(config, "attention")[0] or None,
        compile=bool(_either(config, "compile")[0]),
        threads=parse_threads(threads, option=threads_origin) if threads else None,
        batch_size=parse_batch_size(batch_size, option=origin) if batch_size else 1,
        allow_pickle=option.ppl_allow_pickle,
        trust_remote_code=option.ppl_trust_remote_code,
        include_path=_include_path(config),
        update="all" if option.ppl_update else "new" if option.ppl_update_new else "no",
        reports=reports,
        ladders=_ladders(config, reports),
        history=history,
        journal=_journal(config),
        cache=_cache(config),
        early=early,
        published=parse_choice(
            config.getini("ppl_published"), PUBLISHED_POLICIES, option="ppl_published"
        ),
        require=bool(config.getini("ppl_require")),
        typed=tuple(_typed_words(config)),
        from_ini=frozenset(_of_ini(config)),
    )


def _ladders(config: pytest.Config, reports: Sequence[str]) -> tuple[LadderDetail, ...]:
    """What ``pplguard explain`` had measured, for the reports that show it."""
    typed = config.option.ppl_ladder or ()
    if typed and not any(path.endswith(".html") for path in reports):
        raise UsageError(
            "--ppl-ladder is for a report that shows it: add --ppl-report=PATH.html, "
            "or leave it out"
        )
    return tuple(
        read_ladder(config.invocation_params.dir / path, option="--ppl-ladder")
        for path in typed
    )


def _history(config: pytest.Config) -> str | None:
    """The address of a database with an absolute path."""
    for url, base, origin in (
        (config.option.ppl_history, config.invocation_params.dir, "--ppl-history"),
        (config.getini("ppl_history"), config.rootpath, "ini ppl_history"),
    ):
        if url:
            return checked_url(url, base=base, option=origin)
    return None


def _typed_words(config: pytest.Config) -> Iterator[str]:
    for name in _REPEATED:
        value = getattr(config.option, f"ppl_{name}")
        flag = f"--ppl-{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value:
            for one in value if isinstance(value, list) else [value]:
                yield from (flag, one)


def _of_ini(config: pytest.Config) -> Iterator[str]:
    """Options that the ini file has, and nobody has typed."""
    for name in _REPEATED:
        typed = getattr(config.option, f"ppl_{name}")
        if not typed and name not in _TYPED_ONLY and config.getini(f"ppl_{name}"):
            yield name


def _check_names(device: str, dtype: str) -> None:
    """Refuse a device or dtype that does not exist, without asking torch."""
    # Whether this machine has the device is torch's to say, when it is needed.
    with suppress(DeviceError):
        choose_device(device, Hardware())
    choose_dtype(dtype, "cpu", None)


def _either(config: pytest.Config, name: str) -> tuple[str, str]:
    """A value and where it comes from."""
    typed = getattr(config.option, f"ppl_{name}")
    if typed is not None:
        return typed, f"--ppl-{name.replace('_', '-')}"
    return config.getini(f"ppl_{name}"), f"ini ppl_{name}"


def _corpora(config: pytest.Config) -> dict[str, str]:
    from_ini = parse_corpora(config.getini("ppl_corpus"), option="ini ppl_corpus")
    typed = parse_corpora(config.option.ppl_corpus or (), option="--ppl-corpus")
    rooted = {name: config.rootpath / path for name, path in from_ini.items()}
    here = {name: config.invocation_params.dir / path for name, path in typed.items()}
    for origin, paths in (("ini ppl_corpus", rooted), ("--ppl-corpus", here)):
        for name, path in paths.items():
            if not os.path.exists(path):
                raise UsageError(f"{origin}: {name}: {path} does not exist")
    return {name: str(path) for name, path in (rooted | here).items()}


def _max_memory(config: pytest.Config) -> dict[str, int]:
    typed, origin = config.option.ppl_max_memory, "--ppl-max-memory"
    if typed is None:
        typed, origin = config.getini("ppl_max_memory"), "ini ppl_max_memory"
    return parse_max_memory(typed, option=origin)


def _execution(config: pytest.Config) -> Execution:
    """Where windows are scored, checked as far as nothing has to be asked.

    Raises:
        UsageError: an option is wrong, or what it needs is not installed.
    """
    names = (
        "executor",
        "replicas",
        "gpus_per_replica",
        "ray_address",
        "portion_timeout",
        "server",
        "server_model",
    )
    given = {name: _either(config, name) for name in names}
    execution = parse_execution(given | _named(given, "executor", "server"))
    check_execution(execution)
    return execution


def _named(
    given: Mapping[str, tuple[str, str]], *names: str
) -> dict[str, tuple[str, str]]:
    """What was not given, by the option that it could be given by."""
    return {
        name: ("", f"--ppl-{name.replace('_', '-')}")
        for name in names
        if not given[name][0]
    }


def _include_path(config: pytest.Config) -> tuple[str, ...]:
    """Folders of tasks; what is typed comes last, and wins in lm-eval."""
    rooted = [config.rootpath / path for path in config.getini("ppl_include_path")]
    typed = config.option.ppl_include_path or ()
    here = [config.invocation_params.dir / path for path in typed]
    for origin, paths in (
        ("ini ppl_include_path", rooted),
        ("--ppl-include-path", here),
    ):
        for path in paths:
            if not os.path.isdir(path):
                raise UsageError(f"{origin}: {path} is no folder")
    return tuple(map(str, [*rooted, *here]))


def _journal(config: pytest.Config) -> str | None:
    """An absolute folder, or what is no folder as it is."""
    for value, base in (
        (config.option.ppl_journal, config.invocation_params.dir),
        (config.getini("ppl_journal"), config.rootpath),
    ):
        if value:
            return value if value == JOURNAL_OFF else str(base / value)
    return None


def _cache(config: pytest.Config) -> str | None:
    """The folder of results, None where none are to be kept.

    A runner's own cache may hold what another branch put there: in CI somebody has to
    type it.
    """
    if not (config.option.ppl_cache or config.getini("ppl_cache")):
        if config.option.ppl_cache_dir is not None:
            raise UsageError(
                "--ppl-cache-dir is for --ppl-cache: add that, or leave it out"
            )
        return None
    if _not_in_ci(config):
        return None
    for value, base in (
        (config.option.ppl_cache_dir, config.invocation_params.dir),
        (config.getini("ppl_cache_dir"), config.rootpath),
    ):
        if value:
            return str(base / value)
    return str(default_cache_folder())


def _not_in_ci(config: pytest.Config) -> tuple[str, ...]:
    """A line for the user where the ini file asks for the cache in CI."""
    ini = config.getini("ppl_cache")
    if config.option.ppl_cache or not ini or not os.environ.get("CI"):
        return ()
    return (
        "ppl_cache of the ini file has no effect in CI, where other runs may have "
        "filled the cache: type --ppl-cache to use it all the same (docs/cache.md)",
    )


def _early(config: pytest.Config) -> Early | None:
    cap, cap_origin = _either(config, "early_cap")
    error, error_origin = _either(config, "early_error")
    early = Early(
        cap=parse_cap(cap, option=cap_origin) if cap else None,
        error=parse_error(error, option=error_origin) if error else Early().error,
    )
    if _either(config, "early")[0]:
        return early
    for name in ("early_cap", "early_error"):
        if getattr(config.option, f"ppl_{name}") is not None:
            raise UsageError(
                f"--ppl-{name.replace('_', '-')} is for --ppl-early: add that, or "
                "leave it out"
            )
    return None


def baselines_folder(config: pytest.Config) -> Path:
    """The typed folder from where pytest was started, else the ini's from rootdir.

    Raises:
        UsageError: a typed folder that is none.
    """
    typed = config.option.ppl_baselines
    if typed is None:
        return _plain(config.rootpath / config.getini("ppl_baselines"))
    folder = _plain(config.invocation_params.dir / typed)
    if not folder.is_dir():
        raise UsageError(f"--ppl-baselines: {folder} is no folder")
    return folder


def _plain(path: Path) -> Path:
    """``path`` without ``..``, links kept: as pytest writes paths."""
    return Path(os.path.abspath(path))


def is_ours(path: Path, parent: pytest.Collector) -> bool:
    """Whether to collect a YAML file: in the baseline folder, or typed.

    In a folder that nobody named, and among typed files, others' YAML is left alone.
    """
    try:
        inside = path.parent.samefile(baselines_folder(parent.config))
    except OSError:  # there is no such folder
        inside = False
    if inside and _is_folder_chosen(parent.config):
        return True
    return (inside or parent.session.isinitpath(path)) and looks_like_baseline(path)


def _is_folder_chosen(config: pytest.Config) -> bool:
    """Whether the user named the folder, so that every YAML file in it is ours."""
    return config.option.ppl_baselines is not None or (
        config.getini("ppl_baselines") != Options().baselines
    )


def _typed_files(config: pytest.Config) -> list[Path]:
    """Baseline files among the arguments of pytest."""
    paths = (
        _plain(config.invocation_params.dir / argument.partition("::")[0])
        for argument in config.args
    )
    return [
        path for path in paths if path.suffix in (".yaml", ".yml") and path.is_file()
    ]


def _known(config: pytest.Config, files: BaselineFiles) -> Known:
    base = config.invocation_params.dir
    paths = files.names()
    stems = {path.stem for path in _typed_files(config)} or set(files.paths)

    def same_path(one: str, other: str) -> bool:
        if one in DEMO_CHECKPOINTS or other in DEMO_CHECKPOINTS:
            return one == other
        return any(
            (base / one).resolve() == (root / other).resolve()
            for root in (base, config.rootpath)
        )

    return Known(
        paths=paths,
        candidates=tuple(name for name in paths if name.partition("/")[0] in stems),
        exists=lambda text: os.path.exists(base / text),
        same_path=same_path,
        folder=str(files.folder),
    )


def append_folder(config: pytest.Config, folder: Path) -> None:
    """Have the baseline folder collected where the user typed no path.

    With ``testpaths = ["tests"]`` it would never be, and the run would be green.
    """
    if config.args_source is pytest.Config.ArgsSource.ARGS or not folder.is_dir():
        return
    base = config.invocation_params.dir
    if any(
        folder.is_relative_to((base / argument).absolute()) for argument in config.args
    ):
        return
    config.args.append(str(folder))


class _Loader:
    """Brings a target into memory: the user's hook first, then transformers."""

    def __init__(self, config: pytest.Config, guard: Guard) -> None:
        self._config = config
        self._guard = guard

    def __call__(self, target: Target) -> Loaded:
        if self._guard.options.threads is None:
            share_threads(self._config)
        _forget_last_failure()
        started = time.perf_counter()
        loaded = self._load(target)
        seconds = time.perf_counter() - started
        path = one_line(target.spec, most=_LONGEST_PATH)
        self._guard.outbox.asides.append(
            f"loaded {target.name} ({path}) in {seconds:.1f} s: {loaded.dtype} on "
            f"{loaded.device}"
        )
        return loaded

    def _load(self, target: Target) -> Loaded:
        brought = self._config.hook.pytest_pplguard_load_model(checkpoint=target)
        if brought is not None:
            return _from_hook(brought, target)
        from ..measure import load_target

        with self._guard.weights.loading(target):
            return load_target(
                target,
                self._guard.options,
                allow_keys=self._guard.allow_keys(target.name),
                worker=worker_index(self._config),
                tell=self._guard.tell,
            )


def _forget_last_failure() -> None:
    """Let go of the frames of the last test that failed, which hold its model.

    Pytest keeps them for debuggers, and drops them itself, but only when the next
    test's body runs: the next checkpoint would be loaded beside this one.
    """
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)


def _from_hook(brought: object, target: Target) -> Loaded:
    if isinstance(brought, Loaded):
        return brought
    if isinstance(brought, tuple) and len(brought) == 2:
        return Loaded.of(*brought)
    raise UsageError(
        f"pytest_pplguard_load_model returned a {type(brought).__name__} for "
        f"{target.name}; return (model, tokenizer), or None to have it loaded"
    )


def _open(name: str, options: Options) -> Corpus:
    return open_corpus(name, options.corpora)
