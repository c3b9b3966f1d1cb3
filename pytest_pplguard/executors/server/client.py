"""Asks a server over HTTP, once, bounded in time and size; never tells its key."""

from __future__ import annotations

import enum
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from ...errors import ExecutorError
from ...safetext import one_line
from .settings import KEYS, api_key, checked_url

_CONNECT = 10.0
_LIST = 30.0
"""Seconds for what needs no model: a list, a version."""

_CHUNK = 1 << 16
_SMALL = 1 << 22
_LONGEST_WORDS = 400
_NO_JSON = ("not json compliant", "out of range float")
"""How Python's servers say that a number is NaN or infinite; it will be so again."""


class Kind(enum.Enum):
    """Why there is no answer.

    ``AWAY``: nobody is there, or not yet. ``BUSY``: it asks to be asked later.
    ``FAILED``: it could not, this time. ``LATE``: it was asked, and says nothing.
    """

    AWAY = enum.auto()
    BUSY = enum.auto()
    FAILED = enum.auto()
    LATE = enum.auto()


_PASSING = {
    408: Kind.BUSY,
    425: Kind.BUSY,
    429: Kind.BUSY,
    500: Kind.FAILED,  # vLLM's last words, when it has lost its engine
    502: Kind.AWAY,
    503: Kind.AWAY,
    504: Kind.AWAY,
}
"""What is said by a server that is busy or starting, and by what stands before it."""


class NoAnswer(ExecutorError):
    """There is no answer, and asking again may help.

    ``why`` is that in a few words; ``wait`` the seconds that the server wants to be
    left for. The message is what there is to say if nobody asks again.
    """

    kind: Kind = Kind.AWAY
    why: str = ""
    wait: float = 0.0


class Refused(ExecutorError):
    """The server understood, and will not. ``words`` are its own, on one line."""

    status: int = 0
    words: str = ""

    @property
    def is_no_number(self) -> bool:
        """Whether it could not write a number as JSON, which has no NaN."""
        return _is_no_number(self.words)


class Answer(NamedTuple):
    """A JSON document, and the headers it came with (lower case)."""

    document: Any
    headers: Mapping[str, str]


