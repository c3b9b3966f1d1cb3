"""Judges gates in one process: measures through the store, keeps what has to travel.

What a test produced (verdicts, recordings, notices) waits in :attr:`Guard.outbox` until
it is put on the test's report; see :mod:`.controller` for the other end.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ..baselines import split_name
from ..checkpoints import Loaded, to_record
from ..errors import CheckpointError, InvalidLossError, PplguardError, UsageError
from ..gates import (
    EarlyPlan,
    MetricGate,
    holds_fingerprint,
    judge_metric,
    judge_relative,
    no_metric,
)
from ..options import Options, Target
from ..protocols import PROTOCOLS, Tokenizer, check_key, get_protocol
from ..safetext import shell_join
from ..values import (
    HIGHER_IS_BETTER,
    CheckpointEntry,
    Fingerprint,
    Key,
    Measurement,
    MetricName,
    Outcome,
    Recorded,
    Recording,
    RelativeGate,
    Tolerance,
    Verdict,
    relative_change,
)
from .details import Gatherer
from .early import EarlyPlans
from .files import BaselineFiles, shown_path
from .localising import Localiser
from .marker import Request, resolve_key
from .outbox import Outbox
from .weights import FromFiles, Weights

if TYPE_CHECKING:
    from ..measure import Store, WeightsReader


class Guard:
    """Gates, baselines and checkpoints of one process, brought together.

    ``make_store`` is called when a checkpoint is first needed: a run that measures
    nothing (another folder's tests, an xdist controller) never imports torch.
    """

    def __init__(
        self,
        options: Options,
        targets: Mapping[str, Target],
        files: BaselineFiles,
        make_store: Callable[[], Store],
    ) -> None:
        self.options = options
        self.targets = targets
        self.files = files
        self.outbox = Outbox()
        self._make_store = make_store
        self._store: Store | None = None
        self._localiser = Localiser(lambda: self.store)
        self._told: set[str] = set()
        self._tokenizers: dict[str, Tokenizer | None] = {}
        self.weights = Weights(
            options,
            targets,
            files,
            self._own_model,
            load=lambda dense: self.store.load(dense.target).model,
            elsewhere=self._weights_of if options.execution.sees_weights else None,
            ready=lambda name: name in self.ready,
        )
        self._early = EarlyPlans(options, targets, files, self._tell)
        self._gatherer = Gatherer(
            options, targets, files, self.weights, self.outbox, lambda: self.store
        )
        # Tests may change the folder; places are told from where the run began.
        self._start = Path.cwd()

    @property
    def store(self) -> Store:
        """The process's checkpoints."""
        if self._store is None:
            self._store = self._make_store()
        return self._store

    @property
    def resident(self) -> str | None:
        """Name of the checkpoint in this process's memory."""
        return None if self._store is None else self._store.resident

    @property
    def ready(self) -> frozenset[str]:
        """Names of the checkpoints that are loaded, here or where they are measured."""
        return frozenset() if self._store is None else self._store.ready

    # ------------------------------------------------------------------- baseline files

    def judge_gate(
        self, name: str, key: Key, metric: str, tolerance: Tolerance, *, nodeid: str
    ) -> Verdict:
        """Judge a gate of a baseline file."""
        check_metric(key, metric)
        entry = self.files.entry(name)
        gate = MetricGate(
            checkpoint=name,
            key=str(key),
            metric=metric,
            tolerance=tolerance,
            origin=self.line(name, entry, f"gates.{key}.{metric}"),
            recorded_in=self._recorded_in(name, entry, key),
            command=self.command(name, nodeid, key=key),
        )
        measured = self.measured(name, key, early=self._early.of(name, key))
        return self._settle(
            name,
            key,
            gate,
            measured,
            entry.recorded.get(str(key)),
            from_files=self._files_of(name),
            tokenizer=functools.partial(self._tokenizer, name, measured),
            note=self._early.tell(name, key, measured),
        )

    def judge_relative(self, name: str, gate: RelativeGate) -> Verdict:
        """Judge the ratio to another checkpoint of the file."""
        key = Key.parse(gate.key)
        if gate.metric is not None:
            check_metric(key, gate.metric)
        entry = self.files.entry(name)
        origin = self.line(name, entry, "gates.relative")
        verdict = Verdict(
            checkpoint=name,
            key=gate.key,
            metric=self.relative_metric(gate),
            outcome=Outcome.INVALID,
            passed=False,
            gate=origin,
        )
        base = self.base_of(name, gate)
        pair = []
        for checkpoint in (base, name):
            measured = self.measured(checkpoint, key)
            self._gatherer.losses(
                checkpoint,
                key,
                measured,
                self.files.entry(checkpoint).recorded.get(str(key)),
                functools.partial(self._tokenizer, checkpoint, measured),
            )
            # The other one may take this one's place in memory.
            self._gather_weights(checkpoint, self._files_of(checkpoint))
            if isinstance(measured, InvalidLossError):
                return self.keep(
                    replace(verdict, reasons=(f"{checkpoint}: {measured}",)),
                    self._files_of(name),
                    loaded=checkpoint == name,
                )
            pair.append(measured)
        return self.keep(
            judge_relative(
                name,
                gate,
                gate.metric or usual_metric(key, pair[1]),
                measured=pair[1],
                base=pair[0],
                origin=origin,
            ),
            self._files_of(name),
        )

    def relative_metric(self, gate: RelativeGate) -> str:
        """What a relative gate's verdict is about: ``token_perplexity / dense``."""
        key = Key.parse(gate.key)
        protocol = get_protocol(key.method)
        usual = "number" if protocol.runs_task(key) else protocol.metrics[0]
        return f"{gate.metric or usual} / {gate.to}"

    def base_of(self, name: str, gate: RelativeGate) -> str:
        """Name of the checkpoint that a relative gate divides by.

        Raises:
            UsageError: it is not measured in this run.
        """
        base = f"{split_name(name)[0]}/{gate.to}"
        if base not in self.targets:
            raise UsageError(
                f"the gate relative of {name} divides by {base}, which is not measured "
                f"in this run: add --ppl-model {base}=PATH"
            )
        return base

    def reference_of(self, name: str) -> str:
        """Name of the checkpoint that ``kl`` compares with.

        Raises:
            UsageError: the entry has none, or it is not measured in this run.
        """
        reference = self.files.entry(name).reference
        if reference is None:
            raise UsageError(
                f"{name} has no reference for kl: write `reference: NAME`, another "
                f"checkpoint of {self.files.path(name).name}, into its entry"
            )
        reference = f"{split_name(name)[0]}/{reference}"
        if reference not in self.targets:
            raise UsageError(
                f"kl compares {name} with {reference}, which is not measured in this "
                f"run: add --ppl-model {reference}=PATH"
            )
        return reference

    def error(self, name: str, key: str, metric: str, error: PplguardError) -> Verdict:
        """The verdict of a gate that could not be measured."""
        return self.keep(
            Verdict(
                checkpoint=name,
                key=key,
                metric=metric,
                outcome=Outcome.ERROR,
                passed=False,
                reasons=(str(error),),
            ),
            self.given(name),
        )

    # ---------------------------------------------------------------------- test code

    def judge_request(
        self,
        request: Request,
        *,
        what: object,
        tokenizer: object,
        nodeid: str,
        origin: str,
    ) -> list[Verdict]:
        """Judge what a marker or ``check`` asks for.

        ``what`` is a model, a path, or None for the checkpoint given with
        ``--ppl-model``.

        Raises:
            PplguardError: it cannot be loaded or measured.
        """
        name = self.checkpoint_of(request)
        entry = self.files.entry(name)
        verdicts = []
        loaded: Loaded | None = None
        for method in request.methods:
            key = resolve_key(method, entry, name, request)
            gated = entry.gates.metrics.get(str(key), {})
            for metric in gated:
                check_metric(key, metric)
            tokenizer_used: Callable[[], Tokenizer | None]
            if what is None or self._is_itself(name, what, tokenizer):
                measured = self.measured(name, key)
                from_files = self._files_of(name)
                tokenizer_used = functools.partial(self._tokenizer, name, measured)
            else:
                if loaded is None:
                    self.store.check_text(key)
                    loaded = self._as_loaded(what, tokenizer, name)
                measured = self._measured_now(loaded, key, name)
                from_files = _files_of_loaded(name, what, loaded)
                tokenizer_used = functools.partial(getattr, loaded, "tokenizer")
            for metric in gated or (usual_metric(key, measured),):
                # What a test says of a divergence is not meant for an agreement.
                asked = None if metric in HIGHER_IS_BETTER else request.tolerance
                tolerance = asked or gated.get(metric)
                # What is written nearer to the test wins.
                written_here = asked is not None or metric not in gated
                gate = MetricGate(
                    checkpoint=name,
                    key=str(key),
                    metric=metric,
                    tolerance=tolerance,
                    origin=origin
                    if written_here
                    else self.line(name, entry, f"gates.{key}.{metric}"),
                    recorded_in=self._recorded_in(name, entry, key),
                    command=self.command(name, nodeid, key=key),
                )
                verdicts.append(
                    self._settle(
                        name,
                        key,
                        gate,
                        measured,
                        entry.recorded.get(str(key)),
                        from_files=from_files,
                        tokenizer=tokenizer_used,
                        window_asked=request.window,
                    )
                )
        return verdicts

    def checkpoint_of(self, request: Request) -> str:
        """Name of the checkpoint that a test means.

        Raises:
            UsageError: it names none and several were given.
        """
        if request.checkpoint is not None:
            return request.checkpoint
        if len(self.targets) == 1:
            return next(iter(self.targets))
        if not self.targets:
            raise UsageError("no checkpoint: give checkpoint=, or --ppl-model")
        raise UsageError(
            f"several checkpoints are given ({', '.join(self.targets)}); "
            "say which with @pytest.mark.ppl(..., checkpoint=NAME)"
        )

    def _is_itself(self, name: str, what: object, tokenizer: object) -> bool:
        """Whether ``what`` is the checkpoint ``name`` as it was loaded."""
        return (
            self.resident == name
            and self.store.is_pristine(what)
            and (tokenizer is None or tokenizer is self.store.loaded(name).tokenizer)
        )

    def _as_loaded(self, what: object, tokenizer: object, name: str) -> Loaded:
        import torch

        if isinstance(what, str | Path):
            # One model in memory at a time, also where this one is not kept.
            self.store.evict()
            return self.store.load(Target(name=name, spec=str(what)))
        kind = type(what).__name__
        if not isinstance(what, torch.nn.Module):
            raise UsageError(
                f"expected a model, a path or (model, tokenizer), but got {kind}"
            )
        if not any(weight.is_floating_point() for weight in what.parameters()):
            raise UsageError(f"this {kind} has no weights that could be measured")
        if tokenizer is None:
            if name not in self.targets:
                raise UsageError(
                    f"no tokenizer for this {kind}: return (model, tokenizer), pass "
                    f"tokenizer= to ppl_guard.check, or give --ppl-model {name}=PATH"
                )
            tokenizer = self.store.loaded(name).tokenizer
        return Loaded.of(what, tokenizer)

    # ----------------------------------------------------------------------- measuring

    def measured(
        self, name: str, key: Key, *, early: EarlyPlan | None = None
    ) -> Measurement | InvalidLossError:
        """The measurement, or the invalid loss that stands in its place.

        ``early`` may end it before its last window.

        Raises:
            PplguardError: anything else that went wrong.
        """
        check_key(key)
        if name not in self.targets:
            raise UsageError(
                f"{name} is not measured in this run: add --ppl-model {name}=PATH"
            )
        reference = self._reference(name, key)
        self.reclaim()
        try:
            measured = self.store.measurement(
                name, key, reference=reference, early=early
            )
        except InvalidLossError as error:
            return error
        self.outbox.journals += map(str, self.store.take_complete_journals())
        return self._told_of(name, measured, reference)

    def _measured_now(
        self, loaded: Loaded, key: Key, name: str
    ) -> Measurement | InvalidLossError:
        from ..measure import Side

        self._tell(*loaded.notices)
        reference = self._reference(name, key)
        try:
            if reference is None:
                measured = self.store.measure(loaded, key, label=f"{name} {key}")
            else:
                # A test may have changed the shared reference.
                self.reclaim()
                model = Side(name, lambda: loaded)
                measured = self.store.divergence(model, key, reference)
        except InvalidLossError as error:
            return error
        return self._told_of(name, measured, reference)

    def _told_of(
        self, name: str, measured: Measurement, reference: str | None
    ) -> Measurement:
        """A measurement whose notices were told, its reference on record."""
        self._tell(*measured.notices)
        self.outbox.environments[f"{name} {measured.key}"] = measured.environment
        if reference is None:
            return measured
        from ..measure import naming_reference

        return naming_reference(measured, split_name(reference)[1])

    def _reference(self, name: str, key: Key) -> str | None:
        needed = get_protocol(key.method).needs_reference
        return self.reference_of(name) if needed else None

    def _own_model(self, name: str) -> Any:
        self.reclaim()
        return self.store.loaded(name).model

    def _weights_of(self, name: str) -> WeightsReader:
        return self.store.weights(name)

    def given(self, name: str) -> FromFiles | None:
        """The files of a checkpoint, if it was given."""
        return self.weights.given(name) if name in self.targets else None

    def _files_of(self, name: str) -> FromFiles | None:
        """A checkpoint that was loaded from its files; None for what a hook brought."""
        return self.given(name) if self.store.came_from_files(name) else None

    def _tokenizer(
        self, name: str, measured: Measurement | InvalidLossError
    ) -> Tokenizer | None:
        """The checkpoint's tokenizer, if no model has to be loaded for it."""
        if name in self.ready:
            return self.store.tokenizer(name)
        if isinstance(measured, InvalidLossError) or not measured.cached:
            return None
        if name not in self._tokenizers:
            from ..checkpoints import load_tokenizer

            try:
                self._tokenizers[name] = load_tokenizer(
                    self.weights.located(name),
                    trust_remote_code=self.options.trust_remote_code,
                )
            except CheckpointError:  # a failure without words is still a failure
                self._tokenizers[name] = None
        return self._tokenizers[name]

    def allow_keys(self, name: str) -> tuple[str, ...]:
        """Globs of tensors that a checkpoint's model need not have."""
        try:
            return self.files.entry(name).allow_keys
        except UsageError:  # a checkpoint that is about to be recorded
            return ()

    def is_checkpoint(self, path: Path) -> bool:
        """Whether ``path`` is the folder of a checkpoint that was given."""
        return os.path.realpath(path) in self._folders

    @functools.cached_property
    def _folders(self) -> frozenset[str]:
        """Folders of the checkpoints, and of both parts of ``ADAPTER+BASE``."""
        specs = [target.spec for target in self.targets.values()]
        parts = [part for spec in specs for part in (spec, *spec.split("+")) if part]
        return frozenset(
            os.path.realpath(self._start / Path(os.path.expanduser(part)))
            for part in parts
        )

    def reclaim(self) -> None:
        """Take a lent model back; tell the user if it came back changed."""
        changed = None if self._store is None else self._store.reclaim()
        if changed is not None:
            self._tell(
                f"{changed}: a test changed the shared model in place; it was dropped "
                "and will be loaded anew (use ppl_model_copy for a model to change)",
                again=True,
            )

    def forget_reference(self) -> None:
        """Nothing will be compared any more: give disk and memory back."""
        if self._store is not None:
            self._store.forget_reference()

    def close(self) -> None:
        """The session is over: give back what runs elsewhere, too."""
        if self._store is not None:
            self._store.close()

    def tell(self, *notices: str) -> None:
        """Have something said once at the end of the run."""
        self._tell(*notices)

    def _tell(self, *notices: str, again: bool = False) -> None:
        for notice in notices:
            if again or notice not in self._told:
                self._told.add(notice)
                self.outbox.notices.append(notice)

    # ------------------------------------------------------------------------- judging

    def _settle(
        self,
        name: str,
        key: Key,
        gate: MetricGate,
        measured: Measurement | InvalidLossError,
        recorded: Recorded | None,
        *,
        from_files: FromFiles | None,
        tokenizer: Callable[[], Tokenizer | None],
        window_asked: int | None = None,
        note: str = "",
    ) -> Verdict:
        """Judge one metric, or record it if that is what the run is for."""
        self._gatherer.losses(name, key, measured, recorded, tokenizer)
        if isinstance(measured, InvalidLossError):
            return self.keep(
                Verdict(
                    checkpoint=name,
                    key=str(key),
                    metric=gate.metric,
                    outcome=Outcome.INVALID,
                    passed=False,
                    recorded_in=gate.recorded_in,
                    reasons=(str(measured),),
                    where=self._localiser.of_window(measured, key, tokenizer()),
                ),
                from_files,
            )
        # A metric that its baseline lacks is not new: recording the key again would
        # replace the other metrics too.
        recording = self.options.update == "all" or (
            self.options.update == "new" and recorded is None
        )
        if recording:
            return self.keep(
                self._record(name, gate, measured, recorded, from_files), from_files
            )
        evidence = (
            self.files.evidence_of(name, key, recorded)
            if recorded is not None
            else None
        )
        verdict = judge_metric(
            gate,
            measured,
            recorded,
            recorded_protocol=evidence.protocol if evidence is not None else None,
            recorded_windows=evidence.windows if evidence is not None else (),
            recorded_documents=evidence.documents if evidence is not None else (),
            published=self.options.published,
        )
        if note:
            verdict = replace(verdict, notes=(*verdict.notes, note))
        if verdict.outcome is Outcome.MISSING and window_asked is not None:
            verdict = self._other_window(name, verdict, key)
        moved = verdict.outcome in (
            Outcome.REGRESSED,
            Outcome.IMPROVED,
            Outcome.CHANGED,
        )
        if moved and not verdict.passed and evidence is not None:
            lines = self._localiser.of_change(
                measured, evidence.windows, key, tokenizer()
            )
            verdict = replace(verdict, where=lines)
        return self.keep(verdict, from_files)

    def _record(
        self,
        name: str,
        gate: MetricGate,
        measured: Measurement,
        recorded: Recorded | None,
        from_files: FromFiles | None,
    ) -> Verdict:
        if gate.metric not in measured.metrics:
            raise UsageError(no_metric(gate.key, gate.metric, measured.metrics))
        stem, _ = split_name(name)
        path = self.files.path(name)
        recording = Recording(
            file=str(path),
            checkpoint=split_name(name)[1],
            measurement=measured,
            base=None if stem in self.files.paths else name,
            fingerprint=self._fingerprint_to_record(name, from_files),
            # Weights that nobody has accepted do not take the recorded ones' place, and
            # where a gate holds them, accepting a number accepts no weights.
            keep_fingerprint=self.options.update == "new"
            or holds_fingerprint(self.files.entry(name).gates),
        )
        if recording not in self.outbox.recordings:
            self.outbox.recordings.append(recording)
        old = recorded.metrics.get(gate.metric) if recorded is not None else None
        value = measured.metrics[gate.metric]
        return Verdict(
            checkpoint=name,
            key=gate.key,
            metric=gate.metric,
            outcome=Outcome.RECORDED,
            passed=True,
            baseline=old,
            measured=value,
            change=None if old is None else relative_change(value, old),
            recorded_in=gate.recorded_in,
            windows=measured.windows,
            seconds=measured.seconds,
        )

    def _fingerprint_to_record(
        self, name: str, from_files: FromFiles | None
    ) -> Fingerprint | None:
        if from_files is None:
            return None
        try:
            return to_record(
                self.weights.fingerprint_of(from_files), from_files[0].spec
            )
        except CheckpointError as error:
            self._tell(f"{name}: recorded without a fingerprint: {error}")
            return None

    def _other_window(self, name: str, verdict: Verdict, key: Key) -> Verdict:
        """A window asked for in code differs from the recorded ones: say so."""
        windows = [
            other.window
            for other in map(Key.parse, self.files.entry(name).recorded)
            if (other.method, other.text, other.corpus)
            == (key.method, key.text, key.corpus)
        ]
        if not windows:
            return verdict
        return replace(
            verdict,
            outcome=Outcome.NOT_COMPARABLE,
            reasons=tuple(
                f"window {key.window}, baseline {window}" for window in windows
            ),
        )

    def keep(
        self, verdict: Verdict, files: FromFiles | None = None, *, loaded: bool = True
    ) -> Verdict:
        """Keep a verdict; one that did not pass says what differs in ``files``.

        Where the checkpoint was not even ``loaded`` nothing is known of its weights,
        and none is loaded on a cluster to say more of an error.
        """
        silent = verdict.passed or verdict.outcome is Outcome.MISSING
        if files is not None and verdict.outcome is Outcome.ERROR:
            silent = not self.weights.at_hand(files)
        if files is not None and not silent:
            moved = verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)
            changes = self.weights.changes(
                verdict.checkpoint,
                files,
                key=verdict.key,
                told=verdict.reasons,
                quiet=not moved or "/" not in verdict.key,
            )
            verdict = replace(verdict, changes=changes)
        if loaded and verdict.outcome is not Outcome.ERROR:
            self._gather_weights(verdict.checkpoint, files)
        self.outbox.verdicts.append(verdict)
        return verdict

    def _gather_weights(self, name: str, files: FromFiles | None) -> None:
        itself = files is None or files[0] == self.targets.get(name)
        # A result of the cache is no reason to load a model, nor is one of replicas
        # that are not there any more.
        load = self.resident == name or not itself
        self._gatherer.weights(name, files, load=load)

    # --------------------------------------------------------------------------- texts

    def _recorded_in(self, name: str, entry: CheckpointEntry, key: Key) -> str:
        """Where the baseline stands; empty where there is none."""
        place = f"recorded.{key}"
        return self.line(name, entry, place) if place in entry.lines else ""

    def line(self, name: str, entry: CheckpointEntry, place: str) -> str:
        """``FILE:LINE`` of a place of the entry."""
        shown = shown_path(self.files.path(name), self._start)
        return f"{shown}:{entry.lines[place]}"

    def command(
        self, name: str, nodeid: str, *, key: Key | None = None, other: str = ""
    ) -> str:
        """The command line that measures this again and records it.

        By a ``key`` that has a reference, with that. With ``other``, one that gives
        this further checkpoint and records nothing.
        """
        words = ["pytest", nodeid]
        reference = None if key is None else self._reference(name, key)
        for given in filter(None, (name, reference)):
            target = self.targets.get(given)
            if target is not None:
                recorded = self.files.names().get(given)
                spec = given if target.spec == recorded else f"{given}={target.spec}"
                words += ["--ppl-model", spec]
        words += ["--ppl-model", other] if other else []
        words += self.options.typed
        return shell_join(words if other else [*words, "--ppl-update"])


def check_metric(key: Key, metric: MetricName) -> None:
    """Refuse a metric that the key's method does not yield, before it is measured.

    What a task of lm-eval yields is known only then.

    Raises:
        UsageError: it does not, or there is no such method.
    """
    check_key(key)
    protocol = get_protocol(key.method)
    if not protocol.runs_task(key) and metric not in protocol.metrics:
        raise UsageError(no_metric(str(key), metric, protocol.metrics))


def usual_metric(key: Key, measured: Measurement | InvalidLossError) -> str:
    """What people quote first of a measurement.

    Of a task of lm-eval: ``acc_norm``, else ``acc``, else what lm-eval names first.
    """
    protocol = PROTOCOLS[key.method]
    if not protocol.runs_task(key):
        return protocol.metrics[0]
    return "acc_norm" if isinstance(measured, InvalidLossError) else measured.quoted


def _files_of_loaded(name: str, what: object, loaded: Loaded) -> FromFiles | None:
    """The files of what a test gave; None for a model."""
    if not isinstance(what, str | Path) or not loaded.from_files:
        return None
    return Target(name=name, spec=str(what)), lambda: loaded.model
