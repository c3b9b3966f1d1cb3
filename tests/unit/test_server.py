"""What is said about a server, and what it says, without one that has a model."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from pytest_pplguard.errors import ExecutorError, UsageError
from pytest_pplguard.executors import check_options
from pytest_pplguard.executors.server.answers import (
    Echo,
    PromptLogprobs,
    Unreadable,
    choices,
)
from pytest_pplguard.executors.server.client import Client, Kind, NoAnswer, Refused
from pytest_pplguard.executors.server.offer import Offer, Served, offered
from pytest_pplguard.executors.server.patience import Patience
from pytest_pplguard.executors.server.settings import checked_url, model_ids
from pytest_pplguard.executors.server.witness import Witness
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


@pytest.mark.parametrize(
    ("given", "nothing"), [("dtype", ""), ("compile", "false"), ("max_memory", "")]
)
def test_what_the_ini_file_asks_for_is_named_so(given: str, nothing: str) -> None:
    values = {"dtype": "float16", "compile": True, "max_memory": {"0": 1}}
    found = options(**{given: values[given]}, from_ini=frozenset([given]))
    with pytest.raises(UsageError) as caught:
        check_options(found, NAMES)
    assert str(caught.value) == (
        f"ini ppl_{given} is for models that are loaded here, and the executor is a "
        "server, which was started with its own: leave it out, or add "
        f"-o ppl_{given}={nothing}"
    )


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("server", {"address": "x"}, "'x' is no address; give http://HOST:PORT/v1"),
        (
            "server",
            {"address": "http://a:b@c/v1"},
            "the address holds a user or a password, which would be printed: leave it "
            "out, and set a key by PPL_SERVER_API_KEY in the environment",
        ),
        (
            "server_model",
            {"model": "llama"},
            "llama would stand for 2 checkpoints, and a model of the server is one: "
            "give --ppl-server-model demo/dense=ID,demo/wanda-50=ID, or measure one at "
            "a time",
        ),
        (
            "server_model",
            {"model": "demo/dense=a,demo/wanda-50=a"},
            "demo/dense and demo/wanda-50 would both be the server's model a: give "
            "each its own, or measure one at a time",
        ),
    ],
)
def test_what_the_ini_file_says_of_the_server_is_named_so(
    name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(options(**given, from_ini=frozenset([name])), NAMES)
    assert str(caught.value) == f"ini ppl_{name}: {words}"


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
    assert checked_url(given, option="--ppl-server") == URL


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
        if not status:  # nothing comes
            time.sleep(1)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def scripted() -> Iterator[type[Scripted]]:
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
    written = Client(nobody.url, timeout=5.0, option="ini ppl_server")
    with pytest.raises(ExecutorError, match=r"start it, or mend ini ppl_server$"):
        written.get("/models")
    unknown = Client("http://no-such-host.invalid/v1", timeout=5.0)
    with pytest.raises(ExecutorError) as caught:
        unknown.get("/models")
    assert str(caught.value) == (
        "the server at http://no-such-host.invalid/v1: its name is not known; start "
        "it, or mend --ppl-server"
    )


def test_a_list_that_does_not_come_is_not_waited_for_longer_than_it_is_worth(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_pplguard.executors.server.client._LIST", 0.2)
    scripted.script = [(0, {}, b"")]
    client = client_of(scripted)
    with pytest.raises(NoAnswer) as caught:
        client.get("/models")
    assert str(caught.value) == f"the server at {client.url}: no answer within 0.2 s"


# ----------------------------------------------------------------------------- patience


class Time:
    """A clock that only waiting moves, and what waits by it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def leave(self, left_after: float = float("inf")) -> threading.Event:
        time = self

        class Leave(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                time.pauses.append(timeout)
                time.now += timeout
                return time.now > 100 + left_after

        return Leave()


def no_answer(kind: Kind, why: str, wait: float = 0.0) -> NoAnswer:
    error = NoAnswer(why)
    error.kind, error.why, error.wait = kind, why, wait
    return error


REFUSED = "it cannot be reached: connection refused"


class Asked:
    """A server that does what stands in a script: ``None`` is an answer."""

    def __init__(
        self,
        requests: Iterable[ExecutorError | None],
        proofs: Iterable[ExecutorError | None] = (),
        **given: Any,
    ) -> None:
        self.time = Time()
        self.said: list[str] = []
        self.asked = self.proved = 0
        self._requests, self._proofs = iter(requests), iter(proofs)
        self.patience = Patience(
            Client(URL, timeout=600.0),
            prove=self._prove,
            leave=given.get("leave") or self.time.leave(),
            say=self.said.append,
            clock=self.time,
        )

    def ask(self) -> str:
        return self.patience.ask(self._request)

    def _request(self) -> str:
        self.asked += 1
        if (error := next(self._requests)) is not None:
            raise error
        return "answer"

    def _prove(self) -> None:
        self.proved += 1
        if (error := next(self._proofs)) is not None:
            raise error


def test_a_server_that_is_away_is_waited_for_and_told_of() -> None:
    away = no_answer(Kind.AWAY, REFUSED)
    loading = no_answer(Kind.AWAY, "it answers 503: loading")
    server = Asked([away, None], [away] * 6 + [loading] * 2 + [None])
    assert server.ask() == "answer"
    assert (server.asked, server.proved) == (2, 9)
    seconds = [int(one.rpartition(" for ")[2].split()[0]) for one in server.said]
    assert len(seconds) == 3
    assert all(0 < one - other < 20 for one, other in itertools.pairwise(seconds))
    start = f"the server at {URL} does not answer "
    assert server.said[0] == f"{start}({REFUSED}); trying again for {seconds[0]} s"
    assert server.said[-1] == (
        f"{start}(it answers 503: loading); trying again for {seconds[-1]} s"
    )
    assert server.patience.notices == [
        f"the server at {URL} was away for {server.time.now - 100:.0f} s (it answers "
        "503: loading), and came back as it was"
    ]


def test_a_server_that_does_not_come_back_is_given_up() -> None:
    away = no_answer(Kind.AWAY, REFUSED)
    server = Asked([away], itertools.repeat(away))
    with pytest.raises(ExecutorError) as caught:
        server.ask()
    assert str(caught.value) == (
        f"the server at {URL}: {REFUSED} for 600 s; start it, or mend --ppl-server"
    )
    assert server.time.now == pytest.approx(700)
    assert server.asked == 1
    assert 110 < server.proved < 140
    assert 45 <= len(server.said) <= 60
    # Whoever asks later is told the same, at once.
    with pytest.raises(ExecutorError, match="connection refused for 600 s"):
        server.patience.ask(lambda: (_ for _ in ()).throw(away))
    assert server.time.now == pytest.approx(700)


def test_a_server_that_comes_back_as_another_is_given_up_at_once() -> None:
    away, other = no_answer(Kind.AWAY, REFUSED), ExecutorError("another")
    server = Asked([away], [away, other])
    with pytest.raises(ExecutorError, match=r"^another$"):
        server.ask()
    assert server.time.now < 103


def test_a_connection_that_breaks_once_is_not_worth_a_line() -> None:
    server = Asked([no_answer(Kind.AWAY, "it broke the connection off"), None], [None])
    assert server.ask() == "answer"
    assert (server.said, server.patience.notices) == ([], [])


def test_requests_at_once_wait_together_and_have_one_proof() -> None:
    barrier = threading.Barrier(4)
    server = Asked([], [None])
    failed = threading.local()

    def request() -> str:
        if not hasattr(failed, "yes"):
            failed.yes = True
            barrier.wait(10)  # all four have been sent before one has failed
            raise no_answer(Kind.AWAY, REFUSED)
        return "answer"

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(server.patience.ask, request) for _ in range(4)]
    assert [one.result() for one in found] == ["answer"] * 4
    assert server.proved == 1


