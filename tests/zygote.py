"""Runs commands of this environment in forks of one process that has torch already.

``pytest``, ``pplguard`` and ``python -m`` spend seconds with imports, and the tests run
some hundred of them. So one process imports what is large, and nothing of this package;
each command is a fork of it, with the folder, the environment and the descriptors of
whoever asks. It asks through a program in a folder that may stand first in ``PATH``, so
that a shell can be used too: pipes, redirections, variables.

A fork is what a new process would be, but for what is imported already and for what
libraries have read from the environment meanwhile. A command whose environment differs
in such a variable is therefore executed as a new process. Tests of what is imported
start new processes themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import os
import random
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

LARGE = (
    "coverage",
    "datasets",
    "hypothesis",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "msgspec.json",
    "platformdirs",
    "pyarrow.parquet",
    "pytest",
    "pytest_asyncio.plugin",
    "pytest_cov.plugin",
    "pytest_github_actions_annotate_failures.plugin",
    "pytest_rerunfailures",
    "pytest_timeout",
    "rich.console",
    "safetensors.torch",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "typer",
    "xdist.dsession",
    "xdist.looponfail",
    "xdist.remote",
    "yaml",
)

PLUGINS = (
    *("_hypothesis_globals", "anyio", "hypothesis", "pytest_asyncio", "pytest_cov"),
    *("pytest_github_actions_annotate_failures", "pytest_rerunfailures"),
    *("pytest_timeout", "xdist"),
)
"""Plugins of pytest."""

_PYTHON = sys.executable

PROGRAMS = ("pplguard", "pytest", "python", "pip", "mkdocs")

_READ_AT_START = (
    *("CUDA_", "DATASETS_", "HF_", "KMP_", "LANG", "LC_", "MALLOC_", "MKL_", "OMP_"),
    *("PYTHON", "TORCH", "TRANSFORMERS_"),
)
"""Beginnings of variables that the interpreter and libraries read once."""

_HAVE_NO_PART = (
    *("HF_HUB_OFFLINE", "PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING", "PYTHONPATH"),
    *("HF_XET_HIGH_PERFORMANCE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
    *("PYTHONBREAKPOINT", "TORCHINDUCTOR_CACHE_DIR"),
)
"""But not these: no zygote has a network, forks see to the next three, and libraries
set the others in the tests' own process, some of them when the zygote has started.
"""

# What stands in PATH. -I: nothing of the command's folder is imported here.
_CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = {{"name": {name!r}, "argv": sys.argv[1:]}}
asked |= {{"cwd": os.getcwd(), "env": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    socket.send_fds(line, [b"x"], [0, 1, 2])
    line.sendall(json.dumps(asked).encode())
    line.shutdown(socket.SHUT_WR)
    said = line.recv(16)
sys.exit(int(said or b"99"))
"""


