"""Windows x model -> negative log-likelihoods: the only place that runs the model.

The output head is applied to a few positions at a time, so that no
[window x vocabulary] tensor exists. That is exact only for models whose logits are the
head's output and nothing else; each model has to prove it on its first window, and the
full logits are used for one that does not (Gemma-2's soft-capping, Cohere's and
Granite's logit scales).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from msgspec import UNSET, UnsetType

from ..checkpoints import at_hand, is_out_of_memory
from ..errors import InvalidLossError, MeasurementError
from ..options import BATCH_AUTO
from ..protocols import windows_digest
from ..values import Window, WindowScore
from . import memory, models
from .batching import (
    BatchSize,
    Growth,
    Packing,
    batches,
    groups,
    reading_order,
    shared_context,
    take,
)
from .head import chunk_size, is_single_or_better, losses, nll
from .memory import OutOfMemory, compact_heap

Progress = Callable[[int, int, float], None]
"""Called with windows done, windows in all, and the mean NLL per token so far (0 before
the first, NaN where losses are not computed): once before anything is scored, then
after every batch."""


@runtime_checkable
class Speaking(Protocol):
    """A :data:`Progress` that also shows lines to whoever waits, while it is open."""

    def say(self, line: str) -> None:
        """Show a line now; from any thread."""


Stop = Callable[[Mapping[int, WindowScore]], bool]
"""Told of all scores so far, by the index of the window: whether they are enough."""


class Kept(Protocol):
    """Windows that are scored already, and somebody who keeps those that will be."""

    @property
    def finished(self) -> Mapping[int, WindowScore]:
        """Scores by the index of the window."""

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        """Told of every batch as soon as it is scored."""


_PROOF_POSITIONS = 128

_EQUAL_ONLY = (
    "only windows of equal length are read together: padding changes this model's "
    "losses (slower, same numbers)"
)

_NOTHING = WindowScore(0.0, 0)
"""Stands for windows that are none of a portion's."""

_TOO_MUCH = "a document's answers together are too much for its memory"

_clock = time.perf_counter


