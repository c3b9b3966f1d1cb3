"""Runs commands of this environment in forks of one process that has torch already.

``pytest``, ``pplguard`` and ``python -m`` spend seconds with imports, and the pages
have some hundred of them. So one process imports what is large, and nothing of this
package; each command is a fork of it, with the folder, the environment and the
descriptors of whoever asks. It asks through a program in a folder that stands first in
``PATH``, so that pages may use all of a shell: pipes, redirections, variables.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import stat
import sys
import traceback
import warnings
from pathlib import Path

LARGE = (
    "datasets",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "pyarrow.parquet",
    "pytest",
    "rich.console",
    "safetensors.torch",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "typer",
    "yaml",
)

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


def write_programs(folder: Path, address: Path) -> None:
    """Write the programs that ask the process at ``address``."""
    for name in ("pplguard", "pytest", "python", "pip", "mkdocs"):
        program = folder / name
        program.write_text(
            _CLIENT.format(python=sys.executable, name=name, address=str(address))
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)


def serve(address: str) -> None:
    """Import, then fork for whoever asks, until standard input ends."""
    for name in LARGE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    # One thread that waits, of pyarrow's allocator, which is made for forks.
    warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    if os.fork() == 0:
        _accept(server)
    server.close()
    sys.stdin.read()  # the tests are over
    os.killpg(0, signal.SIGTERM)


def _accept(server: socket.socket) -> None:
    while True:
        line, _ = server.accept()
        if os.fork() == 0:
            server.close()
            os._exit(_answer(line))
        line.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(line: socket.socket) -> int:
    _, descriptors, _, _ = socket.recv_fds(line, 1, 3)
    asked = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
    child = os.fork()
    if child == 0:
        line.close()
        for wanted, descriptor in enumerate(descriptors):
            os.dup2(descriptor, wanted)
        os._exit(_run(**asked))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    line.sendall(str(status % 256).encode())
    return 0


def _run(name: str, argv: list[str], cwd: str, env: dict[str, str]) -> int:
    """What the command's own process would do, up to its exit status."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", closefd=False, encoding="utf-8")
    sys.argv = [name, *argv]
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
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _main(name: str, argv: list[str]) -> None:
    if name == "python" and argv[:1] == ["-m"] and argv[1:]:
        name, argv = argv[1], argv[2:]
        sys.argv = [name, *argv]
        sys.path.insert(0, os.getcwd())
    if name == "pip":
        sys.exit("nothing is installed here: say `<!-- not run: ... -->`")
    if name == "pplguard":
        from pytest_pplguard.cli import main

        main()
    elif name == "pytest":
        import pytest

        sys.exit(int(pytest.main(argv)))
    elif name == "python":
        os.execv(sys.executable, [sys.executable, *argv])
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
