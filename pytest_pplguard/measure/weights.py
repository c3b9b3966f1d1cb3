"""Looks at a checkpoint's weights: at its files, on the machine that measures it.

That is this machine, unless an executor's :class:`.subject.Subject` says otherwise; a
replica on a node uses :class:`StoredWeights` for its own.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from msgspec import Struct

from ..checkpoints import (
    Located,
    Model,
    Sparsity,
    Survivors,
    compare_with_dense,
    fingerprint,
    identity_state,
    locate,
    measure_sparsity,
)
from ..errors import CheckpointError, NoDenseError
from ..options import Target
from ..values import Fingerprint


class Dense(Struct, frozen=True):
    """The dense checkpoint that a pruned one is held to.

    ``given``: it may be fetched, and loaded if need be, without ``allow_keys``. Else it
    is only read, where a baseline file says that it is.
    """

    target: Target
    given: bool
    allow_keys: tuple[str, ...] = ()


class WeightsReader(abc.ABC):
    """Tells what the weights of one checkpoint are."""

    @abc.abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Facts and digests of all its tensors, its config and its tokenizer.

        Raises:
            CheckpointError: it cannot be read.
            ExecutorError: nobody is left who could.
        """

    @abc.abstractmethod
    def sparsity(self, pattern: tuple[int, int] | None = None) -> Sparsity:
        """The zeros in the linear weights of its decoder layers.

        ``pattern`` is N and M, whose groups are looked at.

        Raises:
            CheckpointError: they cannot be counted.
            ExecutorError: nobody is left who could.
        """

    @abc.abstractmethod
    def survivors(self, dense: Dense) -> Survivors:
        """Which of its weights are those of a dense checkpoint beside it.

        Raises:
            NoDenseError: a dense checkpoint that was not given is not there.
            CheckpointError: one of the two cannot be read.
            DeviceError: there is no room to load the dense one, and that is needed.
            ExecutorError: nobody is left who could.
        """


class SameFiles:
    """Holds that what is said of a checkpoint's weights is said of what was loaded.

    Its number is of what was loaded, all else of what is in its files when they are
    looked at. A training run may save another one over them in between.

    Args:
        allow_pickle: weights may be in pickle files.
    """

    def __init__(self, *, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._seen: dict[str, object] = {}
        self._loaded: set[str] = set()

    @contextmanager
    def loading(self, located: Located) -> Iterator[None]:
        """The checkpoint is loaded within.

        Raises:
            CheckpointError: its files are replaced meanwhile, or were since they were
                loaded or looked at.
        """
        self._check(located)
        self._loaded.add(located.spec)
        yield
        self._check(located)

    @contextmanager
    def looking(self, located: Located) -> Iterator[None]:
        """Its files are looked at within.

        Raises:
            CheckpointError: they are replaced meanwhile, or were since the checkpoint
                was loaded.
        """
        if located.spec not in self._loaded:  # a test may have saved it only now
            self._seen.pop(located.spec, None)
        self._check(located)
        yield
        self._check(located)

    def _check(self, located: Located) -> None:
        now = self._state(located)
        if self._seen.setdefault(located.spec, now) != now:
            raise CheckpointError(
                f"{located.spec}: its files were replaced during this run: run again, "
                "so that its numbers and its weights are of one checkpoint"
            )

    def _state(self, located: Located) -> object:
        try:
            return identity_state(located, allow_pickle=self._allow_pickle)
        except CheckpointError as error:  # whoever reads them says so, if they matter
            return str(error)


class StoredWeights(WeightsReader):
    """Those of files on this machine.

    Args:
        located: where they are.
        model: loads the checkpoint, whose files may not hold the weights that run;
            None: then that is an error.
        allow_pickle: whether pickle weights may be loaded.
        locate: finds a dense checkpoint that was given.
        load: loads it, where its files do not hold its weights.
        same: holds that they are what was loaded; None: somebody else does.
    """

    def __init__(
        self,
        located: Located,
        *,
        model: Model | None,
        allow_pickle: bool,
        locate: Callable[[Target], Located] | None = None,
        load: Callable[[Dense], Any] | None = None,
        same: SameFiles | None = None,
    ) -> None:
        self._located = located
        self._model = model
        self._allow_pickle = allow_pickle
        self._locate = locate
        self._load = load
        self._same = same

    def fingerprint(self) -> Fingerprint:
        with self._looking():
            return fingerprint(
                self._located, model=self._model, allow_pickle=self._allow_pickle
            )

    def sparsity(self, pattern: tuple[int, int] | None = None) -> Sparsity:
        with self._looking():
            return measure_sparsity(
                self._located,
                model=self._model,
                allow_pickle=self._allow_pickle,
                pattern=pattern,
            )

    def survivors(self, dense: Dense) -> Survivors:
        load = self._load
        with self._looking():
            return compare_with_dense(
                self._located,
                self._find(dense),
                model=self._model,
                dense_model=(lambda: load(dense)) if dense.given and load else None,
                allow_pickle=self._allow_pickle,
            )

    def _looking(self) -> AbstractContextManager[None]:
        return (
            nullcontext() if self._same is None else self._same.looking(self._located)
        )

    def _find(self, dense: Dense) -> Located:
        if dense.given:
            assert self._locate is not None
            return self._locate(dense.target)
        try:
            # A gate fetches nothing that nobody asked for.
            return locate(dense.target.spec, offline=True)
        except CheckpointError as error:
            raise NoDenseError(str(error)) from error