@pytest.mark.parametrize(
    ("kind", "why", "times", "way_out"),
    [
        (Kind.FAILED, "it answers 500: no", 5, ""),
        (
            Kind.LATE,
            "no answer within 600 s",
            2,
            "; give it longer (--ppl-portion-timeout) or less (--ppl-replicas)",
        ),
        (Kind.AWAY, "it broke the connection off", 5, ""),
    ],
)
def test_a_request_is_not_sent_for_ever(
    kind: Kind, why: str, times: int, way_out: str
) -> None:
    server = Asked(itertools.repeat(no_answer(kind, why)), itertools.repeat(None))
    with pytest.raises(ExecutorError) as caught:
        server.ask()
    assert str(caught.value) == f"the server at {URL}: {why} ({times} times){way_out}"
    assert server.asked == times
    assert server.time.now < 100 + 1.2 * (0.5 + 1 + 2 + 4)


def test_a_server_that_is_busy_is_asked_when_it_said() -> None:
    busy = "it answers 429: slow down"
    waits = [7.0, 86400.0, 0.0]
    server = Asked([*(no_answer(Kind.BUSY, busy, wait) for wait in waits), None])
    assert server.ask() == "answer"
    after_seven, after_day, after_none = server.time.pauses
    assert (after_seven, after_day) == (7.0, 30.0)
    assert 1.6 <= after_none <= 2.4


