"""The replicas of a checkpoint: how they come up, are checked, lost and replaced."""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CheckpointError, ExecutorError, PplguardError
from ..measure import Facts
from ..measure.identity import own_code
from ..options import Options, Target
from ..protocols import Tokenizer
from ..values import Scalar
from .connection import Connection, first_line
from .interrupts import Interrupts
from .replica import VERSIONS, Failure, Hello, Ready, Replica, installed

RESTARTS = 3
"""How often a replica that was lost is started again."""

_LATE_COMERS = {"hello": 5.0, "load": 60.0}
"""Seconds for which the first that is ready waits for others that are only coming up,
or loading: what is wrong with them is to be known before anything is scored. On a
cluster that is shared others may have their places for long."""

_SAID_EVERY = 10.0
LOADING = 6.0
"""Loading may take so many times what a portion may."""

State = Literal["hello", "load", "ready", "gone"]


class Call(Struct):
    """What a replica was asked for, and when."""

    ref: Any
    since: float
    what: Any = None


class Member:
    """One replica; one that was started again is another member."""

    def __init__(self, number: int, actor: Any, restarts: int) -> None:
        self.number = number
        self.actor = actor
        self.restarts = restarts
        self.state: State = "hello"
        self.hello: Hello | None = None
        self.ready: Ready | None = None
        self.job: int | None = None
        self.reference: str | None = None
        self.call: Call | None = None

    @property
    def node(self) -> str:
        """Where it is, for messages."""
        if self.hello is None:
            return "a node that is not known yet"
        return f"node {self.hello.node} ({self.hello.address})"


