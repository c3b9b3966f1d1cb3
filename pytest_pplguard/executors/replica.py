"""One replica of a checkpoint: the process on a node that loads it and scores.

An actor of Ray, but nothing here knows that. What is wrong is answered and not raised,
so that it reaches the driver as it is; whatever is raised is a fault of this package or
of the machine.
"""

from __future__ import annotations

import os
import pickle
import platform
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from msgspec import Struct

from .. import errors
from ..checkpoints import (
    Located,
    identity_state,
    is_out_of_memory,
    tokenizer_digest,
)
from ..errors import CheckpointError, DeviceError, InvalidLossError, PplguardError
from ..measure import Dense, Facts, StoredWeights, load_target, locate_target
from ..options import BATCH_AUTO, Options, Target
from ..protocols import windows_digest
from ..values import Scalar, Window, WindowScore

VERSIONS = ("pytest-pplguard", "torch", "transformers", "tokenizers")
"""Packages that have to be the same everywhere, or are told apart by these."""


class Failure(Struct, frozen=True):
    """An error of this package, as it travels.

    ``finished`` are the windows that were scored before it in the batch that it is
    about, ``window`` is the one with the invalid loss.
    """

    kind: str
    message: str
    window: int | None = None
    finished: dict[int, WindowScore] = {}

    @classmethod
    def of(
        cls, error: PplguardError, finished: dict[int, WindowScore] | None = None
    ) -> Failure:
        """What an error says."""
        kind = next(
            base.__name__
            for base in type(error).__mro__
            if getattr(errors, base.__name__, None) is base
        )
        window = error.window if isinstance(error, InvalidLossError) else None
        return cls(kind, str(error), window, finished or {})

    def error(self, message: str | None = None) -> PplguardError:
        """The error again, maybe with more words."""
        made: PplguardError = getattr(errors, self.kind)(message or self.message)
        if isinstance(made, InvalidLossError):
            made.window = self.window
        return made


class Hello(Struct, frozen=True):
    """Where a replica is, and with which code it would compute."""

    node: str
    address: str
    pid: int
    python: str
    code: str
    versions: dict[str, str]


class Ready(Struct, frozen=True):
    """A replica that has loaded its checkpoint.

    ``tokenizer`` is pickled, ``tokenizer_digest`` is the same in every process.
    ``digest`` is that of the model, ``state`` of its weights alone, which a model
    without the other has, too.
    """

    facts: Facts
    digest: str | None
    from_files: bool
    notices: tuple[str, ...]
    seconds: float
    kernels: dict[str, Scalar]
    tokenizer: bytes
    state: str | None = None
    tokenizer_digest: str = ""


class Job(Struct, frozen=True):
    """A measurement that replicas take part in.

    ``cut`` are all batches in reading order; ``proving`` those, by number, on which a
    scorer proves something. ``compared`` are the names of the model and of the
    reference that it is compared with.
    """

    windows: list[Window]
    windows_digest: str
    cut: list[list[int]]
    proving: list[int]
    batch_size: int | str
    compile: bool
    answers: bool
    compared: tuple[str, str] | None = None


class Answer(Struct, frozen=True):
    """What came of a portion: the scores of its batches up to one that failed.

    ``seconds`` are those of scoring; ``proof`` those of proofs that a local scorer
    would have made on batches before, and that each replica makes for itself.
    """

    scores: list[dict[int, WindowScore]]
    seconds: float
    proof: float
    failure: Failure | None
    notices: list[str]
    packs: bool