class Scorer:
    """Scores windows with one model.

    Args:
        model: a causal language model of transformers, or any module whose call with
            ``input_ids`` [batch x tokens] returns an object with ``logits``
            [batch x tokens x vocabulary].
        batch_size: how many windows the model reads at once; ``auto``: as many as
            memory allows and time gains by.
        progress: told how far it is.
        compile: run the model through torch.compile, but for answers of tasks, which
            all have other lengths.

    ``notices`` collects what the user should know, such as a fall-back.
    """

    device_name: str | None = None  # no other than the model's facts say

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        batch_size: BatchSize = 1,
        progress: Progress | None = None,
        compile: bool = False,
    ) -> None:
        self.notices: list[str] = []
        self._model = model
        self._batch_size = batch_size
        self._progress = progress
        self._compiler = models.Compiler() if compile else None
        self._head = models.output_head(model)
        self._body = models.body(model) if self._head is not None else None
        self._proven = False
        self._compiled_proven = False
        self._shares: bool | None = None
        self._together: bool | None = None
        self._packs: bool | None = None
        self._growth: Growth | None = None
        self._packed: tuple[int, int] | None = None  # lengths, shortest and longest
        # Positions may depend on all that was read before: nothing changes its place.
        self._rotates = models.rotates_by_length(model)

    def __call__(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
    ) -> list[WindowScore]:
        """Evidence of each window, in the order given; see :meth:`until`."""
        scores = self.until(windows, kept, answers=answers)
        return [scores[index] for index in range(len(windows))]

    def until(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
        order: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> dict[int, WindowScore]:
        """Evidence of windows by index: of all, or until ``stop`` says so.

        ``order`` is that in which windows are read, the text's where it is None;
        windows that are read together are near each other in it. ``stop`` is asked
        before the first batch and after every one; what is returned may hold windows
        that are later in the order, of an interrupted run.

        ``answers``: the windows are answers of a task. Those that share a context are
        read together, the context once, and each is told whether it is ``greedy``.

        Batches of a fixed size are cut from all windows, whatever is finished: each has
        the windows that it would have had without an interruption, and so their very
        bits.

        Raises:
            InvalidLossError: a loss is NaN or infinite, or a window scores nothing.
            MeasurementError: the model cannot read a window, or torch.compile fails.
            DeviceError: the device ran out of memory.
        """
        refuse_empty(windows, answers=answers)
        self._growth = None
        scores = {} if kept is None else dict(kept.finished)
        tell = Tally(len(windows), self._progress)
        tell(scores)
        with self.running():
            for batch, values in self._scored(windows, scores, order, stop, answers):
                new: dict[int, WindowScore] = {}
                try:
                    for index, value in zip(batch, values, strict=True):
                        new[index] = window_score(value, index, windows)
                except InvalidLossError as error:
                    tell_of_others(error, scores | new, windows)
                    raise
                known = scores.keys() & new
                scores |= new
                if kept is not None:
                    kept.add(new)
                tell({index: new[index] for index in new if index not in known})
        return scores

    def portion(
        self,
        cut: Sequence[Sequence[int]],
        windows: Sequence[Window],
        *,
        answers: bool = False,
    ) -> Iterator[dict[int, WindowScore]]:
        """Evidence of some batches, by index of the window, as each is scored.

        ``cut`` are batches as :func:`.batches` or :func:`.groups` makes them of all
        windows; with the batch size ``auto`` they only say which windows. Where a proof
        fell back, what follows depends on it: see :attr:`packs` and :func:`.proving`.

        Raises:
            InvalidLossError: a loss is NaN or infinite; ``finished`` holds the losses
                and tokens of the windows before it in its batch.
            MeasurementError: the model cannot read a window, or torch.compile fails.
            DeviceError: the device ran out of memory.
        """
        with self.running():
            for batch, values in self._of(cut, windows, answers):
                new: dict[int, WindowScore] = {}
                try:
                    for index, value in zip(batch, values, strict=True):
                        new[index] = window_score(value, index, windows)
                except InvalidLossError as error:
                    tell_of_others(error, new, windows)
                    raise
                yield new

    def prove(
        self,
        batch: Sequence[int],
        windows: Sequence[Window],
        *,
        answers: bool = False,
    ) -> None:
        """Prove what scoring a batch would prove; of one window no more is read.

        Raises:
            MeasurementError: the model cannot read a window, or torch.compile fails.
            DeviceError: the device ran out of memory.
        """
        if answers or len(batch) > 1:
            for _ in self.portion([batch], windows, answers=answers):
                continue
            return
        with self.running(), self.failing(batch, windows):
            self._prove_once(windows[batch[0]], self._compiler)

    @property
    def packs(self) -> bool:
        """Whether windows of different lengths may be read together."""
        return self._packs is not False

    def _of(
        self, cut: Sequence[Sequence[int]], windows: Sequence[Window], answers: bool
    ) -> Iterator[tuple[Sequence[int], list[Loss]]]:
        if not answers and self._batch_size == BATCH_AUTO:
            order = [index for batch in cut for index in batch]
            others = dict.fromkeys({*range(len(windows))}.difference(order), _NOTHING)
            yield from self._growing(windows, others, order, None)
            return
        for batch in cut:
            if answers:
                yield batch, self._score_answers(batch, windows)
            else:
                yield batch, [Loss(value) for value in self._score(batch, windows)]

    def _scored(
        self,
        windows: Sequence[Window],
        scores: Mapping[int, WindowScore],
        order: Sequence[int] | None,
        stop: Stop | None,
        answers: bool,
    ) -> Iterator[tuple[Sequence[int], list[Loss]]]:
        """Batches and their losses, until all are in ``scores`` or ``stop`` says so."""
        if not answers and self._batch_size == BATCH_AUTO:
            yield from self._growing(windows, scores, order, stop)
            return
        for batch in self._cut(windows, order, answers):
            if stop is not None and stop(scores):
                return
            if not scores.keys() >= set(batch):
                yield from self._of([batch], windows, answers)

    def _cut(
        self, windows: Sequence[Window], order: Sequence[int] | None, answers: bool
    ) -> Iterator[list[int]]:
        if answers:
            return groups(windows)
        assert self._batch_size != BATCH_AUTO
        return batches(windows, self._batch_size, order, self._packing)

    @property
    def _packing(self) -> Packing:
        if self._rotates:
            return "neighbours"
        return "equal" if self._packs is False else "padded"

    def _growing(
        self,
        windows: Sequence[Window],
        scores: Mapping[int, WindowScore],
        order: Sequence[int] | None,
        stop: Stop | None,
    ) -> Iterator[tuple[list[int], list[Loss]]]:
        """As :meth:`_scored`, in batches that grow, and shrink where memory ends."""
        device = models.device(self._model)
        lengths = [len(window.ids) for window in windows]
        pending = [
            i for i in reading_order(lengths, order, self._packing) if i not in scores
        ]
        if self._growth is None:
            self._growth = Growth(max(lengths, default=1))
        growth = self._growth
        a_token = 0.0  # bytes, by the batch that took most
        while pending and not (stop is not None and stop(scores)):
            left = pending.copy()
            about = growth.about(lengths[pending[0]])
            batch = take(pending, lengths, growth.fits, about, self._packing)
            longest = max(lengths[index] for index in batch)
            values, taken, started = None, 0, _clock()
            try:
                if growth.settled:
                    values = self._score(batch, windows)
                else:
                    with memory.watching_peak(device) as peak:
                        values = self._score(batch, windows)
                    taken = sum(peak)
            except OutOfMemory:
                if len(batch) == 1:
                    raise
            seconds = _clock() - started
            if values is None:  # outside of the except, whose error holds tensors
                memory.give_back(device)
                growth.failed(len(batch), longest)
                pending = left
                continue
            yield batch, [Loss(value) for value in values]
            if not growth.settled:
                tokens = len(batch) * longest
                a_token = max(a_token, taken / tokens)
                room = device.type != "cpu" or memory.has_room(int(a_token * tokens))
                growth.scored(tokens, seconds, room=room)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Gradients and dropout off, and memory that is given back, while it scores."""
        with (
            torch.no_grad(),
            _evaluating(self._model),
            compact_heap(models.device(self._model)),
        ):
            yield

    @property
    def head(self) -> torch.nn.Module | None:
        """What makes logits of :meth:`rows`; None where they are logits already."""
        return None if self._body is None else self._head

    def rows(
        self, batch: Sequence[int], windows: Sequence[Window]
    ) -> list[torch.Tensor]:
        """The model's output at the scored positions of each window of a batch.

        [scored x width] each, with memory of its own: final hidden states, or logits
        for a model that changes them behind its head. To be called :meth:`running`.

        Raises:
            MeasurementError: the model cannot read a window.
            DeviceError: the device ran out of memory.
        """
        chosen = [windows[index] for index in batch]
        with self.failing(batch, windows):
            if len(chosen) > 1 and self._together is None:
                self._prove_together(chosen)
            parts = [[window] for window in chosen]
            return [
                row[window.start : window.start + len(window.targets)].clone()
                for part in (parts if self._together is False else [chosen])
                for row, window in zip(self._run(part), part, strict=True)
            ]

    def _score(self, batch: Sequence[int], windows: Sequence[Window]) -> list[float]:
        chosen = [windows[index] for index in batch]
        with self.failing(batch, windows):
            if len(chosen) == 1:
                return self._nlls(chosen)
            if self._together is False:
                return [self._nlls([window])[0] for window in chosen]
            if len({len(window.ids) for window in chosen}) == 1:
                if self._together is None:
                    return self._prove_together(chosen)
                return self._nlls(chosen)
            if self._packs is False:
                return self._unpacked(chosen)
            if self._packs is None or self._is_new(chosen):
                return self._prove_packing(chosen)
            return self._nlls(chosen)

    def _nlls(self, windows: Sequence[Window]) -> list[float]:
        """Nats of each of some windows that are read at once."""
        return [part.sum().item() for part in self._each_nll(windows)]

    def _each_nll(self, windows: Sequence[Window]) -> Sequence[torch.Tensor]:
        """As :meth:`_nlls`, of each token: [scored] for each window, in float64."""
        rows = self._run(windows)
        width = rows.shape[1]
        counts = [len(window.targets) for window in windows]
        positions = _send(
            [
                number * width + window.start + offset
                for number, window in enumerate(windows)
                for offset in range(len(window.targets))
            ],
            rows.device,
        )
        targets = _send([t for window in windows for t in window.targets], rows.device)
        found = losses(rows.flatten(0, 1), positions, targets, self.head)
        # Once a batch: whoever asks an accelerator for a number waits for it.
        return torch.split(found.to("cpu").double(), counts)

    def _unpacked(self, windows: Sequence[Window]) -> list[float]:
        """As :meth:`_nlls`, those of each length apart."""
        by_length: dict[int, list[int]] = {}
        for number, window in enumerate(windows):
            by_length.setdefault(len(window.ids), []).append(number)
        found: dict[int, float] = {}
        for numbers in by_length.values():
            same = [windows[number] for number in numbers]
            if len(same) > 1 and self._together is None:
                values = self._prove_together(same)
            elif self._together is False:
                values = [self._nlls([window])[0] for window in same]
            else:
                values = self._nlls(same)
            found |= dict(zip(numbers, values, strict=True))
        return [found[number] for number in range(len(windows))]

    def _is_new(self, windows: Sequence[Window]) -> bool:
        """Whether padding was not proven for windows as short, or as long, as these.

        What a model sees of it may be lost in the losses of long windows.
        """
        assert self._packed is not None
        lengths = [len(window.ids) for window in windows]
        shortest, longest = self._packed
        return 2 * min(lengths) <= shortest or max(lengths) >= 2 * longest

    def _prove_together(self, windows: Sequence[Window]) -> list[float]:
        """Read windows of equal length at once only if that gives the same losses.

        It does not where a token's way depends on the others of the batch, as with
        experts that take so many tokens and no more.
        """
        together = self._each_nll(windows)
        found = [part.sum().item() for part in together]
        same = self._are_alone(together, windows, (0, len(windows) - 1))
        if same is None:
            return found  # the scoring itself reports the window
        self._together = same
        if same:
            return found
        if _EQUAL_ONLY in self.notices:  # not even those
            self.notices.remove(_EQUAL_ONLY)
        self.notices.append(
            "windows are read one by one: reading several at once changes this model's "
            "losses (slower, same numbers)"
        )
        return [self._nlls([window])[0] for window in windows]

    def _prove_packing(self, windows: Sequence[Window]) -> list[float]:
        """Pad windows only if that gives the losses of reading them alone.

        Of a batch, the windows with most and with least padding.
        """
        together = self._each_nll(windows)
        lengths = [len(window.ids) for window in windows]
        chosen = (lengths.index(min(lengths)), lengths.index(max(lengths)))
        same = self._are_alone(together, windows, chosen)
        if same is None:
            return self._unpacked(windows)  # the scoring itself reports the window
        if not same:
            self._packs = False
            self.notices.append(_EQUAL_ONLY)
            return self._unpacked(windows)
        known = (min(lengths), max(lengths)) if self._packed is None else self._packed
        self._packed = min(known[0], *lengths), max(known[1], *lengths)
        self._packs = True
        return [part.sum().item() for part in together]

    def _are_alone(
        self,
        together: Sequence[torch.Tensor],
        windows: Sequence[Window],
        chosen: Sequence[int],
    ) -> bool | None:
        """Whether chosen windows have the losses of reading each of them alone.

        None where those are not finite.
        """
        for number in chosen:
            alone = self._each_nll([windows[number]])[0]
            if not torch.isfinite(alone).all():
                return None
            if not self._are_same(together[number], alone):
                return False
        return True

    def _are_same(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether losses of tokens are apart by rounding only.

        By their sum, where rounding has random signs; and each, so that a change which
        the sum hides is seen.
        """
        apart = found - expected
        # Few tokens' rounding does not cancel out.
        allowed = self._rounding(2e-6) * max(expected.sum().item(), 32.0)
        return (
            abs(apart.sum().item()) <= allowed
            and apart.abs().sum().item() <= 10 * allowed
        )

    def _rounding(self, single_precision: float) -> float:
        """By what share losses may be apart that other shapes have rounded.

        Half precision rounds each product to 8 bits.
        """
        is_single = is_single_or_better(models.dtype(self._model))
        device = models.device(self._model)
        if is_single and not torch.is_autocast_enabled(device.type):
            return single_precision
        return 2e-2

    def _score_answers(
        self, group: Sequence[int], windows: Sequence[Window]
    ) -> list[Loss]:
        chosen = [windows[index] for index in group]
        shared = shared_context(chosen)
        with self.failing(group, windows, answers=True):
            if len({window.ids for window in chosen}) == 1 or not shared:
                return self._losses(self._each(chosen), chosen)
            if self._shares is None and models.rotates_by_length(self._model):
                self._read_alone("its rotary positions depend on the whole length")
            if self._shares is None:
                return self._prove_sharing(chosen, shared)
            if self._shares:
                try:
                    return self._losses(self._continued(chosen, shared), chosen)
                except (*models.OWN_ERRORS, MemoryError) as error:
                    self._read_alone(
                        _TOO_MUCH
                        if is_out_of_memory(error)
                        else f"its cache fails ({type(error).__name__})"
                    )
            return self._losses(self._each(chosen), chosen)

    def _losses(
        self, rows: Sequence[torch.Tensor], windows: Sequence[Window]
    ) -> list[Loss]:
        return [
            self._loss(row, window) for row, window in zip(rows, windows, strict=True)
        ]

    def _loss(self, rows: torch.Tensor, window: Window) -> Loss:
        """Of the targets; ``rows`` are those of the scored positions alone."""
        targets = torch.tensor(window.targets, device=rows.device)
        size = max(1, chunk_size(rows, self.head) // 2)
        sums, greedy = [], True
        with at_hand(self.head):
            for start in range(0, len(targets), size):
                logits = self.to_logits(rows[start : start + size])
                wanted = targets[start : start + size].to(logits.device)
                sums.append(nll(logits, wanted).sum().item())
                greedy = greedy and bool((logits.argmax(-1) == wanted).all())
        return Loss(math.fsum(sums), greedy)

    def _each(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Rows of the scored positions; what is read twice is read once."""
        read: dict[tuple[int, ...], torch.Tensor] = {}
        for window in windows:
            if window.ids not in read:
                read[window.ids] = self._run([window], compiled=False)[0]
        return [
            read[window.ids][window.start : window.start + len(window.targets)]
            for window in windows
        ]

    def _continued(self, windows: Sequence[Window], shared: int) -> list[torch.Tensor]:
        """As :meth:`_each`: the first ``shared`` ids once, then all that differs.

        What is shorter is filled up on the right, where nothing before it sees it.
        """
        model = self._model if self._body is None else self._body
        device = models.device(self._model)
        parts = list(dict.fromkeys(window.ids[shared:] for window in windows))
        longest = max(map(len, parts))
        context = torch.tensor([windows[0].ids[:shared]], device=device)
        cache = model(input_ids=context, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(parts))
        ids = torch.tensor(
            [part + part[-1:] * (longest - len(part)) for part in parts], device=device
        )
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        rows = output.logits if self._body is None else output.last_hidden_state
        return [
            rows[parts.index(window.ids[shared:])][
                window.start - shared : window.start - shared + len(window.targets)
            ]
            for window in windows
        ]

    def _prove_sharing(self, windows: Sequence[Window], shared: int) -> list[Loss]:
        """Read shared contexts once only if that gives the losses of reading alone."""
        alone = self._losses(self._each(windows), windows)
        if not all(math.isfinite(loss.nll) for loss in alone):
            return alone  # the scoring itself reports the window
        try:
            rows = self._continued(windows, shared)
        except (*models.OWN_ERRORS, MemoryError) as error:
            self._read_alone(
                _TOO_MUCH
                if is_out_of_memory(error)
                else f"it has no cache to go on from ({type(error).__name__})"
            )
            return alone
        together = self._losses(rows, windows)
        apart = math.fsum(
            abs(one.nll - other.nll) for one, other in zip(alone, together, strict=True)
        ) / max(math.fsum(loss.nll for loss in alone), 1e-12)
        if apart > self._rounding(1e-5):  # sums of few tokens
            self._read_alone("going on from its cache gives other losses")
            return alone
        self._shares = True
        return together

    def _read_alone(self, why: str) -> None:
        self._shares = False
        self.notices.append(
            f"each answer is read with its whole context: {why} (slower, same numbers)"
        )

    def to_logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some of what :meth:`rows` gave: [positions x vocabulary]."""
        return models.to_logits(rows, self.head)

    def _run(self, windows: Sequence[Window], *, compiled: bool = True) -> torch.Tensor:
        """Hidden states or logits of whole windows: [batch x tokens x width].

        What is shorter is filled up on the right, where nothing before it sees it.
        """
        device = models.device(self._model)
        compiler = self._compiler if compiled else None
        self._prove_once(windows[0], compiler)
        longest = max(len(window.ids) for window in windows)
        padded = [
            window.ids + window.ids[-1:] * (longest - len(window.ids))
            for window in windows
        ]
        return self._forward(_send(padded, device), compiler)

    def _prove_once(self, first: Window, compiler: models.Compiler | None) -> None:
        body = self._body is not None and not self._proven
        compiled = compiler is not None and not self._compiled_proven
        if body or compiled:
            ids = torch.tensor([first.ids], device=models.device(self._model))
            if body:
                self._prove(ids, first)
            if compiled:
                self._prove_compiled(ids, first)

    def _forward(
        self, ids: torch.Tensor, compiler: models.Compiler | None = None
    ) -> torch.Tensor:
        module = self._model if self._body is None else self._body
        read = models.logits if self._body is None else models.hidden
        if compiler is None:
            return read(module, ids)
        with compiler.failing():
            return read(module, ids, run=compiler(module))

    @contextmanager
    def failing(
        self,
        batch: Sequence[int],
        windows: Sequence[Window],
        *,
        answers: bool = False,
    ) -> Iterator[None]:
        """Say of an error in which window of a batch it was, and what to do."""
        length = max(len(windows[index].ids) for index in batch)
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    self._out_of_memory(error, batch, windows, length, answers)
                ) from error
            if not isinstance(error, models.OWN_ERRORS):
                raise
            raise MeasurementError(
                f"the model failed on {place(batch[0], windows)} "
                f"({length} tokens): {type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')}"
            ) from error

    def _out_of_memory(
        self,
        error: BaseException,
        batch: Sequence[int],
        windows: Sequence[Window],
        length: int,
        answers: bool,
    ) -> str:
        device = memory.full_device(error, models.device(self._model))
        dtype = str(models.dtype(self._model)).removeprefix("torch.")
        what = place(batch[0], windows, answers=answers)
        if len(batch) > 1:
            what = f"{len(batch)} {'answers' if answers else 'windows'} at once"
        missing = memory.shortage(error, device)
        ways = "a half-precision --ppl-dtype, a shorter window or another --ppl-device"
        if len(batch) > 1 and not answers:
            ways = (
                "--ppl-batch-size auto, which takes what fits, a half-precision "
                "--ppl-dtype or another --ppl-device"
            )
        return (
            f"out of memory on {device} at {what} ({length} tokens"
            f"{' each' if len(batch) > 1 else ''}, {dtype})"
            f"{': ' if missing else ''}{missing}; use {ways}"
        )

    def _prove(self, ids: torch.Tensor, window: Window) -> None:
        """Keep the chunked head only if it gives the model's own losses.

        Compared over evenly spread scored positions of the first window. The whole
        window runs through the model as its author wrote it; where the model can be
        told which logits to compute (``logits_to_keep``), only those are.
        """
        assert self._head is not None
        assert self._body is not None
        try:
            hidden = models.hidden(self._body, ids)[0]
            positions, targets = self._spread(hidden, window)
            hidden = hidden[positions]  # a copy: the others' memory is given back
            fast = losses(
                hidden, torch.arange(len(hidden), device=hidden.device), targets,
                self._head,
            ).to("cpu").double()  # fmt: skip
        except models.OWN_ERRORS as error:
            if is_out_of_memory(error):
                raise
            self._fall_back(f"its body cannot be run alone ({type(error).__name__})")
            return
        full = nll(models.logits(self._model, ids, positions), targets)
        if not torch.isfinite(full).all():
            return  # the scoring itself reports the window
        apart = (fast - full).abs().sum().item() / max(full.abs().sum().item(), 1e-12)
        # Rounding of the head's products, summed with random sign, stays far below;
        # half precision rounds each logit to 8 bits and more.
        allowed = 2e-6 if is_single_or_better(hidden.dtype) else 2e-3
        if apart > allowed:
            self._fall_back("it changes the logits behind the output head")
            return
        if not self._head_reads_rows_apart(hidden, targets, fast, allowed):
            self._fall_back("its output head looks at several positions at once")
            return
        self._proven = True

    def _head_reads_rows_apart(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        found: torch.Tensor,
        allowed: float,
    ) -> bool:
        """Whether single positions have the losses that they have among others.

        Not so in a head that quantises what it reads by the largest number in it: that
        may happen to be among the positions of the first window that are compared.
        """
        if type(self._head) is torch.nn.Linear:
            return True
        some = torch.linspace(0, len(targets) - 1, min(len(targets), 8)).long()
        alone = torch.cat(
            [
                losses(hidden, one[None], targets[one][None], self._head)
                for one in some.to(hidden.device)
            ]
        )
        expected = found[some]
        apart = (alone.to("cpu").double() - expected).abs().sum().item()
        return apart <= allowed * max(expected.abs().sum().item(), 32.0)

    def _spread(
        self, rows: torch.Tensor, window: Window
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some scored positions of a window, evenly spread, and their targets."""
        room = max(1, chunk_size(rows, self.head) // 2)  # two kinds of logits at once
        count = min(len(window.targets), _PROOF_POSITIONS, room)
        spread = torch.linspace(0, len(window.targets) - 1, count).long()
        targets = torch.tensor(window.targets)[spread].to(rows.device)
        return (spread + window.start).to(rows.device), targets

    def _prove_compiled(self, ids: torch.Tensor, window: Window) -> None:
        """Compare some losses of the compiled model with those of the model itself.

        Raises:
            MeasurementError: they are apart by more than rounding.
        """
        both = []
        for compiler in (None, self._compiler):
            rows = self._forward(ids, compiler)[0]
            positions, targets = self._spread(rows, window)
            found = losses(rows, positions, targets, self.head)
            both.append(found.to("cpu").double())
        itself, compiled = both
        if not torch.isfinite(itself).all():
            return  # the scoring itself reports the window
        if not self._are_same(compiled, itself):
            raise MeasurementError(
                "torch.compile changes this model's losses, from "
                f"{itself.sum().item():.6g} to {compiled.sum().item():.6g} nats over "
                f"{len(targets)} tokens: leave --ppl-compile out"
            )
        self._compiled_proven = True

    def _fall_back(self, why: str) -> None:
        self._body = None
        self.notices.append(
            f"full logits are computed for this model: {why} (slower, more memory, "
            "same numbers)"
        )


class Loss(NamedTuple):
    """Of one window: nats, and whether its targets are the greedy choice."""

    nll: float
    greedy: bool | UnsetType = UNSET


class Tally:
    """Sums up for whoever watches: windows in all, and who is told."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done, self._nll, self._scored = 0, 0.0, 0

    def __call__(self, scores: Mapping[int, WindowScore]) -> None:
        """Tell of more windows."""
        self._done += len(scores)
        self._nll += math.fsum(score.nll_sum for score in scores.values())
        self._scored += sum(score.scored for score in scores.values())
        if self._progress is not None:
            mean = self._nll / self._scored if self._scored else 0.0
            self._progress(self._done, self._total, mean)


def refuse_empty(windows: Sequence[Window], *, answers: bool = False) -> None:
    """Refuse windows that score nothing: their mean would be NaN.

    Raises:
        InvalidLossError: there is one.
    """
    for index, window in enumerate(windows):
        if not window.targets:
            raise InvalidLossError.at(
                index, f"{place(index, windows, answers=answers)} scores no token"
            )


def tell_of_others(
    error: InvalidLossError,
    scores: Mapping[int, WindowScore],
    windows: Sequence[Window],
) -> None:
    """Have an invalid loss say which windows were fine, for reports."""
    assert error.window is not None
    error.scored = len(windows[error.window].targets)
    error.finished = {i: (one.nll_sum, one.scored) for i, one in scores.items()}
    error.windows = len(windows)
    error.windows_digest = windows_digest(windows)


def window_score(loss: Loss, index: int, windows: Sequence[Window]) -> WindowScore:
    """The evidence of a window.

    Raises:
        InvalidLossError: its loss is NaN or infinite.
    """
    if not math.isfinite(loss.nll):
        where = place(index, windows, answers=loss.greedy is not UNSET)
        raise InvalidLossError.at(index, f"the loss of {where} is {loss.nll}")
    window = windows[index]
    return WindowScore(loss.nll, len(window.targets), window.page, greedy=loss.greedy)


def _send(
    ids: Sequence[int] | Sequence[tuple[int, ...]], device: torch.device
) -> torch.Tensor:
    """Integers on a device, without waiting for what it is doing."""
    tensor = torch.tensor(ids)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def place(index: int, windows: Sequence[Window], *, answers: bool = False) -> str:
    """``window 3 of 11 (page 2)``, for messages; an answer is on no page."""
    if answers:
        return f"answer {index + 1} of {len(windows)}"
    page = windows[index].page
    return f"window {index + 1} of {len(windows)}" + (
        "" if page is None else f" (page {page + 1})"
    )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, and every module back to how it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
