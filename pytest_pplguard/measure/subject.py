"""What a measurement needs of a model, wherever the model is.

A model in this process is :class:`LocalModel`. One that replicas on other machines
have loaded, or that a server offers, is another :class:`Subject`: its windows are cut
here, and scored there.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from ..checkpoints import Loaded, devices_of, model_digest
from ..errors import MeasurementError, UsageError
from ..options import Target
from ..protocols import Tokenizer
from ..values import Key, Scalar, Window, WindowScore
from .environment import device_name, python_versions, switches
from .facts import Facts
from .loading import loading_label
from .weights import WeightsReader

# What is behind a subject may need torch; whoever asks another one need not have it.
if TYPE_CHECKING:
    from ..scoring import BatchSize, Kept, Progress, Stop


class Compared(Struct, frozen=True):
    """Evidence of each window, the reference's dtype, and lines for the user.

    ``device_name`` is as a :class:`WindowScorer`'s.
    """

    scores: tuple[WindowScore, ...]
    dtype: str
    notices: tuple[str, ...] = ()
    device_name: str | None = None


class WindowScorer(Protocol):
    """Scores windows; see :class:`pytest_pplguard.scoring.Scorer`, which is one."""

    @property
    def device_name(self) -> str | None:
        """What the hardware is called that has scored; None: as the facts say."""

    @property
    def notices(self) -> list[str]:
        """What the user should know, such as a fall-back."""

    def __call__(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
    ) -> list[WindowScore]:
        """Evidence of each window, in the order given."""

    def until(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
        order: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> Mapping[int, WindowScore]:
        """Evidence of windows by index: of all, or until ``stop`` says so."""


class ScorerElsewhere(abc.ABC):
    """A :class:`WindowScorer` of a model that is not in this process."""

    @property
    def device_name(self) -> str | None:
        """As :attr:`WindowScorer.device_name`."""
        return None

    def __call__(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
    ) -> list[WindowScore]:
        scores = self.until(windows, kept, answers=answers)
        return [scores[index] for index in range(len(windows))]

    @abc.abstractmethod
    def until(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
        order: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> Mapping[int, WindowScore]:
        """As :meth:`WindowScorer.until`."""


class Subject(abc.ABC):
    """A checkpoint that is ready to be measured.

    ``from_files`` says that nothing but its files and config decides what it computes;
    ``notices`` are lines for the user. ``weights`` tells of its weights, where it runs;
    None where nobody there does, and the files on this machine are looked at.
    """

    tokenizer: Tokenizer
    from_files: bool
    notices: tuple[str, ...]
    weights: WeightsReader | None = None

    @property
    @abc.abstractmethod
    def facts(self) -> Facts:
        """What is known of it without running it."""

    @abc.abstractmethod
    def kernels(self) -> dict[str, Scalar]:
        """What decides the last bits beyond what is recorded, as it is now."""

    @abc.abstractmethod
    def digest(self) -> str | None:
        """Of all that decides what it computes, comparable between processes.

        None where something else may decide; then finished windows are not kept.
        """

    @abc.abstractmethod
    def scorer(
        self,
        *,
        batch_size: BatchSize = 1,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> WindowScorer:
        """What scores windows with it."""

    def compared(
        self,
        windows: Sequence[Window],
        reference: Target,
        *,
        name: str,
        allow_keys: Sequence[str],
        batch_size: int,
        compile: bool,
        progress: Progress,
        check: Callable[[Tokenizer], None],
    ) -> Compared:
        """How far it is from a ``reference`` that is loaded beside it.

        ``check`` is given the reference's tokenizer before anything is scored.

        Raises:
            UsageError: models cannot be compared there.
        """
        raise UsageError(
            f"{name}: it cannot be compared with {reference.name} where it runs; "
            "measure kl with the executor local or ray"
        )

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it holds; it is not used any more."""


class Executor(abc.ABC):
    """Where models run, if not in this process."""

    def label(self, target: Target) -> str:
        """What is waited for while a checkpoint is made ready."""
        return loading_label(target)

    def check(self, key: Key) -> None:
        """Refuse what cannot be measured there, before anything is made ready.

        Raises:
            UsageError: the key's method needs more than losses.
        """
        return

    @abc.abstractmethod
    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        """Make a checkpoint ready there.

        Raises:
            CheckpointError: it cannot be found, read or loaded.
            DeviceError: there is no device for it.
            ExecutorError: nobody is there who could run it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


class LocalModel(Subject):
    """A model in this process."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._facts: Facts | None = None
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.from_files = loaded.from_files
        self.notices = loaded.notices

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._facts = facts_of(self._loaded)
        return self._facts

    def kernels(self) -> dict[str, Scalar]:
        return switches(self._loaded.device)

    def digest(self) -> str | None:
        return model_digest(self._loaded.model)

    def scorer(
        self,
        *,
        batch_size: BatchSize = 1,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> WindowScorer:
        from ..scoring import Scorer

        return Scorer(
            self._loaded.model,
            batch_size=batch_size,
            progress=progress,
            compile=compile,
        )

    def close(self) -> None:
        """Nothing: whoever loaded the model gives it back."""


def subject_of(model: Loaded | Subject) -> Subject:
    """A model that is loaded, as a subject."""
    return LocalModel(model) if isinstance(model, Loaded) else model


def facts_of(loaded: Loaded) -> Facts:
    """What is known of a model that is loaded."""
    from ..scoring import rotates_by_length

    return Facts(
        dtype=loaded.dtype,
        device=loaded.device.partition(":")[0],
        device_name=_device_names(loaded),
        attention=loaded.attention,
        versions=python_versions(),
        max_positions=max_positions(loaded.model),
        embeddings=_embeddings(loaded.model),
        rotates_by_length=rotates_by_length(loaded.model),
    )


def _device_names(loaded: Loaded) -> str:
    """What the hardware is called that computes: each kind once, in order.

    Layers on two GPUs of a kind are computed by the same kernels as on one, and those
    that are offloaded where all others are: neither moves the number.
    """
    devices = [str(device) for device in devices_of(loaded.model)]
    return " + ".join(dict.fromkeys(map(device_name, devices or [loaded.device])))


def max_positions(model: Any) -> int | None:
    """How many positions a model was made for, None where its config does not say."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _embeddings(model: Any) -> int | None:
    get = getattr(model, "get_input_embeddings", None)
    return getattr(get() if get is not None else None, "num_embeddings", None)


def check_positions(facts: Facts, key: Key) -> None:
    """Refuse a window that the model was not made for."""
    limit = facts.max_positions
    if limit is not None and key.window > limit:
        raise MeasurementError(
            f"key {key}: the window is longer than the {limit} positions that the "
            "model was made for (max_position_embeddings); measure at a shorter window"
        )


def check_ids(facts: Facts, windows: Sequence[Window]) -> None:
    """An id without an embedding would be an assertion deep inside a GPU kernel."""
    rows = facts.embeddings
    if rows is None:
        return
    largest = max(id_ for window in windows for id_ in (*window.ids, *window.targets))
    if largest >= rows:
        raise MeasurementError(
            f"the tokenizer yields the id {largest}, but the model embeds {rows} ids: "
            "model and tokenizer do not belong together"
        )