class Replica:
    """Loads a checkpoint once, and scores portions of windows with it.

    Args:
        options: how it is measured.
        threads: of torch, where it runs on a CPU.
    """

    def __init__(self, options: Options, threads: int) -> None:
        self._options = options
        self._threads = threads
        self._loaded: Any = None
        self._reference: Any = None
        self._files: _Files | None = None
        self._jobs: dict[int, _Job] = {}

    def hello(self) -> Hello:
        """Where this is; loads nothing."""
        from ..measure.identity import own_code

        return Hello(
            node=platform.node() or socket.gethostname(),
            address=_address(),
            pid=os.getpid(),
            python=platform.python_version(),
            code=own_code(),
            versions=installed(),
        )

    def load(self, target: Target, allow_keys: Sequence[str]) -> Ready | Failure:
        """Load the checkpoint."""
        try:
            # Before, so that one that is replaced meanwhile is another one.
            self._files = _Files.of(target, self._options)
        except PplguardError as error:
            return Failure.of(error)
        return self._load(target, allow_keys, "_loaded", self._files.located)

    def load_reference(
        self, target: Target, allow_keys: Sequence[str]
    ) -> Ready | Failure:
        """Load what the checkpoint is compared with, beside it."""
        self._jobs.clear()  # they hold the reference of before
        self._reference = None
        return self._load(target, allow_keys, "_reference")

    def look(self, what: str, *given: Any) -> Any:
        """Look at the weights that were loaded: in their files, as long as they are it.

        Args:
            what: a method of :class:`pytest_pplguard.measure.StoredWeights`.
            given: what it takes.

        Returns:
            What the method does, or a :class:`Failure`.
        """
        files = self._files
        assert files is not None
        weights = StoredWeights(
            files.located,
            model=lambda: self._loaded.model,
            allow_pickle=self._options.allow_pickle,
            locate=lambda target: locate_target(target, self._options),
            load=self._load_dense,
        )
        try:
            files.check(self._options)
            found = getattr(weights, what)(*given)
            files.check(self._options)
        except PplguardError as error:
            return Failure.of(error)
        return found

    def _load_dense(self, dense: Dense) -> Any:
        return load_target(
            dense.target,
            self._options,
            allow_keys=dense.allow_keys,
            tell=lambda *lines: None,
        ).model

    def _load(
        self,
        target: Target,
        allow_keys: Sequence[str],
        role: str,
        located: Located | None = None,
    ) -> Ready | Failure:
        import torch

        started = time.perf_counter()
        notices: list[str] = []
        # As many on each replica: sums are rounded by how they are shared out.
        torch.set_num_threads(self._threads)
        try:
            located = located or locate_target(target, self._options)
            loaded = load_target(
                target,
                self._options,
                allow_keys=tuple(allow_keys),
                tell=lambda *lines: notices.extend(lines),
                located=located,
            )
            setattr(self, role, loaded)
            return self._ready(loaded, located, notices, started)
        except PplguardError as error:
            return Failure.of(error)
        except Exception as error:
            # Where it shows is chance: files are read and digests made, too.
            if not is_out_of_memory(error):
                raise
            return Failure.of(
                DeviceError(
                    f"out of memory: {target.spec} cannot be loaded where this replica "
                    "runs. Way out: fewer replicas on a node (--ppl-threads are the "
                    "CPUs of each), or --ppl-dtype bfloat16"
                )
            )

    def _ready(
        self, loaded: Any, located: Located, notices: Sequence[str], started: float
    ) -> Ready:
        from ..checkpoints import model_digest, state_digest
        from ..measure import facts_of
        from ..measure.environment import switches

        digest = model_digest(loaded.model)
        return Ready(
            facts=facts_of(loaded),
            digest=digest,
            state=state_digest(loaded.model) if digest is None else None,
            from_files=loaded.from_files,
            notices=tuple(notices),
            seconds=time.perf_counter() - started,
            kernels=switches(loaded.device),
            tokenizer=pickle.dumps(loaded.tokenizer),
            tokenizer_digest=tokenizer_digest(loaded.tokenizer, located),
        )

    def begin(self, number: int, job: bytes) -> Failure | None:
        """Take part in a measurement; only the last one is remembered."""
        given = msgspec.msgpack.decode(job, type=Job)
        found = windows_digest(given.windows)
        if found != given.windows_digest:
            return Failure(
                "ExecutorError",
                f"the windows that arrived have the digest {found}, and those that "
                f"were sent {given.windows_digest}: another version of pytest-pplguard",
            )
        job_of: Callable[..., _Job] = _Job
        if given.compared is not None:
            job_of = partial(_Comparison, self._reference.model)
        self._jobs = {number: job_of(self._loaded.model, given)}
        return None

    def score(self, number: int, batches: Sequence[int]) -> Answer:
        """Score batches of a measurement, by their numbers."""
        return self._jobs[number].score(batches)


class _Files(Struct, frozen=True):
    """The files that a checkpoint was loaded from, and what they were then."""

    located: Located
    state: object

    @classmethod
    def of(cls, target: Target, options: Options) -> _Files:
        """Those of a checkpoint, now.

        Raises:
            CheckpointError: they are not there.
        """
        located = locate_target(target, options)
        return cls(located, identity_state(located, allow_pickle=options.allow_pickle))

    def check(self, options: Options) -> None:
        """Refuse to speak of files that are others by now.

        Raises:
            CheckpointError: they are, or not there any more.
        """
        now = identity_state(self.located, allow_pickle=options.allow_pickle)
        if now != self.state:
            raise CheckpointError(
                f"{self.located.spec}: its files were replaced after they had been "
                "loaded, so nothing can be said of the weights that were measured: run "
                "again"
            )


