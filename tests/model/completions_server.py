"""A real HTTP server of completions with a real model, in a process of its own.

It can be killed and started again at once: its parent has loaded the models, and forks.

It speaks as vLLM 0.32 does (``prompt_logprobs``, vllm/entrypoints/openai/completion) or
as the OpenAI API specifies ``/v1/completions`` (``echo`` with ``logprobs``), and fails
on request. Losses come from the model's full logits, window by window: nothing of
this package computes them.

    python -m tests.model.completions_server ID=PATH [ID=PATH ...]

reads ports (0: any), one a line; for each it starts a server with the switches behind
it, and prints its process and port. All end with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CLAMPED = -9999.0


class Served:
    """A server under way, as its tests see it."""

    def __init__(
        self, parent: subprocess.Popen[str], models: Mapping[str, Path]
    ) -> None:
        self.models = models
        self._parent = parent
        self._pid = self._port = 0
        self.start()
        self._root = f"http://127.0.0.1:{self._port}"
        self.url = f"{self._root}/v1"

    def start(self, **settings: Any) -> None:
        """Serve at the port where it was before, with these switches."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(self._port, json.dumps(settings), file=self._parent.stdin, flush=True)
        self._pid, self._port = map(int, self._parent.stdout.readline().split())

    def kill(self) -> None:
        """SIGKILL; there is nobody at its port when this returns."""
        os.kill(self._pid, signal.SIGKILL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 5).close()
            except ConnectionError:
                self._pid = 0
                return
            time.sleep(0.01)

    def revive(self) -> None:
        """Start it again if it was killed."""
        if not self._pid:
            self.start()

    def switch(self, **settings: Any) -> None:
        """Put all switches back, then set these (see :class:`State`)."""
        body = json.dumps(settings).encode()
        with urllib.request.urlopen(f"{self._root}/switch", body, timeout=30):
            pass

    def requests(self) -> list[dict[str, Any]]:
        """What was asked since the switches were set: path, key and payload."""
        with urllib.request.urlopen(f"{self._root}/requests", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def completions(self) -> list[dict[str, Any]]:
        """The payloads of completions."""
        return [one["payload"] for one in self.requests() if one["payload"]]


@contextlib.contextmanager
def serving(**models: Path) -> Iterator[Served]:
    """A server of these models by their ids, in a process of its own."""
    command = [sys.executable, "-m", "tests.model.completions_server"]
    process = subprocess.Popen(
        [*command, *(f"{id_}={path}" for id_, path in models.items())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        # A pool of threads does not come along when a process forks.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        yield Served(process, models)
    finally:
        process.communicate(timeout=30)  # ends its standard input


# ------------------------------------------------------------------------------ process


class State:
    """Switches of the server.

    ``dialect``: ``vllm``, ``echo`` (the OpenAI API's, which knows no
    ``prompt_logprobs``) or ``none`` (no log-probabilities of prompts at all).
    ``context``: ``max_model_len``. ``offered``: ids on the list. ``faults``: what to do
    to the next completions, one each, then none; ``always``: to all. ``weights``: ids
    whose answers are another's. ``dies_of``: a prompt's length that breaks the
    connection. ``root``: where all of them were loaded from, None: the truth.
    """

    def __init__(self) -> None:
        self.dialect = "vllm"
        self.context: int | None = 4096
        self.key: str | None = None
        self.offered: list[str] | None = None
        self.weights: dict[str, str] = {}
        self.dies_of: int | None = None
        self.root: str | None = None
        self.faults: list[str] = []
        self.always: str | None = None
        self.delay = 0.0
        self.requests: list[dict[str, Any]] = []

    def next_fault(self, tokens: int) -> str | None:
        """What to do to a completion of a prompt of so many tokens."""
        if tokens == self.dies_of:
            return "reset"
        return self.faults.pop(0) if self.faults else self.always


class Model:
    """A model's own log-probabilities, from its full logits."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.path = path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
        self._lock = threading.Lock()

    def logprobs(self, ids: Sequence[int]) -> Any:
        """[tokens x vocabulary]: of what follows each token."""
        import torch

        with self._lock, torch.no_grad():
            logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0]
        return logits.float().log_softmax(-1)

    def text(self, id_: int) -> str:
        return str(self.tokenizer.decode([id_]))


class Handler(BaseHTTPRequestHandler):
    """Answers; ``state`` and ``models`` are set on the class."""

    state = State()
    busy = threading.Condition()
    under_way = 0
    models: Mapping[str, Model] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        if self.path == "/requests":
            self._send(200, self.state.requests)
        elif not self._is_allowed(None):
            pass
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": self._listed()})
        elif self.path == "/version" and self.state.dialect == "vllm":
            self._send(200, {"version": "0.32.0"})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        payload = json.loads(body)
        if self.path == "/switch":
            # Answers that nobody waits for any more are not the next test's.
            with self.busy:
                assert self.busy.wait_for(lambda: not Handler.under_way, 30)
            set_switches(payload)
            self._send(200, {})
        elif not self._is_allowed(payload):
            pass
        elif self.path == "/v1/completions":
            self._count(1)
            try:
                self._complete(payload)
            finally:
                self._count(-1)
        else:
            self._send(404, {"detail": "Not Found"})

    def _count(self, change: int) -> None:
        with self.busy:
            Handler.under_way += change
            self.busy.notify_all()

    def _is_allowed(self, payload: Any) -> bool:
        given = self.headers.get("Authorization")
        self.state.requests.append(
            {"path": self.path, "key": given, "payload": payload}
        )
        if self.state.key is None or given == f"Bearer {self.state.key}":
            return True
        self._send(401, {"error": f"Unauthorized: {given}"})
        return False

    def _listed(self) -> list[dict[str, Any]]:
        vllm = self.state.dialect == "vllm"
        return [
            {
                "id": id_,
                "object": "model",
                "created": 1795704627,
                "owned_by": "vllm" if vllm else "somebody",
                **({"root": self._place(id_), "parent": None} if vllm else {}),
                **({"max_model_len": self.state.context} if vllm else {}),
            }
            for id_ in self.state.offered or self.models
        ]

    def _place(self, id_: str) -> str:
        return self.state.root or self.models[id_].path

    # -------------------------------------------------------------------- completions

    def _complete(self, payload: Mapping[str, Any]) -> None:
        state = self.state
        fault = state.next_fault(len(payload["prompt"]))
        time.sleep(state.delay)
        if fault == "429":
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        elif fault in ("500", "502", "503"):
            self._send(int(fault), {"error": {"message": "EngineCore died"}})
        elif fault == "not json compliant":
            message = "Out of range float values are not JSON compliant"
            self._send(400, {"error": {"message": message}})
        elif fault == "repeat":
            given = self.headers.get("Authorization")
            self._send(400, {"error": {"message": f"not with {given}"}})
        elif fault == "reset":
            # No goodbye: the next thing that the other side reads is a reset.
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.connection.close()
            self.close_connection = True
        elif fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif fault == "hang":
            time.sleep(3)
            self._send(200, {})
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side has had enough
                for _ in range(40):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.close_connection = True
        elif fault == "html":
            self._send_bytes(200, b"<html>It works!</html>")
        elif fault == "huge":
            with contextlib.suppress(OSError):
                self._send_bytes(200, b" " * (1 << 26))
            self.close_connection = True
        else:
            self._answer(payload, fault)

    def _answer(self, payload: Mapping[str, Any], fault: str | None) -> None:
        id_ = payload["model"]
        model = self.models.get(self.state.weights.get(id_, id_))
        if model is None:
            message = f"The model `{payload['model']}` does not exist."
            self._send(404, {"error": {"message": message, "code": 404}})
            return
        given = payload["prompt"]
        prompts = given if isinstance(given[0], list) else [given]
        for prompt in prompts:
            if refusal := self._refusal(prompt, payload):
                self._send(400, {"error": {"message": refusal, "code": 400}})
                return
        choices = [
            self._choice(index, prompt, model, payload, fault)
            for index, prompt in enumerate(prompts)
        ]
        if fault == "one choice less":
            choices.pop()
        self._send(200, {"object": "text_completion", "choices": choices[::-1]})

    def _refusal(self, prompt: Sequence[int], payload: Mapping[str, Any]) -> str:
        """As vLLM words it; what it does not refuse is empty."""
        if payload["max_tokens"] == 0 and not payload.get("echo"):
            return "max_tokens must be at least 1, got 0."
        context = self.state.context
        if context is not None and len(prompt) + 1 > context:
            return (
                f"This model's maximum context length is {context} tokens. However, "
                f"your prompt contains at least {len(prompt)} input tokens"
            )
        return ""

    def _choice(
        self,
        index: int,
        prompt: Sequence[int],
        model: Model,
        payload: Mapping[str, Any],
        fault: str | None,
    ) -> dict[str, Any]:
        if fault == "other ids":  # as if a BOS had taken the first token's place
            prompt = [prompt[0], *((id_ + 1) % 300 for id_ in prompt[1:])]
        rows = model.logprobs(prompt)
        said = _tokens(prompt, rows, model)
        written = int(rows[-1].argmax())
        choice: dict[str, Any] = {"index": index, "text": model.text(written)}
        choice |= {"logprobs": None, "finish_reason": "length"}
        asked = payload.get("prompt_logprobs")
        if self.state.dialect == "vllm" and asked is not None:
            found = [_by_id(one, asked) for one in said]
            choice["prompt_logprobs"] = _faulty(found, fault, _set_by_id)
        if self.state.dialect != "none" and payload.get("echo"):
            if payload["max_tokens"]:
                said.append(_token(written, rows[-1], model))
            choice["logprobs"] = {
                "tokens": [one["text"] for one in said],
                "token_logprobs": _faulty([o["logprob"] for o in said], fault, _set),
                "top_logprobs": [_top(one) for one in said],
                "text_offset": [0 for _ in said],
            }
        return choice

    # ------------------------------------------------------------------------ sending

    def _send(
        self, status: int, document: Any, headers: Mapping[str, str] = {}
    ) -> None:
        self._send_bytes(status, json.dumps(document).encode(), headers)

    def _send_bytes(
        self, status: int, body: bytes, headers: Mapping[str, str] = {}
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """As vLLM's; another server's header is its name."""
        return "uvicorn" if self.state.dialect == "vllm" else "llama.cpp"


def _tokens(prompt: Sequence[int], rows: Any, model: Model) -> list[dict[str, Any]]:
    """What is said of each token; of the first, before which nothing is, nothing."""
    first = {"id": prompt[0], "text": model.text(prompt[0]), "logprob": None}
    rest = [_token(id_, row, model) for id_, row in zip(prompt[1:], rows, strict=False)]
    return [first, *rest]


def _token(id_: int, row: Any, model: Model) -> dict[str, Any]:
    top = int(row.argmax())
    return {
        "id": id_,
        "text": model.text(id_),
        "logprob": max(row[id_].item(), CLAMPED),
        "rank": int((row >= row[id_]).sum()),
        "top": (top, model.text(top), row[top].item()),
    }


def _by_id(one: Mapping[str, Any], asked: int) -> dict[str, Any] | None:
    if one["logprob"] is None:
        return None
    entry = {
        str(one["id"]): {
            "logprob": one["logprob"],
            "rank": one["rank"],
            "decoded_token": one["text"],
        }
    }
    if asked:
        id_, text, logprob = one["top"]
        other = {"logprob": logprob, "rank": 1, "decoded_token": text}
        entry.setdefault(str(id_), other)
    return entry


def _top(one: Mapping[str, Any]) -> dict[str, float] | None:
    if one["logprob"] is None:
        return None
    _, text, logprob = one["top"]
    return {one["text"]: one["logprob"], text: logprob}


def _set_by_id(entries: list[Any], place: int, value: Any) -> None:
    for said in entries[place].values():
        said["logprob"] = value


def _set(entries: list[Any], place: int, value: Any) -> None:
    entries[place] = value


def _faulty(entries: list[Any], fault: str | None, put: Any) -> list[Any]:
    """Do to a list of tokens what a fault does."""
    values = {"null": None, "nan": "NaN", "minus infinity": CLAMPED, "above 0": 0.5}
    if fault in values:
        put(entries, len(entries) // 2, values[fault])
    elif fault == "short":
        entries = entries[: len(entries) // 2]
    elif fault == "one more":
        entries = [entries[0], *entries, entries[-1]]
    return entries


class Server(ThreadingHTTPServer):
    """Without tracebacks of connections that a fault has broken."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Nothing on stderr."""


def set_switches(settings: Mapping[str, Any]) -> None:
    """Put all switches back, then set these."""
    Handler.state = State()
    for name, value in settings.items():
        assert hasattr(Handler.state, name), name
        setattr(Handler.state, name, value)


def main(arguments: Sequence[str]) -> None:
    """Start servers until standard input ends, and end them then."""
    pairs = [argument.partition("=") for argument in arguments]
    Handler.models = {id_: Model(path) for id_, _, path in pairs}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that are killed are gone
    for line in sys.stdin:
        port, _, settings = line.partition(" ")
        reader, alive = os.pipe()
        if os.fork() == 0:
            os.close(alive)
            serve(int(port), json.loads(settings), until=reader)
            os._exit(0)
        os.close(reader)  # the other end stays open for as long as this process is


def serve(port: int, settings: Mapping[str, Any], *, until: int) -> None:
    """Serve until the other end of the pipe ``until`` is closed."""
    set_switches(settings)
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(os.getpid(), server.server_address[1], flush=True)
    os.read(until, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