class Pool:
    """Replicas of one checkpoint on a cluster.

    Args:
        connection: to the cluster.
        options: how the checkpoint is measured.
        target: the checkpoint, as the nodes know it.
        allow_keys: tensors that its model need not have.
        cpus: of each replica.
        gpus: of each replica.
        tell: gets lines for the user.
        kind: what the replicas are.
    """

    def __init__(
        self,
        connection: Connection,
        options: Options,
        target: Target,
        allow_keys: Sequence[str],
        *,
        cpus: int,
        gpus: int,
        tell: Callable[..., None],
        kind: type[Replica] = Replica,
    ) -> None:
        import ray

        self._connection = connection
        self._options = options
        self._target = target
        self._allow_keys = tuple(allow_keys)
        self._tell = tell
        self._timeout = options.execution.timeout
        self._cpus, self._gpus = cpus, gpus
        self._actor: Any = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(kind)
        self._members: dict[int, Member] = {}
        self._numbers = 0
        self._errors: dict[str, tuple[PplguardError, list[str]]] = {}
        self._causes: list[str] = []
        self._late_error: PplguardError | None = None
        self._first: Member | None = None
        self._idle_since = 0.0
        self._hardware: set[str] = set()
        self.references: dict[str, Ready] = {}
        """What replicas have said of models that they have loaded beside theirs."""
        self.worked = 0.0
        """Seconds of all replicas together that went into scoring, so far."""
        self.proved = 0.0
        """Those that went into proofs that each replica makes for itself."""
        self.portions = 0
        """How many portions they have answered."""
        self.interrupts = Interrupts()
        """To be entered by whoever looks."""

    # ---------------------------------------------------------------------- coming up

    def start(self) -> None:
        """Bring the replicas up; those that come late join later.

        Raises:
            CheckpointError: none could load it, or they have loaded different weights.
            DeviceError: none has the device for it.
            ExecutorError: none came up, or one has other versions.
        """
        wanted = self._options.execution.replicas
        for _ in range(wanted):
            self._add(0)
        said = self._idle_since = time.monotonic()
        first_ready: float | None = None
        while True:
            now = time.monotonic()
            coming = [one for one in self.members if one.state in ("hello", "load")]
            if any(one.state == "ready" for one in self.members):
                first_ready = first_ready or now
                if all(now - first_ready > _LATE_COMERS[one.state] for one in coming):
                    break
            elif not coming:
                raise self.exhausted()
            if now - said >= _SAID_EVERY and any(m.state == "hello" for m in coming):
                said = now
                running = sum(one.state != "hello" for one in self.members)
                self._tell(
                    f"waiting for the cluster: {running} of {wanted} replicas are "
                    f"running (after {_SAID_EVERY:.0f} s)"
                )
            self.look(1.0)
        ready = [one for one in self.members if one.state == "ready"]
        self._check_together(ready)
        self._first = ready[0]
        self._tell_errors()
        if len(ready) < wanted:
            self._tell(
                f"{self._target.name}: {len(ready)} of {wanted} replicas are ready; "
                "others join when they are"
            )
        assert ready[0].ready is not None
        self._tell(*ready[0].ready.notices)
        self._tell_hardware()

    def _tell_hardware(self) -> None:
        """Say it where it is of several kinds, and again where one has joined."""
        names = self.hardware().keys() | self._hardware
        if len(names) > 1 and names != self._hardware:
            self._tell(
                f"{self._target.name}: its replicas run on different hardware "
                f"({', '.join(sorted(names))}): the last digits of a number depend on "
                "which has scored what"
            )
        self._hardware = names

    def _refuse_waiting(self) -> None:
        """Give up where nobody comes up, or loading never ends.

        Raises:
            ExecutorError: none is there, and none came for too long.
        """
        now = time.monotonic()
        if any(one.state == "ready" for one in self.members):
            self._idle_since = now
        for member in self.members:
            if member.state == "hello" and now - self._idle_since > self._timeout:
                if any(one.state != "hello" for one in self.members):
                    continue
                if self._first is not None:
                    raise self.exhausted()
                raise ExecutorError(
                    f"no replica of {self._target.name} came up in "
                    f"{self._timeout:g} s: {self._asked()}, and Ray "
                    f"({self._connection.address}) has {self._connection.describe()}, "
                    "all of them busy or not for us (ray status says by whom)"
                )
            since = member.call.since if member.call is not None else now
            if member.state == "load" and now - since > LOADING * self._timeout:
                self.lose(
                    member,
                    f"loading took more than {LOADING * self._timeout:g} s",
                    again=False,
                )

    def _asked(self) -> str:
        gpus = f"{self._gpus} GPU{'' if self._gpus == 1 else 's'} and "
        return (
            f"each needs {gpus if self._gpus else ''}{self._cpus} "
            f"CPU{'' if self._cpus == 1 else 's'}"
        )

    def _add(self, restarts: int) -> None:
        self._numbers += 1
        actor = self._actor.remote(self._options, self._cpus)
        member = Member(self._numbers, actor, restarts)
        self._members[member.number] = member
        self.ask(member, actor.hello.remote())

    # ------------------------------------------------------------------ what is there

    @property
    def members(self) -> list[Member]:
        """All that may still be of use."""
        return [one for one in self._members.values() if one.state != "gone"]

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return self._target.name

    @property
    def address(self) -> str:
        """Of its cluster, in words."""
        return self._connection.address

    @property
    def first(self) -> Ready:
        """What the first replica that was ready has said."""
        assert self._first is not None
        assert self._first.ready is not None
        return self._first.ready

    @property
    def facts(self) -> Facts:
        """Of the model, wherever it is."""
        names = self.hardware().values()
        return replace(
            self.first.facts,
            device_name=named_together(names) or self.first.facts.device_name,
            more={"executor": "ray"},
        )

    def hardware(self) -> dict[str, str]:
        """What the hardware is called of those that are ready, by all that is known."""
        return {
            hardware(one.ready): one.ready.facts.device_name
            for one in self.members
            if one.ready
        }

    def kernels(self) -> dict[str, Scalar]:
        """What decides the last bits; where replicas differ, all that they say."""
        said = [one.ready.kernels for one in self.members if one.ready]
        merged: dict[str, Scalar] = dict(self.first.kernels)
        for name in merged:
            values = dict.fromkeys(str(kernels.get(name)) for kernels in said)
            if len(values) > 1:
                merged[name] = " | ".join(sorted(values))
        return merged

    def tokenizer(self) -> Tokenizer:
        """That of the checkpoint, as a replica has loaded it.

        Raises:
            ExecutorError: it cannot be read here.
        """
        return read_tokenizer(self.first, self._target.name)

    # ------------------------------------------------------------------------- events

    def ask(self, member: Member, ref: Any, what: Any = None) -> None:
        """A replica was asked for something."""
        member.call = Call(ref, time.monotonic(), what)

    def look(self, seconds: float) -> list[tuple[Member, Call, Any]]:
        """Wait for answers; those that only the pool needs are dealt with.

        Returns:
            What else was answered: by whom, to what call, and the answer.

        Raises:
            ExecutorError: none is there, and none came for too long, or Ray is gone.
        """
        import ray

        self.interrupts.check()
        self._connection.check_alive()
        self._refuse_waiting()
        calls = {one.call.ref: one for one in self.members if one.call is not None}
        if not calls:
            time.sleep(min(seconds, 0.1))
            return []
        done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
        others = [ref for ref in calls if ref not in done]
        if done and others:
            more, _ = ray.wait(others, num_returns=len(others), timeout=0)
            done += more
        answers = []
        for ref in done:
            member = calls[ref]
            call, member.call = member.call, None
            assert call is not None
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                self._connection.check_alive(now=True)
                answers.append((member, call, error))
                continue
            if member.state == "hello":
                self._greeted(member, answer)
            elif member.state == "load":
                self._loaded(member, answer)
            else:
                answers.append((member, call, answer))
        found = []
        for member, call, answer in answers:
            if isinstance(answer, Exception) and member.state in ("hello", "load"):
                self._broke(member, answer)
            else:
                found.append((member, call, answer))
        return found

    def _broke(self, member: Member, error: Exception) -> None:
        """A replica that did not come up."""
        text = cause(error)
        if "pytest_pplguard" in str(error) and "ModuleNotFoundError" in str(error):
            self._refuse(
                member,
                ExecutorError(
                    "pytest-pplguard is not installed where Ray's workers run: install "
                    "this version there, see docs/ray.md"
                ),
            )
            return
        self.lose(member, text)

    def _greeted(self, member: Member, hello: Hello) -> None:
        member.hello = hello
        try:
            self._check_versions(member)
        except ExecutorError as error:
            if self._first is None:
                raise
            self._refuse_late(member, error)
            return
        member.state = "load"
        self.ask(member, member.actor.load.remote(self._target, self._allow_keys))

    def _loaded(self, member: Member, answer: Ready | Failure) -> None:
        if isinstance(answer, Failure):
            self._refuse(member, answer.error())
            return
        member.ready = answer
        if self._first is not None:
            try:
                self._check_together([self._first, member])
            except PplguardError as error:
                member.ready = None
                self._refuse_late(member, error)
                return
            self._tell_hardware()
        member.state = "ready"

    def _check_versions(self, member: Member) -> None:
        """What replicas compute with has to be the same, and ours what cuts the text.

        torch here may be another build, as this process may have no GPU.
        """
        assert member.hello is not None
        theirs = member.hello
        ours = installed()
        for name in VERSIONS:
            if name != "torch" and theirs.versions[name] != ours[name]:
                raise ExecutorError(
                    f"{member.node} has {name} {theirs.versions[name]}, and this "
                    f"process {ours[name]}: nothing was scored; install the same on "
                    "all nodes"
                )
        if theirs.code != own_code():
            raise ExecutorError(
                f"the code of pytest-pplguard {ours['pytest-pplguard']} on "
                f"{member.node} ({theirs.code[:19]}) is not that of this process "
                f"({own_code()[:19]}): nothing was scored; install the same on all "
                "nodes"
            )
        # Also with the first one, where nobody else is left.
        for other in filter(None, (self._first, *self.members)):
            if other.hello is None or other is member:
                continue
            for name, version in other.hello.versions.items():
                if theirs.versions[name] != version:
                    raise ExecutorError(
                        f"{member.node} has {name} {theirs.versions[name]}, and "
                        f"{other.node} {version}: nothing was scored; install the "
                        "same on all nodes"
                    )

    def _check_together(self, members: Sequence[Member]) -> None:
        """Replicas have to be one model."""
        one = members[0]
        assert one.ready is not None
        for other in members[1:]:
            assert other.ready is not None
            why = (
                "its files were replaced in between"
                if one.node == other.node
                else "one of them has a stale copy"
            )
            mine, theirs = which_model(one.ready), which_model(other.ready)
            if mine != theirs:
                raise CheckpointError(
                    f"{self._target.spec} is not the same model everywhere: "
                    f"{one.node} has loaded {mine[:19]} and {other.node} "
                    f"{theirs[:19]}; {why}"
                )
            mine, theirs = one.ready.tokenizer_digest, other.ready.tokenizer_digest
            if mine != theirs:
                raise CheckpointError(
                    f"{self._target.spec} has not the same tokenizer everywhere: "
                    f"{one.node} has loaded {mine[:19]} and {other.node} "
                    f"{theirs[:19]}; {why}"
                )
            for name in ("dtype", "device", "attention"):
                mine = getattr(one.ready.facts, name)
                theirs = getattr(other.ready.facts, name)
                if mine != theirs:
                    raise ExecutorError(
                        f"{self._target.name} has the {name} {mine} on {one.node} and "
                        f"{theirs} on {other.node}: say which with --ppl-{name}"
                    )

    # ------------------------------------------------------------------------- losses

    def lose(self, member: Member, why: str, *, again: bool = True) -> None:
        """A replica is given up: killed, and started again if not too often."""
        import ray

        member.state, member.call = "gone", None
        # Ray itself would wait for what it is at, which may never end.
        ray.kill(member.actor)
        if not why:
            return
        self._causes.append(f"{member.node}: {why}")
        self._late_error = None
        more = again and member.restarts < RESTARTS
        self._tell(
            f"{self._target.name}: a replica on {member.node} was lost ({why}); "
            + ("it is started again" if more else "it is not started again")
        )
        if more:
            self._add(member.restarts + 1)

    def _refuse(self, member: Member, error: PplguardError) -> None:
        """A replica that cannot be used; the same error of several is told once."""
        if self._first is not None:
            self._refuse_late(member, _with_words(error, f"{error} (on {member.node})"))
            return
        known = self._errors.setdefault(str(error), (error, []))
        known[1].append(member.node)
        self.lose(member, "", again=False)

    def _refuse_late(self, member: Member, error: PplguardError) -> None:
        """One that cannot be used with those before; the error says on which node."""
        self._tell(f"a replica that came later is not used: {error}")
        self.lose(member, "", again=False)
        self._late_error = error

    def _tell_errors(self) -> None:
        for text, (_, nodes) in self._errors.items():
            self._tell(
                f"{self._target.name}: not loaded on "
                f"{', '.join(dict.fromkeys(nodes))}, the others go on: {text}"
            )

    def exhausted(self) -> PplguardError:
        """The error to raise where no replica is left: what became of the last."""
        if self._late_error is not None:
            return self._late_error
        for error, nodes in self._errors.values() if self._first is None else ():
            where = ", ".join(dict.fromkeys(nodes))
            return _with_words(error, f"{error} (on {where})")
        count = len(self._causes)
        return ExecutorError(
            f"no replica of {self._target.name} is left, after {count} "
            f"loss{'' if count == 1 else 'es'}: {self.last_cause}"
        )

    @property
    def last_cause(self) -> str:
        """Why the last replica was lost."""
        return self._causes[-1] if self._causes else "nobody knows why"

    def close(self) -> None:
        """End all replicas."""
        import ray

        for member in self.members:
            member.state, member.call = "gone", None
            # Where the cluster is gone, so are they.
            with suppress(ray.exceptions.RayError, ConnectionError):
                if ray.is_initialized():
                    ray.kill(member.actor)


