"""What a method must answer, and the digest of its windows."""

from __future__ import annotations

import abc
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar
from typing import Protocol as Interface

from ..errors import InvalidLossError, UsageError
from ..values import Key, MetricName, Recipe, Scalar, Window, WindowScore


class Tokenizer(Interface):
    """The part of a Hugging Face tokenizer that the methods use."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode as the model's author meant it; ``.input_ids`` are the token ids."""

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids of ``text``."""

    def decode(self, ids: Any, **options: Any) -> Any:
        """Text of token ids."""


class Text(Interface):
    """The part of a corpus that the methods use, see :class:`..corpora.Corpus`."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The dataset's rows."""

    @property
    def pages(self) -> tuple[str, ...]:
        """Its documents."""

    @property
    def recipe(self) -> Recipe:
        """How rows become one stream of tokens."""


class Protocol(abc.ABC):
    """A method of measuring perplexity.

    ``metrics`` are what it yields, the one that people quote first. ``default_text`` is
    what stands behind the method in the key of its usual text. ``usual_window`` is the
    window that the method's authors measure at (tokens), None for as long a one as the
    model reads. ``has_stride`` says that windows may overlap. ``needs_reference`` says
    that a second model reads the same windows.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    default_text: ClassVar[str]
    usual_window: ClassVar[int | None] = None
    has_stride: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    @abc.abstractmethod
    def corpus(self, key: Key) -> str:
        """Name of the corpus that ``key`` reads."""

    def runs_task(self, key: Key) -> bool:
        """Whether lm-eval brings what ``key`` reads: a task, and no corpus."""
        return False

    @abc.abstractmethod
    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        """The key that measures ``corpus`` (None: the method's usual text)."""

    @abc.abstractmethod
    def windows(self, text: Text, tokenizer: Tokenizer, key: Key) -> list[Window]:
        """Cut a text into windows.

        Raises:
            CorpusError: the text is too short for the key.
        """

    def units(self, scores: Sequence[WindowScore], key: Key) -> dict[str, int]:
        """What :meth:`recompute` divides by: scored tokens."""
        return {"tokens": sum(score.scored for score in scores)}

    @abc.abstractmethod
    def recompute(
        self, scores: Sequence[WindowScore], units: Mapping[str, int]
    ) -> dict[MetricName, float]:
        """The metrics from evidence alone, to check what a file records.

        Raises:
            InvalidLossError: the losses are beyond any finite perplexity.
        """

    @abc.abstractmethod
    def properties(
        self, text: Text, tokenizer: Tokenizer, key: Key
    ) -> dict[str, Scalar]:
        """What decides whether two measurements are comparable, in words."""

    @abc.abstractmethod
    def check(self, key: Key) -> None:
        """Raise :class:`UsageError` if ``key`` has parts that the method lacks."""

    def refuse_stride(self, key: Key) -> None:
        """Raise :class:`UsageError` if the key has a stride, which few methods know."""
        if key.stride is not None:
            raise UsageError(
                f"key {key}: the method {self.name} has no stride; "
                f"write {str(key).replace(f':stride{key.stride}', '')}"
            )


def perplexity(mean_nll: float, unit: str) -> float:
    """``exp`` of a mean loss in nats per ``unit`` (token, word, byte).

    Raises:
        InvalidLossError: it is too large for a float, which ends at 709.78 nats.
    """
    try:
        return math.exp(mean_nll)
    except OverflowError:
        raise InvalidLossError(
            f"a mean loss of {mean_nll:.6g} nats per {unit} has no finite perplexity"
        ) from None


def windows_digest(windows: Iterable[Window]) -> str:
    """``sha256:`` over all windows, so that equal digests mean equal token windows.

    Each window adds, as little-endian 32-bit words: the number of ids and of targets,
    ``start``, ``page + 1`` (0 for no page), then ids, then targets.
    """
    sha = hashlib.sha256()
    for window in windows:
        head = (
            len(window.ids),
            len(window.targets),
            window.start,
            0 if window.page is None else window.page + 1,
        )
        sha.update(struct.pack("<4I", *head))
        for ids in (window.ids, window.targets):
            sha.update(struct.pack(f"<{len(ids)}I", *ids))
    return f"sha256:{sha.hexdigest()}"