class Client:
    """One server.

    Args:
        url: of its API, ``http://HOST:PORT/v1``; with ``/completions`` behind it, as
            lm-eval wants it, is fine too.
        timeout: seconds for an answer, from asking to its last byte.
        option: what the address was given by.

    Raises:
        UsageError: that is no address, or the key is none.
    """

    def __init__(
        self, url: str, *, timeout: float, option: str = "--ppl-server"
    ) -> None:
        self.url = checked_url(url, option=option)
        self.timeout = timeout
        self._option = option
        self._key = api_key()
        self._sessions = threading.local()

    def get(self, path: str) -> Answer:
        """What is at a path behind the API's address.

        Raises:
            NoAnswer: nobody answers.
            Refused: it is not there, or not for us.
            ExecutorError: the answer is something else than JSON.
        """
        return self._ask(self.url + path, None, most=_SMALL)

    def get_beside(self, path: str) -> Answer:
        """As :meth:`get`, of a path beside the API's version, such as ``/version``."""
        root = self.url.removesuffix("/v1")
        return self._ask(root + path, None, most=_SMALL)

    def complete(self, payload: Mapping[str, Any], *, most: int) -> Answer:
        """The answer to a completion.

        ``most`` are the bytes of an answer that can be right.

        Raises:
            NoAnswer: nobody answers, or not now.
            Refused: the request is not to its liking.
            ExecutorError: the answer is something else than JSON.
        """
        return self._ask(self.url + "/completions", payload, most=most)

    def way_out(self, kind: Kind, why: str) -> str:
        """What the user who gets no answer can do, behind a semicolon; or nothing."""
        if kind is Kind.LATE:
            return "; give it longer (--ppl-portion-timeout) or less (--ppl-replicas)"
        return f"; start it, or mend {self._option}" if why in _NOT_THERE else ""

    def _ask(self, url: str, payload: Mapping[str, Any] | None, *, most: int) -> Answer:
        timeout = self.timeout if payload else min(self.timeout, _LIST)
        try:
            status, headers, body = self._sent(url, payload, most, timeout)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            kind, why = self._failure(error, timeout)
            # Longer is for completions.
            kind = Kind.AWAY if payload is None else kind
            raise self._no_answer(kind, why) from error
        words = self._words(body) if status != 200 else ""
        if status in _PASSING and not _is_no_number(words):
            asked = headers.get("retry-after", "")
            wait = float(asked) if asked.isdecimal() else 0.0
            why = f"it answers {status}: {words}"
            raise self._no_answer(_PASSING[status], why, wait)
        if status != 200:
            raise self._refused(url, status, words, headers)
        return Answer(self._document(url, body), headers)

    def _sent(
        self, url: str, payload: Mapping[str, Any] | None, most: int, timeout: float
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer.

        Raises:
            ExecutorError: the body is larger than ``most`` bytes.
        """
        # A time between two bytes is all that requests knows; a server may drip.
        end = time.monotonic() + timeout
        with self._session.request(
            "GET" if payload is None else "POST",
            url,
            json=payload,
            timeout=(min(_CONNECT, timeout), timeout),
            stream=True,
            allow_redirects=False,
        ) as response:
            body = bytearray()
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                body += chunk
                if len(body) > most:
                    raise ExecutorError(
                        f"the server at {self.url} answers with more than {most} "
                        "bytes, which no answer to this has: is it a server of "
                        "completions?"
                    )
                if time.monotonic() > end:
                    raise requests.Timeout
            headers = {name.lower(): text for name, text in response.headers.items()}
            return response.status_code, headers, bytes(body)

    @property
    def _session(self) -> requests.Session:
        """Of this thread: requests does not promise that threads can share one."""
        session: requests.Session | None = getattr(self._sessions, "own", None)
        if session is None:
            session = requests.Session()
            session.auth = _Bearer(self._key)
            self._sessions.own = session
        return session

    def _no_answer(self, kind: Kind, why: str, wait: float = 0.0) -> NoAnswer:
        way_out = self.way_out(kind, why)
        error = NoAnswer(f"the server at {self.url}: {why}{way_out}")
        error.kind, error.why, error.wait = kind, why, wait
        return error

    def _failure(self, error: Exception, timeout: float) -> tuple[Kind, str]:
        """Why there was no answer, in words that have no address of memory in them."""
        if isinstance(error, requests.ConnectTimeout):
            return Kind.AWAY, _NOBODY
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return Kind.LATE, f"no answer within {timeout:g} s"
        text = str(error)
        for sign, words in _FAILURES.items():
            if sign in text:
                return Kind.AWAY, words
        words = f"it cannot be reached: {one_line(text, most=200)}"
        return Kind.AWAY, self._hidden(words)

    def _refused(
        self, url: str, status: int, words: str, headers: Mapping[str, str]
    ) -> Refused:
        place = f"the server at {self.url}"
        if status in (401, 403):
            known = "the key is not the right one" if self._key else "a key is needed"
            text = (
                f"{place} refuses ({status}): {known}; set {KEYS[0]} in the "
                f"environment{'' if self._key else f' (or {KEYS[1]})'}"
            )
        elif 300 <= status < 400:
            there = one_line(headers.get("location", "nowhere"), most=200)
            text = f"{place} sends elsewhere ({status}, to {there}): give that address"
        else:
            text = f"{place} answers {status} at {urlsplit(url).path}: {words}"
        error = Refused(self._hidden(text))
        error.status, error.words = status, words
        return error

    def _document(self, url: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            start = one_line(body[:80].decode("utf-8", "replace"))
            raise ExecutorError(
                self._hidden(
                    f"the server at {self.url} answers {urlsplit(url).path} with "
                    f"something that is no JSON: {start!r}"
                )
            ) from error

    def _words(self, body: bytes) -> str:
        """What an error's body says, without the wrapping that each server has."""
        text = body[:_SMALL].decode("utf-8", "replace")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = text
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        words = found if isinstance(found, str) else json.dumps(found)
        words = one_line(" ".join(words.split()), most=_LONGEST_WORDS)
        return self._hidden(words) or "(no words)"

    def _hidden(self, text: str) -> str:
        """``text`` without the key: some servers repeat it in their errors."""
        return text.replace(self._key, "[key]") if self._key else text


class _Bearer(requests.auth.AuthBase):
    """Sends the key; without one nothing, whatever a ``.netrc`` has for this host."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


_NOBODY = "it cannot be reached: nobody answers at that address"
_CLOSED = "it cannot be reached: connection refused"
_UNKNOWN = "its name is not known"
_NOT_THERE = (_NOBODY, _CLOSED, _UNKNOWN)
_BROKEN = "it broke the connection off"

_FAILURES = {
    "NameResolutionError": _UNKNOWN,
    "Name or service not known": _UNKNOWN,
    "Connection refused": _CLOSED,
    "Connection reset": _BROKEN,
    "Connection aborted": _BROKEN,
    "RemoteDisconnected": _BROKEN,
    "Connection broken": _BROKEN,
    "IncompleteRead": _BROKEN,
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here (a file of "
    "certificates of your own: REQUESTS_CA_BUNDLE)",
    "WRONG_VERSION_NUMBER": "it does not speak https (write http://)",
}
"""Words for what requests says, by a part of it."""


def _is_no_number(words: str) -> bool:
    return any(sign in words.lower() for sign in _NO_JSON)