def _with_words(error: PplguardError, words: str) -> PplguardError:
    """The same error, that says more."""
    made = type(error)(words)
    vars(made).update(vars(error))
    return made


def on_nodes(target: Target) -> Target:
    """A checkpoint by a name that means the same on every node.

    What exists here is made absolute: workers have other current folders.
    """
    if os.path.exists(os.path.expanduser(target.spec)):
        return replace(target, spec=_absolute(target.spec))
    parts = target.spec.split("+")
    return replace(
        target,
        spec="+".join(
            _absolute(part) if os.path.exists(os.path.expanduser(part)) else part
            for part in parts
        ),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def hardware(ready: Ready) -> str:
    """``NVIDIA H100``, or ``x86_64 (AVX512)``: of what decides the last digits."""
    name, kernels = ready.facts.device_name, ready.kernels.get("capability")
    return name if kernels is None else f"{name} ({kernels})"


def named_together(names: Iterable[str]) -> str:
    """Names of hardware, each once, as they are recorded."""
    return ", ".join(sorted({*names}))


def read_tokenizer(ready: Ready, name: str) -> Tokenizer:
    """What a replica has pickled.

    Raises:
        ExecutorError: it cannot be read here, as code of a checkpoint's own.
    """
    try:
        found: Tokenizer = pickle.loads(ready.tokenizer)
    # What is missing here, or of another version, may raise anything.
    except Exception as error:
        raise ExecutorError(
            f"the tokenizer of {name}, as a replica has loaded it, cannot be read in "
            f"this process, which cuts the windows ({type(error).__name__}: "
            f"{first_line(error)}): measure it with the executor local"
        ) from error
    return found


def which_model(ready: Ready) -> str:
    """Differs between replicas that have loaded different weights."""
    return ready.digest or ready.state or ""


def cause(error: Exception) -> str:
    """Why a replica was lost, of what Ray says at length."""
    if type(error).__name__ == "OutOfMemoryError":
        return _killed_for_memory(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for word in ("died because", "was killed", "out of memory"):
        for line in lines:
            if word in line:
                return line.rstrip(".")[:300]
    errors = [line for line in lines if "Error" in line.split(":", 1)[0]]
    return (errors[-1] if errors else first_line(error))[:300]


def _killed_for_memory(text: str) -> str:
    """What Ray's memory monitor has done, of the page that it says about it."""
    node = re.search(r"\bIP: ([^,)\s]+)", text)
    used = re.search(r"\bwas ([\d.]+ ?[KMGT]?B)[^/\n]*/ ?([\d.]+ ?[KMGT]?B)", text)
    return (
        f"Ray killed it, as {f'node {node[1]}' if node else 'its node'} ran low on "
        f"memory{f': {used[1]} of {used[2]} used' if used else ''}"
    )
