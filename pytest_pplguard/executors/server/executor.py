"""Finds out what a server is, and which of its models a checkpoint is."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...checkpoints import Located, load_tokenizer, read_config, refuse_remote_code
from ...errors import ExecutorError, UsageError
from ...measure import Executor, Facts, Subject, locate_target
from ...options import Options, Target
from ...protocols import Tokenizer, get_protocol
from ...safetext import one_line
from ...values import Key, Scalar, near_matches
from .answers import DIALECTS, Dialect, Unreadable
from .client import Client, Refused
from .offer import Offer, Served, decoder, list_of_models, listed, offered
from .patience import Patience
from .settings import check_options, model_ids
from .witness import Witness

OWN = "server's own"
"""What stands where only the server knows."""

_SAID = "The quick brown fox jumps over the lazy dog; 1 + 1 = 2, and 6 * 7 is 42."
"""What servers are asked about first: its tokens tell tokenizers apart."""

_MOST_SAID = 16
_FRONTS = ("uvicorn", "hypercorn", "gunicorn", "nginx", "envoy", "cloudflare", "istio")
"""``Server:`` headers that name what is in front of a model."""


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
                "others, which this method compares: measure it with "
                "--ppl-executor local"
            )

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        located = locate_target(target, self._options)
        if not self._options.trust_remote_code and not located.gguf:
            refuse_remote_code(located.model)
        client = Client(
            self._url,
            timeout=self._options.execution.timeout,
            option=self._options.where("server"),
        )
        models = list_of_models(client)
        served = self._chosen(target, located, offered(models.document, client.url))
        # What imports much comes behind what only has to be asked.
        tokenizer = load_tokenizer(
            located, trust_remote_code=self._options.trust_remote_code
        )
        witness = self._tried(client, served, tokenizer, target)
        name = _name(client, served, models.headers.get("server", ""))
        notice = (
            f"{target.name}: its losses are those of {name} at {client.url}, which "
            f"calls it {one_line(served.id, most=200)}; nothing proves that the "
            f"server runs the weights of {target.spec}"
        )
        self._tell(notice)
        from .subject import ServerSubject

        return ServerSubject(
            witness,
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
        there = f"it offers {listed([model.id for model in known])}"
        wanted = self._ids.get(target.name, self._ids.get("", ""))
        if wanted:
            for model in known:
                if model.id == wanted:
                    return model
            near = near_matches(wanted, [model.id for model in known])
            raise UsageError(
                f"{self._options.where('server_model')}: the server has no model "
                f"{wanted!r}{near}; {there}"
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
    ) -> Witness:
        """The first dialect in which the server tells of a prompt's tokens.

        And what it tells.

        Raises:
            ExecutorError: it tells in none, or has another tokenizer.
        """
        of = decoder(tokenizer)
        patience = Patience(client, prove=lambda: None, leave=threading.Event())
        prompt = [*tokenizer.encode(_SAID, add_special_tokens=False)][:_MOST_SAID]
        failures = []
        for dialect in DIALECTS:
            offer = Offer(client, served, dialect)
            witness = Witness(offer, of)
            try:
                choice = patience.ask(functools.partial(offer.ask, [prompt]))[0]
            except Refused as error:
                if error.is_no_number:  # it understood; whoever scores will say where
                    return witness
                if error.status not in (400, 404, 405, 422, 501):
                    raise
                failures.append(f"{_spelled(dialect)}: {error.words}")
                continue
            try:
                witness.take(prompt, choice, "its first question", is_window=False)
            except Unreadable as error:
                if "tokenizer" in str(error):
                    raise ExecutorError(
                        f"{target.name} and the server's model {served.id} do not "
                        f"belong together: {error}"
                    ) from error
                failures.append(f"{_spelled(dialect)}: {error}")
                continue
            return witness
        raise ExecutorError(
            f"the server at {client.url} does not tell log-probabilities of a prompt's "
            f"tokens ({'; '.join(failures)}): vLLM's `vllm serve` does as it is, see "
            "docs/server.md for others"
        )


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
