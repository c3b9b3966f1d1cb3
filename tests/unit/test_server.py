"""What is said about a server, and what it says, without one that has a model."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pytest_pplguard.errors import ExecutorError, UsageError
from pytest_pplguard.executors import check_options
from pytest_pplguard.executors.server import client as client_module
from pytest_pplguard.executors.server.answers import (
    Echo,
    PromptLogprobs,
    Unreadable,
    choices,
)
from pytest_pplguard.executors.server.client import Client, Refused
from pytest_pplguard.executors.server.executor import offered
from pytest_pplguard.executors.server.settings import checked_url, model_ids
from pytest_pplguard.options import Execution, Options

URL = "http://127.0.0.1:8000/v1"
NAMES = ("demo/dense", "demo/wanda-50")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PPL_SERVER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# ----------------------------------------------------------------------------- settings


def options(**given: Any) -> Options:
    execution = Execution(
        where="server",
        address=given.pop("address", URL),
        model=given.pop("model", None),
    )
    return Options(execution=execution, **given)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"dtype": "float16"}, "--ppl-dtype"),
        ({"device": "cuda"}, "--ppl-device"),
        ({"max_memory": {"0": 1}}, "--ppl-max-memory"),
        ({"attention": "eager"}, "--ppl-attention"),
        ({"compile": True}, "--ppl-compile"),
        ({"threads": 2}, "--ppl-threads"),
    ],
)
def test_what_the_server_was_started_with_cannot_be_asked_for(
    given: dict[str, Any], flag: str
) -> None:
    check_options(options(), NAMES)
    with pytest.raises(UsageError) as caught:
        check_options(options(**given), NAMES)
    assert str(caught.value) == (
        f"{flag} is for models that are loaded here, and the executor is a server, "
        "which was started with its own: leave it out"
    )


def test_one_id_is_not_several_checkpoints() -> None:
    check_options(options(model="llama"), NAMES[:1])
    check_options(options(model="demo/dense=a,demo/wanda-50=b"), NAMES)
    with pytest.raises(UsageError) as caught:
        check_options(options(model="llama"), NAMES)
    assert str(caught.value) == (
        "--ppl-server-model: llama would stand for 2 checkpoints, and a model of the "
        "server is one: give --ppl-server-model demo/dense=ID,demo/wanda-50=ID, or "
        "measure one at a time"
    )


def test_one_model_is_not_two_checkpoints() -> None:
    with pytest.raises(UsageError) as caught:
        check_options(options(model="demo/dense=a,demo/wanda-50=a"), NAMES)
    assert str(caught.value) == (
        "--ppl-server-model: demo/dense and demo/wanda-50 would both be the server's "
        "model a: give each its own, or measure one at a time"
    )


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (None, {}),
        ("org/llama", {"": "org/llama"}),
        ("a/b=x", {"a/b": "x"}),
        ("a/b=x,a/c=org/y", {"a/b": "x", "a/c": "org/y"}),
        ("x,y", {"": "x,y"}),
    ],
)
def test_ids_of_models(given: str | None, ids: dict[str, str]) -> None:
    assert model_ids(given) == ids


@pytest.mark.parametrize(
    "given", [URL, f"{URL}/", f"{URL}/completions", f"{URL}/completions/"]
)
def test_addresses(given: str) -> None:
    assert checked_url(given) == URL


@pytest.mark.parametrize(
    "given",
    ["127.0.0.1:8000/v1", "ftp://x/v1", "http:///v1", "http://x:port", f"{URL}?a=b"],
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(options(address=given), ())
    assert str(caught.value) == (
        f"--ppl-server: {given!r} is no address; give http://HOST:PORT/v1"
    )


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        check_options(options(address="http://me:geheim@host/v1"), ())
    assert str(caught.value) == (
        "--ppl-server: the address holds a user or a password, which would be printed: "
        "leave it out, and set a key by PPL_SERVER_API_KEY in the environment"
    )


def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nX-Evil: 1")
    with pytest.raises(UsageError) as caught:
        check_options(options(), ())
    assert str(caught.value) == (
        "OPENAI_API_KEY in the environment has characters that no key has (a line end, "
        "a letter that is not ASCII): set it anew"
    )


# ------------------------------------------------------------------------------ answers

TEXTS = {1: "a", 2: " b", 3: "\N{REPLACEMENT CHARACTER}", 4: "c"}


def of(id_: int) -> str:
    return TEXTS[id_]


def by_id(*tokens: tuple[int, Any, int, Any]) -> dict[str, Any]:
    entries = [
        {str(id_): {"logprob": value, "rank": rank, "decoded_token": text}}
        for id_, value, rank, text in tokens
    ]
    return {"prompt_logprobs": [None, *entries]}


def test_prompt_logprobs_are_read_by_id() -> None:
    choice = by_id((2, -0.5, 1, " b"), (3, -1.25, 2, ""), (4, -2.0, 1, "c"))
    assert PromptLogprobs().told(choice, (1, 2, 3, 4), 3, of) == (
        [0.5, 1.25, 2.0],
        False,
    )
    assert PromptLogprobs().told(choice, (1, 2, 3, 4), 1, of) == ([2.0], True)


def test_more_tokens_than_were_asked_for_do_no_harm() -> None:
    choice = by_id((2, -3.0, 7, " b"))
    choice["prompt_logprobs"][1]["9"] = {"logprob": -0.1, "rank": 1}
    assert PromptLogprobs().told(choice, (1, 2), 1, of) == ([3.0], False)


@pytest.mark.parametrize(
    ("said", "loss"),
    [
        (None, math.nan),
        ("NaN", math.nan),
        (math.nan, math.nan),
        ("-Infinity", math.inf),
        (-math.inf, math.inf),
        (-9999.0, math.inf),
        (0, 0.0),
        (1e-7, -1e-7),
    ],
)
def test_losses(said: Any, loss: float) -> None:
    found = PromptLogprobs().told(by_id((2, said, 1, None)), (1, 2), 1, of).losses
    assert found == pytest.approx([loss], nan_ok=True, abs=0)


@pytest.mark.parametrize("said", [0.1, math.inf, "Infinity", "x", True, [1]])
def test_what_is_no_log_probability(said: Any) -> None:
    with pytest.raises(Unreadable, match="is no log-probability"):
        PromptLogprobs().told(by_id((2, said, 1, None)), (1, 2), 1, of)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({}, "it has no prompt_logprobs"),
        ({"prompt_logprobs": None}, "it has no prompt_logprobs"),
        (by_id(), "2 tokens were sent, and it tells of 1"),
        (by_id((4, -1.0, 1, "c")), "token 2 of 2 was 2, and it tells of ['4']"),
        ({"prompt_logprobs": [None, 3]}, "token 2 of 2 was 2, and it tells of 3"),
        (
            by_id((2, -1.0, 1, "x")),
            "token 2 of 2 (id 2) is 'b' here and 'x' there: the server has another "
            "tokenizer",
        ),
        (
            by_id((2, -1.0, 1, "token_id:7")),
            "token 2 of 2 (id 2) is 'token_id:2' here and 'token_id:7' there: the "
            "server has another tokenizer",
        ),
    ],
)
def test_prompt_logprobs_of_something_else(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        PromptLogprobs().told(choice, (1, 2), 1, of)
    assert str(caught.value) == words


def echoed(tokens: Any, values: Any, tops: Any = None) -> dict[str, Any]:
    return {
        "logprobs": {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
    }


def test_an_echo_is_read_without_what_was_written_behind_it() -> None:
    tops = [None, {" b": -0.5}, {"?": -1.25, "a": -0.2}, {"c": -2.0}, {"d": -0.1}]
    values = [None, -0.5, -1.25, -2.0, -0.1]
    choice = echoed(
        ["a", "\N{LOWER ONE EIGHTH BLOCK}b", "\xe9", "c", "d"], values, tops
    )
    assert Echo(1).told(choice, (1, 2, 3, 4), 3, of) == ([0.5, 1.25, 2.0], False)
    assert Echo(1).told(choice, (1, 2, 3, 4), 1, of) == ([2.0], True)
    with pytest.raises(Unreadable, match="4 tokens were sent, and it tells of 5"):
        Echo(0).told(choice, (1, 2, 3, 4), 3, of)


def test_without_top_logprobs_nobody_knows_what_is_greedy() -> None:
    assert Echo(0).told(echoed(["a", "b"], [None, -1.0]), (1, 2), 1, of) == (
        [1.0],
        None,
    )


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"logprobs": None}, "it has no logprobs of an echoed prompt"),
        (echoed(["b"], [-1.0]), "2 tokens were sent, and it tells of 1"),
        (echoed(["a"], [None, -1.0]), "it tells of 1 tokens and of 2 logprobs"),
        (
            echoed(["x", "b"], [None, -1.0]),
            "token 1 of 2 (id 1) is 'a' here and 'x' there: the server has another "
            "tokenizer",
        ),
    ],
)
def test_an_echo_of_something_else(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        Echo(0).told(choice, (1, 2), 1, of)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "it has no choices"),
        ({"choices": [1]}, "it has no choices"),
        ({"choices": [{"index": 0}]}, "2 prompts were sent, and it has 1 choices"),
        (
            {"choices": [{"index": 0}, {"index": 0}]},
            "its choices have the indices [0]",
        ),
    ],
)
def test_choices_are_those_of_the_prompts(document: Any, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        choices(document, 2)
    assert str(caught.value) == words


def test_choices_may_come_in_any_order() -> None:
    first, second = {"index": 0}, {"index": 1}
    assert choices({"choices": [second, first]}, 2) == [first, second]


def test_a_list_of_models_is_read_as_far_as_it_can_be() -> None:
    listed = {"data": [{"id": "a", "max_model_len": True}, {"id": 7}, 3]}
    assert [(m.id, m.context, m.owner) for m in offered(listed, URL)] == [
        ("a", None, "")
    ]
    with pytest.raises(ExecutorError) as caught:
        offered({"models": []}, URL)
    assert str(caught.value) == (
        f"the server at {URL} answers /models with something that is no list of "
        "models: is it a server of completions?"
    )


# ------------------------------------------------------------------------------- client


class Scripted(BaseHTTPRequestHandler):
    """Answers with what stands in ``script``, the last one again and again."""

    script: list[tuple[int, dict[str, str], bytes]]
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        status, headers, body = (
            self.script.pop(0) if len(self.script) > 1 else self.script[0]
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Scripted]]:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    handler = type("Own", (Scripted,), {"script": [], "seen": [], "url": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}/v1"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


def client_of(handler: type[Scripted]) -> Client:
    return Client(handler.url, timeout=5.0)  # type: ignore[attr-defined]


def test_a_page_beside_the_version_of_the_api(scripted: type[Scripted]) -> None:
    scripted.script = [(200, {"Server": "own 1.0"}, b'{"version": "1.0"}')]
    answer = client_of(scripted).get_beside("/version")
    assert answer.document == {"version": "1.0"}
    assert answer.headers["server"].endswith("own 1.0")
    assert scripted.seen[0][0] == "/version"


def test_a_netrc_gives_no_password_away(
    scripted: type[Scripted], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password geheim\n")
    monkeypatch.setenv("NETRC", str(netrc))
    scripted.script = [(200, {}, b"{}")]
    client_of(scripted).get("/models")
    assert "Authorization" not in scripted.seen[0][1]


def test_the_key_does_not_follow_where_a_server_sends_to(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_SERVER_API_KEY", "sk-secret")
    scripted.script = [(307, {"Location": "http://elsewhere/v1/models"}, b"")]
    client = client_of(scripted)
    with pytest.raises(Refused) as caught:
        client.get("/models")
    assert str(caught.value) == (
        f"the server at {client.url} sends elsewhere (307, to "
        "http://elsewhere/v1/models): give that address"
    )
    assert len(scripted.seen) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no\nway"}}, "no way"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"msg": "prompt"}]}, '[{"msg": "prompt"}]'),
        ("<html>", '"<html>"'),
    ],
)
def test_the_servers_own_words(scripted: type[Scripted], body: Any, words: str) -> None:
    scripted.script = [(400, {}, json.dumps(body).encode())]
    client = client_of(scripted)
    with pytest.raises(Refused) as caught:
        client.get("/models")
    assert caught.value.words == words.strip('"') if body == "<html>" else words
    assert caught.value.status == 400


def test_nobody_is_reached(scripted: type[Scripted]) -> None:
    nobody = Client("http://127.0.0.1:9/v1", timeout=5.0)
    with pytest.raises(ExecutorError) as caught:
        nobody.get("/models")
    assert str(caught.value) == (
        "the server at http://127.0.0.1:9/v1: it cannot be reached: connection refused;"
        " start it, or mend --ppl-server"
    )
    unknown = Client("http://no-such-host.invalid/v1", timeout=5.0)
    with pytest.raises(ExecutorError) as caught:
        unknown.get("/models")
    assert str(caught.value) == (
        "the server at http://no-such-host.invalid/v1: its name is not known; start "
        "it, or mend --ppl-server"
    )


def test_a_server_that_is_busy_is_asked_when_it_said(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    class Leave(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.5)
    scripted.script = [
        (429, {"Retry-After": "7"}, b"{}"),
        (503, {"Retry-After": "86400"}, b"{}"),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"{}"),
        (200, {}, b"{}"),
    ]
    # Scripted answers GET alone; what is tried again does not depend on it.
    client = client_of(scripted)
    client._ask(f"{client.url}/x", None, most=99, tries=5, leave=Leave())
    first, after_429, after_day, after_date = pauses
    assert (first, after_429, after_day) == (0.0, 7.0, 30.0)
    assert 1.6 <= after_date <= 2.4


def test_whoever_has_left_is_not_asked_for(scripted: type[Scripted]) -> None:
    scripted.script = [(500, {}, b"{}")]
    client, leave = client_of(scripted), threading.Event()
    leave.set()
    with pytest.raises(ExecutorError, match="nobody waits for it"):
        client.complete({}, most=99, leave=leave)
    assert scripted.seen == []