def test_a_server_that_stays_busy_is_given_up() -> None:
    server = Asked(itertools.repeat(no_answer(Kind.BUSY, "it answers 429: no", 10.0)))
    with pytest.raises(ExecutorError) as caught:
        server.ask()
    seconds = round(server.time.now - 100)
    assert str(caught.value) == (
        f"the server at {URL}: it answers 429: no for {seconds} s"
    )
    assert 600 <= seconds < 640
    # Others that are answered in the meantime show that it is not in vain.
    patient = Asked([None])
    slow = iter([no_answer(Kind.BUSY, "429", 30.0)] * 30)

    def request() -> str:
        if (error := next(slow, None)) is not None:
            if patient.time.now > 400 and patient.asked == 0:
                patient.ask()
            raise error
        return "answer"

    assert patient.patience.ask(request) == "answer"
    assert patient.time.now > 800


def test_whoever_has_left_does_not_wait() -> None:
    away = no_answer(Kind.AWAY, REFUSED)
    server = Asked([away], itertools.repeat(away))
    server.patience._leave = server.time.leave(left_after=20)
    with pytest.raises(ExecutorError):
        server.ask()
    assert server.time.now < 130
    gone = threading.Event()
    gone.set()
    with pytest.raises(ExecutorError) as caught:
        Asked([], leave=gone).ask()
    assert str(caught.value) == f"nobody waits for the server at {URL}"


# ---------------------------------------------------------------- what it was, and is


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([], "without the model w50: it offers none"),
        ([{"id": "w60"}], "without the model w50: it offers w60"),
        (
            [{"id": "w50", "root": "/models/w60"}],
            "with another model of that name: w50 was /models/w50, and is /models/w60 "
            "now",
        ),
    ],
)
def test_a_server_has_to_come_back_with_its_model(
    scripted: type[Scripted], now: list[dict[str, str]], words: str
) -> None:
    client = client_of(scripted)
    offer = Offer(client, Served("w50", root="/models/w50"), PromptLogprobs())
    before = [{"id": "w50", "root": "/models/w50", "created": 1}]
    scripted.script = [
        (200, {}, json.dumps({"data": listed}).encode()) for listed in (before, now)
    ]
    offer.check_listed()
    with pytest.raises(ExecutorError) as caught:
        offer.check_listed()
    assert str(caught.value) == f"the server at {client.url} came back {words}"


class Recorded(Offer):
    """An offer whose answers are given."""

    answers: ClassVar[list[dict[str, Any]]]

    def ask(self, prompts: Any) -> list[Any]:
        return [self.answers.pop(0)]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([1.0, 3.0], ""),
        ([1.09, 3.09], ""),
        ([0.91, 3.09], ""),
        (
            [1.11, 3.11],
            "2.0000 nats a token before, 2.1100 now (each 0.11 apart, where rounding "
            "is below 0.1)",
        ),
        # The sum is the same, and each token has another loss.
        (
            [2.0, 2.0],
            "2.0000 nats a token before, 2.0000 now (each 1 apart, where rounding is "
            "below 0.1)",
        ),
        (
            [1.0, math.nan],
            "2.0000 nats a token before, nan now (each nan apart, where rounding is "
            "below 0.1)",
        ),
        (
            [1.0, math.inf],
            "2.0000 nats a token before, inf now (each inf apart, where rounding is "
            "below 0.1)",
        ),
    ],
)
def test_a_server_has_to_answer_as_before(now: list[float], words: str) -> None:
    offer = Recorded(Client(URL, timeout=600.0), Served("w50"), PromptLogprobs())
    witness = Witness(offer, of)
    witness.check()  # nothing was said yet
    before = by_id((2, -1.0, 1, " b"), (4, -3.0, 1, "c"))
    witness.take((1, 2, 4), before, "window 3 of 8", is_window=True)
    after = by_id((2, -now[0], 1, " b"), (4, -now[1], 1, "c"))
    for came_back, how in ((False, "answers"), (True, "came back and answers")):
        offer.answers = [after]  # type: ignore[misc]
        if not words:
            witness.check(came_back=came_back)
            continue
        with pytest.raises(ExecutorError) as caught:
            witness.check(came_back=came_back)
        assert str(caught.value) == (
            f"the server at {URL} {how} window 3 of 8 differently: {words}; its "
            "model has changed: measure anew, and leave it as it is until the end"
        )


def test_an_answer_about_something_else_is_not_as_before() -> None:
    offer = Recorded(Client(URL, timeout=600.0), Served("w50"), PromptLogprobs())
    witness = Witness(offer, of)
    witness.take((1, 2), by_id((2, -1.0, 1, " b")), "window 3 of 8", is_window=True)
    offer.answers = [by_id((4, -1.0, 1, "c"))]  # type: ignore[misc]
    with pytest.raises(ExecutorError) as caught:
        witness.check()
    assert str(caught.value) == (
        f"the server at {URL} answers window 3 of 8 with something else than before: "
        "token 2 of 2 was 2, and it tells of ['4']"
    )
