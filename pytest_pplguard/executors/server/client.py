"""Asks a server over HTTP: bounded in time, size and tries; never tells its key."""

from __future__ import annotations

import json
import random
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

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between tries: the first, doubled each time, and the most."""

_CONNECT = 10.0
_CHUNK = 1 << 16
_SMALL = 1 << 22
_LONGEST_WORDS = 400
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says that is busy, starting, or has just lost its engine."""

_NO_JSON = ("not json compliant", "out of range float")
"""How Python's servers say that a number is NaN or infinite; it will be so again."""


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

    Raises:
        UsageError: that is no address, or the key is none.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url = checked_url(url)
        self._timeout = timeout
        self._key = api_key()
        self._sessions = threading.local()

    def get(self, path: str, *, tries: int = 1) -> Answer:
        """What is at a path behind the API's address.

        Raises:
            Refused: it is not there, or not for us.
            ExecutorError: nobody answers, or with something else than JSON.
        """
        return self._ask(self.url + path, None, most=_SMALL, tries=tries)

    def get_beside(self, path: str) -> Answer:
        """As :meth:`get`, of a path beside the API's version, such as ``/version``."""
        root = self.url.removesuffix("/v1")
        return self._ask(root + path, None, most=_SMALL, tries=1)

    def complete(
        self, payload: Mapping[str, Any], *, most: int, leave: threading.Event
    ) -> Answer:
        """The answer to a completion; asked again where the server is busy or gone.

        ``most`` are the bytes of an answer that can be right. Nobody waits for it any
        more once ``leave`` is set.

        Raises:
            Refused: the request is not to its liking.
            ExecutorError: nobody answers, or with something else than JSON.
        """
        url = self.url + "/completions"
        return self._ask(url, payload, most=most, tries=TRIES, leave=leave)

    def _ask(
        self,
        url: str,
        payload: Mapping[str, Any] | None,
        *,
        most: int,
        tries: int,
        leave: threading.Event | None = None,
    ) -> Answer:
        leave = leave or threading.Event()
        why = "nobody waits for it"
        for number in range(tries):
            if leave.wait(_pause(number, why) if number else 0.0):
                break
            try:
                status, headers, body = self._once(url, payload, most)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                why = self._failure(error)
                continue
            words = self._words(body) if status != 200 else ""
            if status in _PASSING and not _is_no_number(words):
                wait = headers.get("retry-after", "")
                why = _Busy(f"it answers {status}: {words}", wait)
                continue
            if status != 200:
                raise self._refused(url, status, words, headers)
            return Answer(self._document(url, body), headers)
        times = "" if tries == 1 else f" ({tries} times)"
        raise ExecutorError(f"the server at {self.url}: {why}{times}{_way_out(why)}")

    def _once(
        self, url: str, payload: Mapping[str, Any] | None, most: int
    ) -> tuple[int, dict[str, str], bytes]:
        """One try: status, headers and body.

        Raises:
            ExecutorError: the body is larger than ``most`` bytes.
        """
        # A time between two bytes is all that requests knows; a server may drip.
        end = time.monotonic() + self._timeout
        with self._session.request(
            "GET" if payload is None else "POST",
            url,
            json=payload,
            timeout=(min(_CONNECT, self._timeout), self._timeout),
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

    def _failure(self, error: Exception) -> str:
        """Why there was no answer, in words that have no address of memory in them."""
        if isinstance(error, requests.ConnectTimeout):
            return "it cannot be reached: nobody answers at that address"
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return f"no answer within {self._timeout:g} s"
        text = str(error)
        for sign, words in _FAILURES.items():
            if sign in text:
                return words
        return self._hidden(f"it cannot be reached: {one_line(text, most=200)}")

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


class _Busy(str):
    """Why there was no answer yet, and for how long the server wants to be left."""

    wait: str

    def __new__(cls, text: str, wait: str) -> _Busy:
        made = super().__new__(cls, text)
        made.wait = wait
        return made


class _Bearer(requests.auth.AuthBase):
    """Sends the key; without one nothing, whatever a ``.netrc`` has for this host."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


_FAILURES = {
    "NameResolutionError": "its name is not known",
    "Name or service not known": "its name is not known",
    "Connection refused": "it cannot be reached: connection refused",
    "Connection reset": "it broke the connection off",
    "RemoteDisconnected": "it broke the connection off",
    "Connection broken": "it broke the connection off",
    "IncompleteRead": "it broke the connection off",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here (a file of "
    "certificates of your own: REQUESTS_CA_BUNDLE)",
    "WRONG_VERSION_NUMBER": "it does not speak https (write http://)",
}
"""Words for what requests says, by a part of it."""


def _is_no_number(words: str) -> bool:
    return any(sign in words.lower() for sign in _NO_JSON)


def _way_out(why: str) -> str:
    if "refused" in why or "not known" in why or "nobody answers" in why:
        return "; start it, or mend --ppl-server"
    if "no answer within" in why:
        return "; give it longer (--ppl-portion-timeout) or less (--ppl-replicas)"
    return ""


def _pause(number: int, why: str) -> float:
    """Seconds before try ``number``; not all who were refused come back at once."""
    wait = getattr(why, "wait", "")
    asked = float(wait) if wait.isdecimal() else 0.0
    usual = FIRST_WAIT * 2.0 ** (number - 1) * random.uniform(0.8, 1.2)
    return min(max(usual, asked), LONGEST_WAIT)