class Zygote:
    """The process, as long as it is needed: it ends with whoever started it.

    ``programs`` is the folder of programs that ask it, one for each of ``PROGRAMS``.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Not in a folder of pytest's: the name of a socket may have some hundred bytes.
        folder = Path(tempfile.mkdtemp(prefix="ppl-zygote-"))
        self.programs = folder / "bin"
        address = folder / "s"
        _write_programs(self.programs, address)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(address)],
            env={
                name: value
                for name, value in environment.items()
                if name != "PYTHONPATH" and not name.startswith("COVERAGE_")
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End it, and all that it runs."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(timeout=30)


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Inside, what starts ``sys.executable`` gets forks: xdist, and pytester."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(programs() / "python"))
        yield


def forked_workers(args: Sequence[str]) -> AbstractContextManager[None]:
    """The same, if pytest is told to have workers."""
    return forked() if "-n2" in args else contextlib.nullcontext()


@functools.cache
def programs() -> Path:
    """The programs of the zygote that all tests of this process share."""
    zygote = Zygote(os.environ | {"HF_HUB_OFFLINE": "1"})
    atexit.register(zygote.close)
    return zygote.programs


def _write_programs(folder: Path, address: Path) -> None:
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(
            _CLIENT.format(python=sys.executable, name=name, address=str(address))
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)


def _serve(address: str) -> None:
    """Import, then fork for whoever asks, until standard input ends."""
    started_with = _read_at_start(os.environ)
    for name in LARGE:
        importlib.import_module(name)
    # There with a huggingface-hub or mlflow that needs it.
    if importlib.util.find_spec("anyio"):
        importlib.import_module("anyio.pytest_plugin")
    # Plugins of pytest's among them: no warning that it is too late for their
    # assertions to be rewritten.
    for name, module in sys.modules.items():
        if name.partition(".")[0] in PLUGINS:
            module.__doc__ = "PYTEST_DONT_REWRITE"
    gc.collect()
    gc.freeze()
    # One thread that waits, of pyarrow's allocator, which is made for forks.
    warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.executable = str(Path(address).with_name("bin") / "python")
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    if os.fork() == 0:
        _accept(server, started_with)
    server.close()
    sys.stdin.read()  # the tests are over, or their process was killed
    shutil.rmtree(Path(address).parent, ignore_errors=True)
    os.killpg(0, signal.SIGTERM)


def _accept(server: socket.socket, started_with: dict[str, str]) -> None:
    while True:
        line, _ = server.accept()
        if os.fork() == 0:
            server.close()
            os._exit(_answer(line, started_with))
        line.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(line: socket.socket, started_with: dict[str, str]) -> int:
    _, descriptors, _, _ = socket.recv_fds(line, 1, 3)
    asked = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
    child = os.fork()
    if child == 0:
        line.close()
        for wanted, descriptor in enumerate(descriptors):
            os.dup2(descriptor, wanted)
            os.close(descriptor)
        os.chdir(asked.pop("cwd"))
        if _read_at_start(asked["env"]) != started_with:
            _execute(**asked)
        os._exit(_run(**asked))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    line.sendall(str(status % 256).encode())
    return 0


def _run(name: str, argv: list[str], env: dict[str, str]) -> int:
    """What the command's own process would do, up to its exit status."""
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.stdin = os.fdopen(0, closefd=False)
    encoding, _, errors = env.get("PYTHONIOENCODING", "").partition(":")
    encoding = encoding or "utf-8"
    sys.stdout = os.fdopen(
        1, "w", closefd=False, encoding=encoding, errors=errors or "strict"
    )
    sys.stderr = os.fdopen(
        2, "w", 1, closefd=False, encoding=encoding, errors="backslashreplace"
    )
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    sys.argv = [name, *argv]
    random.seed()
    # As each Python process of these tests begins, where they are measured.
    importlib.import_module("coverage").process_startup(force=True)
    try:
        _main(name, argv)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    _end()
    return status


def _end() -> None:
    """What an interpreter does at its end, but for freeing what is imported."""
    for thread in threading.enumerate():
        if not (thread.daemon or thread is threading.main_thread()):
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and name not in _HAVE_NO_PART
    }


def _execute(name: str, argv: list[str], env: dict[str, str]) -> None:
    """Become the command in a new process's place."""
    words = [*argv] if name == "python" else ["-m", name, *argv]
    if name == "pplguard":
        start = "import sys; sys.argv[0] = 'pplguard'; "  # as its help says
        words = ["-c", f"{start}from pytest_pplguard.cli import main; main()", *argv]
    os.execve(_PYTHON, [_PYTHON, *words], env)


def _main(name: str, argv: list[str]) -> None:
    if name == "python":
        if argv[:1] == ["-u"]:
            argv = argv[1:]
        if argv[:1] == ["-c"]:
            _main_of_text(argv[1], argv[2:])
            return
        if argv[:1] == ["-mpytest"]:  # pytester's way
            argv = ["-m", "pytest", *argv[1:]]
        if argv[:1] != ["-m"]:
            os.execv(_PYTHON, [_PYTHON, *argv])
        name, argv = argv[1], argv[2:]
        sys.argv = [name, *argv]
        sys.path.insert(0, os.getcwd())
    if name == "pip":
        sys.exit("nothing is installed here: say `<!-- not run: ... -->`")
    if name == "pplguard":
        from pytest_pplguard.cli import main

        main()
    elif name == "pytest":
        sys.exit(int(pytest.main(argv)))
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _main_of_text(text: str, argv: list[str]) -> None:
    """``python -c``."""
    sys.argv = ["-c", *argv]
    sys.path.insert(0, "")
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(text, module.__dict__)


if __name__ == "__main__":
    _serve(sys.argv[1])
