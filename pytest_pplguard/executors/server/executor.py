"""Finds out what a server is, and which of its models a checkpoint is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msgspec import Struct

from ...checkpoints import Located, load_tokenizer, read_config, refuse_remote_code
from ...errors import ExecutorError, UsageError
from ...measure import Executor, Facts, Subject, locate_target
from ...options import Options, Target
from ...protocols import Tokenizer, get_protocol
from ...safetext import one_line
from ...values import Key, Scalar, near_matches
from .answers import DIALECTS, Dialect, Unreadable
from .client import Answer, Client, Refused
from .offer import Offer, decoder
from .settings import check_options, model_ids

OWN = "server's own"
"""What stands where only the server knows."""

_SAID = "The quick brown fox jumps over the lazy dog; 1 + 1 = 2, and 6 * 7 is 42."
"""What servers are asked about first: its tokens tell tokenizers apart."""

_MOST_SAID = 16
_LISTED = 8
_FRONTS = ("uvicorn", "hypercorn", "gunicorn", "nginx", "envoy", "cloudflare", "istio")
"""``Server:`` headers that name what is in front of a model."""


class Served(Struct, frozen=True):
    """A model on a server's list.

    ``root`` is the path or Hub id that it was loaded from, ``context`` its
    ``max_model_len``; None where the server does not say.
    """

    id: str
    owner: str = ""
    root: str | None = None
    context: int | None = None


class ServerExecutor(Executor):
    """A server that runs already.

    Args:
        options: what the user asked for.
        tell: gets lines for the user.
        names: the checkpoints that will be measured.

    Raises:
        UsageError: an option says what only the server can, or cannot be understood.
    """

    def __init__(
        self,
        options: Options,
        *,
        tell: Callable[..., None],
        names: Collection[str] = (),
    ) -> None:
        self._options = options
        self._tell = tell
        self._names = names
        check_options(options, names)
        assert options.execution.address is not None
        self._url = options.execution.address
        self._ids = model_ids(options.execution.model)
        self._taken: dict[str, Target] = {}

    def label(self, target: Target) -> str:
        return f"asking the server for {target.name}"

    def check(self, key: Key) -> None:
        if get_protocol(key.method).needs_reference:
            raise UsageError(
                f"key {key}: a server tells of the text's own tokens and not of all "
                "others, which this method compares: measure it without "
                "--ppl-executor server"
            )

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        located = locate_target(target, self._options)
        if not self._options.trust_remote_code and not located.gguf:
            refuse_remote_code(located.model)
        client = Client(self._url, timeout=self._options.execution.timeout)
        models = _list_of_models(client)
        served = self._chosen(target, located, offered(models.document, client.url))
        # What imports much comes behind what only has to be asked.
        tokenizer = load_tokenizer(
            located, trust_remote_code=self._options.trust_remote_code
        )
        offer = self._tried(client, served, tokenizer, target)
        name = _name(client, served, models.headers.get("server", ""))
        notice = (
            f"{target.name}: its losses are those of {name} at {client.url}, which "
            f"calls it {one_line(served.id, most=200)}; nothing proves that the "
            f"server runs the weights of {target.spec}"
        )
        self._tell(notice)
        from .subject import ServerSubject

        return ServerSubject(
            offer,
            tokenizer,
            _facts(located, served, name),
            at_once=self._options.execution.replicas,
            notices=(notice,),
        )

    def close(self) -> None:
        """Nothing is held."""

    # --------------------------------------------------------------- which model it is

    def _chosen(
        self, target: Target, located: Located, known: Sequence[Served]
    ) -> Served:
        """The server's model that stands for a checkpoint.

        Raises:
            UsageError: it is not there, none is meant, or several could be.
        """
        chosen = self._found(target, located, known)
        other = self._taken.setdefault(chosen.id, target)
        if other != target:
            raise UsageError(
                f"{target.name} and {other.name} would both be the server's model "
                f"{chosen.id}: give each its own, --ppl-server-model "
                f"{other.name}=ID,{target.name}=ID, or measure one at a time"
            )
        return chosen

    def _found(
        self, target: Target, located: Located, known: Sequence[Served]
    ) -> Served:
        there = f"it offers {_listed([model.id for model in known])}"
        wanted = self._ids.get(target.name, self._ids.get("", ""))
        if wanted:
            for model in known:
                if model.id == wanted:
                    return model
            near = near_matches(wanted, [model.id for model in known])
            raise UsageError(
                f"--ppl-server-model: the server has no model {wanted!r}{near}; {there}"
            )
        if not known:
            raise ExecutorError(f"the server at {self._url} offers no model")
        for model in known:
            if _is_from(model, target, located):
                return model
        if len(known) == 1 and len(self._names) < 2:
            return known[0]
        one = "ID" if len(self._names) < 2 else f"{target.name}=ID"
        raise UsageError(
            f"which of the server's models is {target.name}? {there}; say it with "
            f"--ppl-server-model {one}"
        )

    # ---------------------------------------------------------------- how it is asked

    def _tried(
        self, client: Client, served: Served, tokenizer: Tokenizer, target: Target
    ) -> Offer:
        """The first dialect in which the server tells of a prompt's tokens.

        Raises:
            ExecutorError: it tells in none, or has another tokenizer.
        """
        of = decoder(tokenizer)
        prompt = [*tokenizer.encode(_SAID, add_special_tokens=False)][:_MOST_SAID]
        failures = []
        for dialect in DIALECTS:
            offer = Offer(client, served.id, dialect, served.context)
            try:
                choice = offer.ask([prompt], threading.Event())[0]
            except Refused as error:
                if error.is_no_number:  # it understood; whoever scores will say where
                    return offer
                if error.status not in (400, 404, 405, 422, 501):
                    raise
                failures.append(f"{_spelled(dialect)}: {error.words}")
                continue
            try:
                dialect.told(choice, prompt, len(prompt) - 1, of)
            except Unreadable as error:
                if "tokenizer" in str(error):
                    raise ExecutorError(
                        f"{target.name} and the server's model {served.id} do not "
                        f"belong together: {error}"
                    ) from error
                failures.append(f"{_spelled(dialect)}: {error}")
                continue
            return offer
        raise ExecutorError(
            f"the server at {client.url} does not tell log-probabilities of a prompt's "
            f"tokens ({'; '.join(failures)}): vLLM's `vllm serve` does as it is, see "
            "docs/server.md for others"
        )


def _list_of_models(client: Client) -> Answer:
    try:
        return client.get("/models")
    except Refused as error:
        if error.status != 404:
            raise
        ending = "" if client.url.endswith("/v1") else " (it mostly ends with /v1)"
        raise ExecutorError(
            f"the server at {client.url} has no list of models there (404): is that "
            f"the address of its API{ending}?"
        ) from error


def offered(document: Any, url: str) -> list[Served]:
    """The models on a server's list.

    Raises:
        ExecutorError: that is no such list.
    """
    listed = document.get("data") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ExecutorError(
            f"the server at {url} answers /models with something that is no list of "
            "models: is it a server of completions?"
        )
    return [
        Served(
            one["id"],
            owner=_text(one.get("owned_by")) or "",
            root=_text(one.get("root")),
            context=_whole(one.get("max_model_len")),
        )
        for one in listed
        if isinstance(one, dict) and isinstance(one.get("id"), str)
    ]


def _is_from(model: Served, target: Target, located: Located) -> bool:
    """Whether the server says that a model is this checkpoint, by name or by place."""
    named = {target.spec, target.spec.partition("@")[0]}
    if model.id in named or model.root in named:
        return True
    if model.root is None or not Path(model.root).is_absolute():
        return False
    return (
        Path(model.root).resolve() == (located.folder / (located.gguf or "")).resolve()
    )


def _name(client: Client, served: Served, header: str) -> str:
    """What the server is, as far as it tells: ``vllm 0.32.0``."""
    number = None
    try:
        document = client.get_beside("/version").document
    except ExecutorError:  # most servers but vLLM have no such page
        pass
    else:
        number = _text(document.get("version")) if isinstance(document, dict) else None
    behind = "" if header.lower().startswith(_FRONTS) else header
    name = served.owner or behind or "a server without a name"
    return one_line(f"{name} {number}" if number else name, most=80)


def _facts(located: Located, served: Served, name: str) -> Facts:
    from ...scoring import rotates_by_config

    config = _text_config(located)
    more: dict[str, Scalar] = {"executor": "server", "server_model": served.id}
    return Facts(
        dtype=OWN,
        device="server",
        device_name=name,
        attention=OWN,
        # What cuts the windows; torch and transformers of this process run nothing.
        versions={
            "pytest_pplguard": version("pytest-pplguard"),
            "tokenizers": version("tokenizers"),
        },
        max_positions=_whole(config.get("max_position_embeddings")),
        embeddings=_whole(config.get("vocab_size")),
        rotates_by_length=rotates_by_config(SimpleNamespace(**config)),
        more=more,
    )


def _text_config(located: Located) -> Mapping[str, Any]:
    config = read_config(located)
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _spelled(dialect: Dialect) -> str:
    count = dialect.options()["max_tokens"]
    return f"{dialect.name}, max_tokens {count}"


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    shown = ", ".join(one_line(id_, most=200) for id_ in ids[:_LISTED])
    return (shown or "none") + more
