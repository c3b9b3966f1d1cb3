"""What the weights of a run's checkpoints are: each looked at once a process."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..baselines import read_fingerprint, split_name
from ..checkpoints import Located, Sparsity, Survivors, files_state
from ..diff import compare, explain
from ..errors import CheckpointError, PplguardError
from ..options import Options, Target
from ..values import Fingerprint
from .files import BaselineFiles, shown_path

if TYPE_CHECKING:
    from torch import nn

    from ..measure import Dense, SameFiles, WeightsReader

T = TypeVar("T")
FromFiles = tuple[Target, Callable[[], Any] | None]
"""A checkpoint that was measured as its files are, and what gives its model.

None where others have measured it, who tell of its weights.
"""

_MOST_LINES = 8
"""Of what differs: a failure is no longer than a screen."""


class Weights:
    """Fingerprints and sparsities of checkpoints, taken when they are asked for.

    Args:
        options: what the user asked for.
        targets: the checkpoints that may be asked for, by name.
        files: the baseline files, where fingerprints are recorded.
        model: loads a checkpoint whose files do not hold the weights that run.
        load: loads a dense checkpoint for :meth:`survivors`, also only if need be.
        elsewhere: who tells of the weights of a checkpoint that is measured elsewhere,
            made ready for it; None: the files on this machine are looked at.
        ready: whether nothing has to be loaded for that.
    """

    def __init__(
        self,
        options: Options,
        targets: Mapping[str, Target],
        files: BaselineFiles,
        model: Callable[[str], nn.Module],
        *,
        load: Callable[[Dense], nn.Module] | None = None,
        elsewhere: Callable[[str], WeightsReader] | None = None,
        ready: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self._options = options
        self._targets = targets
        self._files = files
        self._model = model
        self._load = load
        self._elsewhere = elsewhere
        self._ready = ready
        # Tests may change the folder; places are told from where the run began.
        self._start = Path.cwd()
        self._places: dict[Target, Located | CheckpointError] = {}
        self._fingerprints: dict[object, Fingerprint | CheckpointError] = {}
        self._sparsities: dict[tuple[str, str | None], Sparsity] = {}
        self._same: SameFiles | None = None

    def loading(self, target: Target) -> AbstractContextManager[None]:
        """A checkpoint is loaded within; one that was given has to stay what it is.

        Raises:
            CheckpointError: its files were replaced in this run.
        """
        same = self._same_files(target)
        if same is None:
            return nullcontext()
        try:
            located = self._located(target)
        except CheckpointError:  # whoever loads it says so
            return nullcontext()
        return same.loading(located)

    def _same_files(self, target: Target) -> SameFiles | None:
        """None of what a test has made: it may save another one to the same folder."""
        if self._targets.get(target.name) != target:
            return None
        if self._same is None:
            from ..measure import SameFiles

            self._same = SameFiles(allow_pickle=self._options.allow_pickle)
        return self._same

    def located(self, name: str) -> Located:
        """Where the files of a checkpoint are.

        Raises:
            CheckpointError: they are not there.
        """
        return self._located(self._targets[name])

    def given(self, name: str) -> FromFiles:
        """A checkpoint that was given, as it is measured."""
        here = None if self._elsewhere else lambda: self._model(name)
        return self._targets[name], here

    def at_hand(self, files: FromFiles) -> bool:
        """Whether no checkpoint has to be loaded elsewhere to look at its weights."""
        target, model = files
        return model is not None or self._ready(target.name)

    def _reader(self, files: FromFiles, *, load: bool = True) -> WeightsReader:
        """Who looks at weights: the only place that decides it.

        Without ``load`` it is an error if a model would have to be loaded.
        """
        from ..measure import StoredWeights

        target, model = files
        if model is not None:
            return StoredWeights(
                self._located(target),
                model=model if load else None,
                allow_pickle=self._options.allow_pickle,
                locate=self._located,
                load=self._load,
                same=self._same_files(target),
            )
        assert self._elsewhere is not None
        if not (load or self.at_hand(files)):
            raise CheckpointError(
                f"{target.name}: its replicas were given back before anybody asked "
                "them for its weights"
            )
        return self._elsewhere(target.name)

    def fingerprint(self, name: str) -> Fingerprint:
        """What a checkpoint is.

        Raises:
            CheckpointError: it cannot be read; the same error every time.
            ExecutorError: nobody is left who could.
        """
        return self.fingerprint_of(self.given(name))

    def fingerprint_of(self, files: FromFiles, *, load: bool = True) -> Fingerprint:
        """As :meth:`fingerprint`, of what a test has measured by its path.

        Without ``load`` it is an error if a model would have to be loaded.
        """
        state = self._state(files)
        if state not in self._fingerprints:
            if not load:
                # What fails for want of a model is no answer to whoever loads one.
                found = self._reader(files, load=False).fingerprint()
                self._fingerprints[state] = found
                return found
            try:
                self._fingerprints[state] = self._reader(files).fingerprint()
            except CheckpointError as error:
                # Without its frames, which would keep the model in memory.
                self._fingerprints[state] = CheckpointError(str(error))
        return _or_raise(self._fingerprints[state])

    def _state(self, files: FromFiles) -> object:
        """What is another one when the weights are."""
        target, model = files
        if model is None:  # an executor opens a name twice only as the same model
            return target, "elsewhere"
        # A test may save another checkpoint to the folder of the one before.
        return target, files_state(self._located(target))

    def recorded(self, name: str) -> Fingerprint | None:
        """What a checkpoint was when it was recorded; None if nobody knows.

        Raises:
            BaselineError: its evidence is missing or was changed.
        """
        recorded = self._files.entry(name).fingerprint
        if recorded is None:
            return None
        folder = self._files.path(name).parent
        return read_fingerprint(folder, recorded, where=f"{name}, fingerprint")

    def sparsity(self, name: str, pattern: str | None = None) -> Sparsity:
        """The zeros of a checkpoint; its groups, too, where there is a pattern.

        Raises:
            CheckpointError: they cannot be counted.
            ExecutorError: nobody is left who could.
        """
        if pattern is None:
            # What was counted with groups will do.
            known = (s for (n, _), s in self._sparsities.items() if n == name)
            if (counted := next(known, None)) is not None:
                return counted
        if (name, pattern) not in self._sparsities:
            keep, _, size = (pattern or "").partition(":")
            self._sparsities[name, pattern] = self._reader(self.given(name)).sparsity(
                (int(keep), int(size)) if pattern else None
            )
        return self._sparsities[name, pattern]

    def survivors(self, name: str, dense: Dense) -> Survivors:
        """Which weights of a checkpoint are those of a dense one.

        Raises:
            PplguardError: as :meth:`pytest_pplguard.measure.WeightsReader.survivors`.
        """
        return self._reader(self.given(name)).survivors(dense)

    def changes(
        self,
        name: str,
        files: FromFiles,
        *,
        key: str | None = None,
        told: Sequence[str] = (),
        quiet: bool = False,
    ) -> tuple[str, ...]:
        """What differs from the recorded checkpoint, for a gate that did not pass.

        With ``quiet`` only that: that nothing differs explains a value that moved, and
        nothing else.

        Nothing where no fingerprint is recorded; why, where it cannot be told, unless
        that was ``told``. With a ``key`` it also says whether that was measured on the
        recorded weights.
        """
        command = self.diff_command(name, files[0])
        try:
            recorded = self.recorded(name)
            if recorded is None:
                return ()
            now = self.fingerprint_of(files)
        except PplguardError as error:
            if str(error) in told:
                return ()
            return (f"what differs from the recorded one is not known: {error}",)
        if quiet and not compare(recorded, now).matters:
            return ()
        lines = explain(recorded, now, limit=_MOST_LINES, command=command)
        measured = self._files.entry(name).recorded.get(key or "")
        known = None if measured is None else measured.weights_digest
        if known in (None, recorded.digest):
            return lines
        if known == now.digest:
            return (
                "the weights are those that this baseline was measured on: look at "
                "config, tokenizer and environment (the recorded fingerprint is of "
                "other ones)",
            )
        if recorded.digest == now.digest:
            return (
                "these weights are those of the recorded fingerprint, and this "
                "baseline was measured on others: record this key again too",
            )
        return (
            "this baseline was measured on other weights than those of the recorded "
            "fingerprint, from which differ:",
            *lines,
        )

    def diff_command(self, name: str, target: Target) -> str:
        """The command that shows all that differs from the recorded checkpoint."""
        _, entry = split_name(name)
        # A path of the entry's name would be taken for a checkpoint.
        baseline = f"{shown_path(self._files.path(name), self._start)}/{entry}"
        return shlex.join(("pplguard", "diff", baseline, target.spec, "--all"))

    def _located(self, target: Target) -> Located:
        from ..measure import locate_target

        if target not in self._places:
            try:
                self._places[target] = locate_target(target, self._options)
            except CheckpointError as error:
                # Asking the Hub in vain takes half a minute, for each gate.
                self._places[target] = CheckpointError(str(error))
        return _or_raise(self._places[target])


def _or_raise(found: T | CheckpointError) -> T:
    if isinstance(found, CheckpointError):
        raise found
    return found