class _Job:
    """A measurement on this replica; its scorer proves itself as a local one does."""

    def __init__(self, model: Any, job: Job) -> None:
        self._model = model
        self._job = job
        self._scorer = self._new()
        self._proven: list[int] = []

    def _new(self) -> Any:
        from ..scoring import Scorer

        size: Any = self._job.batch_size
        return Scorer(self._model, batch_size=size, compile=self._job.compile)

    def score(self, batches: Sequence[int]) -> Answer:
        scores: list[dict[int, WindowScore]] = []
        seconds = proof = 0.0
        failure = None
        try:
            if self._grows and len(batches) > 1:
                started = time.perf_counter()
                # What fails is read again one by one: the error is of one batch.
                with suppress(PplguardError):
                    scores += self._score_together(batches)
                seconds = time.perf_counter() - started
            for number in batches[len(scores) :]:
                started = time.perf_counter()
                if not self._grows:
                    self._prove(number)
                proof += time.perf_counter() - started
                started = time.perf_counter()
                scores.append(self._score(number))
                seconds += time.perf_counter() - started
        except InvalidLossError as error:
            finished = {
                index: WindowScore(nll, scored)
                for index, (nll, scored) in error.finished.items()
            }
            failure = Failure.of(error, finished)
        except PplguardError as error:
            failure = Failure.of(error)
        return Answer(
            scores=scores,
            seconds=seconds,
            proof=proof,
            failure=failure,
            notices=self._notices(),
            packs=self._scorer.packs,
        )

    def _notices(self) -> list[str]:
        return list(self._scorer.notices)

    @property
    def _grows(self) -> bool:
        """Whether the scorer finds out itself what it reads together."""
        return self._job.batch_size == BATCH_AUTO and not self._job.answers

    def _score(self, number: int) -> dict[int, WindowScore]:
        return self._score_together([number])[0]

    def _score_together(self, batches: Sequence[int]) -> list[dict[int, WindowScore]]:
        job = self._job
        cut = [job.cut[number] for number in batches]
        found: dict[int, WindowScore] = {}
        for part in self._scorer.portion(cut, job.windows, answers=job.answers):
            found |= part
        return [{index: found[index] for index in batch} for batch in cut]

    def _prove(self, number: int) -> None:
        """Bring the scorer to where it would be if it had scored all in order."""
        if self._notices() and any(one > number for one in self._proven):
            # It has fallen back on a later batch than this one.
            self._scorer, self._proven = self._new(), []
        for one in self._job.proving:
            if one > number:
                break
            if one not in self._proven:
                self._proven.append(one)
                if one != number:
                    # What is wrong with it is said by whoever is given it.
                    with suppress(PplguardError):
                        self._prove_on(one)

    def _prove_on(self, number: int) -> None:
        job = self._job
        self._scorer.prove(job.cut[number], job.windows, answers=job.answers)


class _Comparison(_Job):
    """A measurement of how far the model is from a reference beside it."""

    def __init__(self, reference: Any, model: Any, job: Job) -> None:
        self._reference_model = reference
        self._reference: Any = None
        super().__init__(model, job)

    def _new(self) -> Any:
        from ..divergence import Beside
        from ..scoring import Scorer

        assert self._job.compared is not None
        compile = self._job.compile
        self._reference = Beside(
            self._job.compared[1], Scorer(self._reference_model, compile=compile)
        )
        return Scorer(self._model, compile=compile)

    def _prove_on(self, number: int) -> None:
        self._score(number)

    def _notices(self) -> list[str]:
        assert self._job.compared is not None
        scorers = (self._scorer, self._reference.scorer)
        return [
            f"{name}: {notice}"
            for name, scorer in zip(self._job.compared, scorers, strict=True)
            for notice in scorer.notices
        ]

    def _score_together(self, batches: Sequence[int]) -> list[dict[int, WindowScore]]:
        from ..divergence import compare_beside

        job = self._job
        assert job.compared is not None
        return [
            compare_beside(
                self._scorer,
                job.windows,
                self._reference,
                job.cut[number],
                name=job.compared[0],
            )
            for number in batches
        ]


def installed() -> dict[str, str]:
    """Versions of what has to be the same everywhere, in this process."""
    return {name: _version(name) for name in VERSIONS}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _address() -> str:
    """The address that the cluster knows this node by."""
    try:
        import ray
    except ImportError:
        return ""
    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else ""
