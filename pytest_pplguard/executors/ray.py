"""Replicas of a checkpoint on a Ray cluster.

This process, the driver, cuts the text, hands out portions of windows and judges; it
never has the model. Replicas are actors (:mod:`.replica`), brought up and replaced by
:class:`.pool.Pool`; who scores what is decided by :class:`.schedule.Schedule`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..errors import CheckpointError, ExecutorError, InvalidLossError
from ..measure import Compared, Executor, Facts, ScorerElsewhere, Subject, WindowScorer
from ..options import BATCH_AUTO, Options, Target
from ..protocols import Tokenizer, windows_digest
from ..values import Scalar, Window, WindowScore
from .connection import Connection, gpus_of, in_reach
from .pool import (
    LOADING,
    Member,
    Pool,
    cause,
    hardware,
    named_together,
    on_nodes,
    read_tokenizer,
    which_model,
)
from .portions import Pace, costs
from .replica import Answer, Failure, Job, Ready, Replica
from .schedule import MOST_LOSSES, Schedule, labelled
from .weights import RayWeights

if TYPE_CHECKING:
    from ..scoring import BatchSize, Kept, Progress, Stop

_LOOK_EVERY = 0.5
"""Seconds between looks at the clock while nobody answers."""

_numbers = count(1)


class RayExecutor(Executor):
    """Replicas of a checkpoint on a Ray cluster.

    Args:
        options: how checkpoints are measured, and on which cluster.
        tell: gets lines for the user.
        kind: what the replicas are.
    """

    def __init__(
        self,
        options: Options,
        *,
        tell: Callable[..., None],
        kind: type[Replica] = Replica,
    ) -> None:
        self._options = options
        self._tell = tell
        self._kind = kind
        self._connection: Connection | None = None
        self._opened: list[RaySubject] = []
        self._known: dict[Target, tuple[str, str]] = {}

    def label(self, target: Target) -> str:
        number = self._options.execution.replicas
        return f"{super().label(target)} on {number} replica{'s' * (number > 1)}"

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        if self._connection is None:
            cpus = self._options.threads or 1
            self._connection = Connection(self._options.execution, cpus=cpus)
        self._connection.check_alive(now=True)
        with in_reach(self._connection.address):
            return self._open(self._connection, target, allow_keys)

    def _open(
        self, connection: Connection, target: Target, allow_keys: Sequence[str]
    ) -> Subject:
        options, execution = self._options, self._options.execution
        cpus = options.threads or 1
        gpus = gpus_of(execution, options.device, connection)
        connection.check(execution.replicas, cpus=cpus, gpus=gpus)
        pool = Pool(
            connection,
            options,
            on_nodes(target),
            allow_keys,
            cpus=cpus,
            gpus=gpus,
            tell=self._tell,
            kind=self._kind,
        )
        try:
            with pool.interrupts:
                pool.start()
            self._refuse_another(target, pool.first)
            subject = RaySubject(pool, execution.timeout, self._tell)
        except BaseException:
            pool.close()
            raise
        self._opened = [one for one in self._opened if one.pool.members]
        self._opened.append(subject)
        return subject

    def _refuse_another(self, target: Target, ready: Ready) -> None:
        """A checkpoint that is opened again has to be what it was.

        Numbers and weights of a run are remembered by its name.

        Raises:
            CheckpointError: its files were replaced in between.
        """
        now = which_model(ready), ready.tokenizer_digest
        before = self._known.setdefault(target, now)
        if now != before:
            what = "model" if now[0] != before[0] else "tokenizer"
            raise CheckpointError(
                f"{target.spec} is another {what} than before in this run: its files "
                "were replaced after its replicas had been given back; run again, so "
                "that all numbers are of one checkpoint"
            )

    def close(self) -> None:
        for subject in self._opened:
            subject.close()
        self._opened.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class RaySubject(Subject):
    """A checkpoint that replicas have loaded."""

    def __init__(self, pool: Pool, timeout: float, tell: Callable[..., None]) -> None:
        self._pool = pool
        self._timeout = timeout
        self._tell = tell
        self._pace = Pace()
        self.tokenizer = pool.tokenizer()
        self.from_files = pool.first.from_files
        self.notices = pool.first.notices
        self.weights = RayWeights(pool, timeout)

    @property
    def pool(self) -> Pool:
        """The replicas."""
        return self._pool

    @property
    def facts(self) -> Facts:
        return self._pool.facts

    def kernels(self) -> dict[str, Scalar]:
        return self._pool.kernels()

    def digest(self) -> str | None:
        return self._pool.first.digest

    def scorer(
        self,
        *,
        batch_size: BatchSize = 1,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> WindowScorer:
        return RayScorer(
            self._pool,
            self._pace,
            batch_size=batch_size,
            compile=compile,
            progress=progress,
            timeout=self._timeout,
            tell=self._tell,
        )

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
        from ..scoring import batches, proving

        cut = list(batches(windows, batch_size))
        job = Job(
            windows=list(windows),
            windows_digest=windows_digest(windows),
            cut=cut,
            proving=proving(cut, windows),
            batch_size=batch_size,
            compile=compile,
            answers=False,
            compared=(name, reference.name),
        )
        run = _Run(
            self._pool, self._pace, job, None, None, progress, self._timeout,
            reference=_Reference(on_nodes(reference), tuple(allow_keys), check),
        )  # fmt: skip
        scores = run.scores()
        heard = self._pool.references[on_nodes(reference).spec]
        return Compared(
            scores=tuple(scores[index] for index in range(len(windows))),
            dtype=heard.facts.dtype,
            notices=tuple(_each_once(run.said)),
            device_name=named_together(run.scored_on) or None,
        )

    def close(self) -> None:
        self._pool.close()


class _Reference(Struct):
    """What replicas load beside their checkpoint; ``check`` is given its tokenizer."""

    target: Target
    allow_keys: tuple[str, ...]
    check: Callable[[Tokenizer], None]


def _each_once(said: Mapping[int, Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(line for lines in said.values() for line in lines))


class RayScorer(ScorerElsewhere):
    """Scores windows with all replicas of a checkpoint.

    Batches of a fixed size are those of :class:`pytest_pplguard.scoring.Scorer`, and
    each replica proves itself on those that it does, so a window has the very bits that
    it has there, whoever scores it. With ``auto`` each replica finds its own size.
    """

    def __init__(
        self,
        pool: Pool,
        pace: Pace,
        *,
        batch_size: BatchSize,
        compile: bool,
        progress: Progress | None,
        timeout: float,
        tell: Callable[..., None],
    ) -> None:
        self._pool = pool
        self._pace = pace
        self._batch_size = batch_size
        self._compile = compile
        self._progress = progress
        self._timeout = timeout
        self._tell = tell
        self._packs = True
        self._said: dict[int, list[str]] = {}
        self._named = pool.hardware()
        self._scored_on: set[str] = set()

    @property
    def device_name(self) -> str | None:
        """Of all replicas that have scored, those that joined later, too."""
        return named_together(self._scored_on) or None

    @property
    def notices(self) -> list[str]:
        """What replicas' scorers have to say, each line once."""
        return _each_once(self._said)

    def until(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
        order: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> Mapping[int, WindowScore]:
        """Evidence of windows by index: of all, or until ``stop`` says so.

        As :meth:`pytest_pplguard.scoring.Scorer.until`. ``stop`` sees scores in reading
        order, batch by batch, so that what it says does not depend on the replicas.

        Raises:
            InvalidLossError: a loss is NaN or infinite, and a second replica agrees.
            MeasurementError: the model cannot read a window.
            DeviceError: a replica's device ran out of memory.
            ExecutorError: no replica is left, or a portion was lost too often.
        """
        from ..scoring import refuse_empty

        refuse_empty(windows, answers=answers)
        run = _Run(
            self._pool,
            self._pace,
            self._job(windows, order, answers),
            kept,
            stop,
            self._progress,
            self._timeout,
            named=self._named,
        )
        if kept is not None and kept.finished:  # by a run on what the journal names
            self._scored_on |= {*self._named.values()}
        try:
            return run.scores()
        finally:
            self._scored_on |= run.scored_on
            self._said |= run.said
            self._packs = self._packs and run.packs

    def _job(
        self, windows: Sequence[Window], order: Sequence[int] | None, answers: bool
    ) -> Job:
        from ..scoring import batches, groups, proving

        packing: Any = "padded" if self._packs else "equal"
        if self._pool.facts.rotates_by_length:
            packing = "neighbours"
        # With `auto` a replica reads together what it is given together.
        size = 1 if self._batch_size == BATCH_AUTO else self._batch_size
        cut = (
            list(groups(windows))
            if answers
            else list(batches(windows, size, order, packing))
        )
        return Job(
            windows=list(windows),
            windows_digest=windows_digest(windows),
            cut=cut,
            proving=proving(cut, windows, answers=answers),
            batch_size=self._batch_size,
            compile=self._compile,
            answers=answers,
        )


class _Run:
    """One measurement on its way through the replicas."""

    def __init__(
        self,
        pool: Pool,
        pace: Pace,
        job: Job,
        kept: Kept | None,
        stop: Stop | None,
        progress: Progress | None,
        timeout: float,
        reference: _Reference | None = None,
        named: Collection[str] = (),
    ) -> None:
        import ray

        from ..scoring import Tally

        self._reference = reference
        self._checked = False

        self.said: dict[int, list[str]] = {}
        self.packs = True
        self.scored_on: set[str] = set()
        self._named = named
        self._pool = pool
        self._job = job
        self._kept = kept
        self._stop = stop
        self._number = next(_numbers)
        self._timeout = timeout
        self._scores: dict[int, WindowScore] = dict(kept.finished) if kept else {}
        self._found: dict[int, dict[int, WindowScore]] = {}
        self._failed: dict[int, Failure] = {}
        self._released = 0
        self._tally = Tally(len(job.windows), progress)
        self._tally(self._scores)
        all_costs = costs(job.cut, job.windows)
        self._schedule = Schedule(
            {
                number: all_costs[number]
                for number, batch in enumerate(job.cut)
                if not self._scores.keys() >= {*batch}
            },
            clock=time.monotonic,
            timeout=timeout,
            pace=pace,
        )
        with in_reach(pool.address):
            self._sent = ray.put(msgspec.msgpack.encode(job))

    def scores(self) -> dict[int, WindowScore]:
        """All of them, or those until it was enough."""
        with in_reach(self._pool.address), self._pool.interrupts:
            return self._all()

    def _all(self) -> dict[int, WindowScore]:
        self._check_reference()
        while not self._is_enough():
            self._hand_out()
            for member, call, answer in self._pool.look(_LOOK_EVERY):
                if member.state == "gone":
                    continue  # given up for what another one has just answered
                if isinstance(answer, Exception):
                    self._lose(member, cause(answer))
                elif call.what == ("begin", self._number):
                    self._begun(member, answer)
                elif call.what == ("reference", self._number):
                    self._heard(member, answer)
                elif call.what == ("score", self._number):
                    self._take(member, answer)
                # Else it belongs to a measurement before: its replica is free now.
            self._give_up_late()
        return self._scores

    # ----------------------------------------------------------------------- in order

    def _is_enough(self) -> bool:
        """Let what was found take its place in reading order, as far as it goes.

        Raises:
            PplguardError: what replicas agree to be wrong.
        """
        cut = self._job.cut
        while self._released < len(cut):
            if self._stop is not None and self._stop(self._scores):
                return True
            number = self._released
            if number in self._failed:
                raise self._error(self._failed[number])
            if not self._scores.keys() >= {*cut[number]}:
                if number not in self._found:
                    return False
                self._scores |= self._found.pop(number)
            self._released += 1
        return True

    def _error(self, failure: Failure) -> Exception:
        from ..scoring import tell_of_others

        error = failure.error()
        if isinstance(error, InvalidLossError) and failure.window is not None:
            tell_of_others(error, self._scores | failure.finished, self._job.windows)
        return error

    # --------------------------------------------------------------------- to replicas

    def _hand_out(self) -> None:
        schedule = self._schedule
        members = self._pool.members
        if not members:
            raise self._pool.exhausted()
        if schedule.hopeless is not None:
            raise ExecutorError(
                f"{labelled([schedule.hopeless], self._job.cut)} of "
                f"{len(self._job.windows)}: {MOST_LOSSES} replicas were lost with it "
                f"({self._pool.last_cause})"
            )
        for member in members:
            if member.state == "ready" and member.job != self._number:
                schedule.expect(member.number)  # also while it ends another one
            if member.state != "ready" or member.call is not None:
                continue
            wanted = self._reference
            if wanted is not None and member.reference != wanted.target.spec:
                ref = member.actor.load_reference.remote(
                    wanted.target, wanted.allow_keys
                )
                self._pool.ask(member, ref, ("reference", self._number))
                continue
            if member.job != self._number:
                ref = member.actor.begin.remote(self._number, self._sent)
                self._pool.ask(member, ref, ("begin", self._number))
                continue
            portion = schedule.take(member.number)
            if portion is not None:
                ref = member.actor.score.remote(self._number, list(portion.batches))
                self._pool.ask(member, ref, ("score", self._number))

    def _begun(self, member: Member, failure: Failure | None) -> None:
        if failure is not None:
            raise failure.error(f"{member.node}: {failure.message}")
        member.job = self._number
        self._schedule.add(member.number)

    def _heard(self, member: Member, answer: Ready | Failure) -> None:
        """A replica has loaded the reference; all have to have the same one."""
        if isinstance(answer, Failure):
            raise answer.error(f"{answer.message} (on {member.node})")
        wanted = self._reference
        assert wanted is not None
        known = self._pool.references.setdefault(wanted.target.spec, answer)
        if which_model(known) != which_model(answer):
            raise CheckpointError(
                f"{wanted.target.spec} is not the same model everywhere: "
                f"{member.node} has loaded another one; one node has a stale copy"
            )
        self._check_reference()
        member.reference = wanted.target.spec

    def _check_reference(self) -> None:
        """As soon as a replica has it, now or of a measurement before."""
        if self._reference is None or self._checked:
            return
        known = self._pool.references.get(self._reference.target.spec)
        if known is not None:
            self._checked = True
            name = self._reference.target.name
            self._reference.check(read_tokenizer(known, name))

    def _take(self, member: Member, answer: Answer) -> None:
        portion = self._schedule.running(member.number)
        assert portion is not None
        self._pool.worked += answer.seconds
        self._pool.proved += answer.proof
        self._pool.portions += 1
        self.said[member.number] = answer.notices
        self.packs = self.packs and answer.packs
        done = portion.batches[: len(answer.scores)]
        found = dict(zip(done, answer.scores, strict=True))
        refused = None
        if answer.failure is not None:
            refused = portion.batches[len(done)]
        before = len(self._schedule.distrusted)
        decided = self._schedule.answered(
            member.number,
            done,
            answer.seconds,
            refused,
            anew=answer.failure is not None and answer.failure.window is not None,
        )
        for number in decided:
            if number == refused:
                assert answer.failure is not None
                self._failed[number] = answer.failure
                self._schedule.only_before(number)
                continue
            new = found[number]
            known = self._scores.keys() & new
            self._found[number] = new
            assert member.ready is not None
            self.scored_on.add(member.ready.facts.device_name)
            # A journal names the hardware of its windows, and was opened before others
            # have joined.
            if self._kept is not None and hardware(member.ready) in self._named:
                self._kept.add(new)
            self._tally({index: new[index] for index in new if index not in known})
        for number in self._schedule.distrusted[before:]:
            self._drop(number)
        if refused is not None and self._schedule.wants_anew(member.number):
            self._lose(member, str(answer.failure and answer.failure.message))

    def _drop(self, number: int) -> None:
        """A replica has failed at what another one could do."""
        for member in self._pool.members:
            if member.number == number:
                self._lose(member, "it failed at windows that another replica scored")

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for member in self._pool.members:
            call = member.call
            if member.state != "ready" or call is None:
                continue
            loads = call.what == ("reference", self._number)
            if now - call.since > self._timeout * (LOADING if loads else 1):
                portion = self._schedule.running(member.number)
                what = "an answer"
                if portion is not None:
                    what = labelled(portion.batches, self._job.cut)
                self._lose(member, f"{what} took more than {self._timeout:g} s")

    def _lose(self, member: Member, why: str) -> None:
        self._schedule.lost(member.number)
        self._pool.lose(member, why)
