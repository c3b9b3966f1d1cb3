"""Windows x model -> negative log-likelihoods: the only place that runs the model.

The output head is applied to a few positions at a time, so that no
[window x vocabulary] tensor exists. That is exact only for models whose logits are the
head's output and nothing else; each model has to prove it on its first window, and the
full logits are used for one that does not (Gemma-2's soft-capping, Cohere's and
Granite's logit scales).
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from msgspec import UNSET, UnsetType

from .errors import DeviceError, InvalidLossError, MeasurementError
from .values import Window, WindowScore

Progress = Callable[[int, int, float], None]
"""Called with windows done, windows in all, and the mean NLL per token so far (0 before
the first, NaN where losses are not computed): once before anything is scored, then
after every batch."""


Stop = Callable[[Mapping[int, WindowScore]], bool]
"""Told of all scores so far, by the index of the window: whether they are enough."""


class Kept(Protocol):
    """Windows that are scored already, and somebody who keeps those that will be."""

    @property
    def finished(self) -> Mapping[int, WindowScore]:
        """Scores by the index of the window."""

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        """Told of every batch as soon as it is scored."""


_CHUNK_ELEMENTS = {"cpu": 2**22, "accelerator": 2**25}
"""Logits that exist at once: 16 MB in float32 on a CPU, 128 MB on an accelerator."""

_PROOF_POSITIONS = 128

_NO_CACHE = (
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What models raise that cannot go on from a context that they have read."""

_TOO_MUCH = "a document's answers together are too much for its memory"

# Of glibc's malloc.h, and sizes in bytes.
_M_MMAP_THRESHOLD, _MAPPED_FROM, _ADAPTED_TO = -3, 2**20, 2**25


class Scorer:
    """Scores windows with one model.

    Args:
        model: a causal language model of transformers, or any module whose call with
            ``input_ids`` [batch x tokens] returns an object with ``logits``
            [batch x tokens x vocabulary].
        batch_size: how many windows of equal length the model reads at once.
        progress: told how far it is.

    ``notices`` collects what the user should know, such as a fall-back.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.notices: list[str] = []
        self._model = model
        self._batch_size = batch_size
        self._progress = progress
        self._head = _output_head(model)
        self._body = _body(model) if self._head is not None else None
        self._proven = False
        self._shares: bool | None = None

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

        ``order`` is that in which windows are read, the text's where it is None.
        ``stop`` is asked before the first batch and after every one; what is returned
        may hold windows that are later in the order, of an interrupted run.

        ``answers``: the windows are answers of a task. Those that share a context are
        read together, the context once, and each is told whether it is ``greedy``.

        Batches are cut from all windows, whatever is finished: each has the windows
        that it would have had without an interruption, and so their very bits.

        Raises:
            InvalidLossError: a loss is NaN or infinite, or a window scores nothing.
            MeasurementError: the model cannot read a window.
            DeviceError: the device ran out of memory.
        """
        for index, window in enumerate(windows):
            if not window.targets:
                raise InvalidLossError.at(
                    index, f"{place(index, windows, answers=answers)} scores no token"
                )
        scores = {} if kept is None else dict(kept.finished)
        tell = _Tally(len(windows), self._progress)
        tell(scores)
        with self.running():
            cut = (
                groups(windows)
                if answers
                else batches(windows, self._batch_size, order)
            )
            for batch in cut:
                if stop is not None and stop(scores):
                    break
                if scores.keys() >= set(batch):
                    continue
                values = (
                    self._score_answers(batch, windows)
                    if answers
                    else [_Loss(value) for value in self._score(batch, windows)]
                )
                new = {
                    index: _window_score(value, index, windows)
                    for index, value in zip(batch, values, strict=True)
                }
                scores |= new
                if kept is not None:
                    kept.add(new)
                tell(new)
        return scores

    @contextmanager
    def running(self) -> Iterator[None]:
        """Gradients and dropout off, and memory that is given back, while it scores."""
        with (
            torch.no_grad(),
            _evaluating(self._model),
            _compact_heap(_device(self._model)),
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
            return [
                row[window.start : window.start + len(window.targets)].clone()
                for row, window in zip(self._run(chosen), chosen, strict=True)
            ]

    def _score(self, batch: Sequence[int], windows: Sequence[Window]) -> list[float]:
        chosen = [windows[index] for index in batch]
        with self.failing(batch, windows):
            rows = self._run(chosen)
            return [
                math.fsum(
                    nll(self.to_logits(row[positions]), targets).sum().item()
                    for positions, targets in self._chunks(row, window)
                )
                for row, window in zip(rows, chosen, strict=True)
            ]

    def _score_answers(
        self, group: Sequence[int], windows: Sequence[Window]
    ) -> list[_Loss]:
        chosen = [windows[index] for index in group]
        shared = shared_context(chosen)
        with self.failing(group, windows):
            if len({window.ids for window in chosen}) == 1 or not shared:
                return self._losses(self._each(chosen), chosen)
            if self._shares is None and _rotates_by_length(self._model):
                self._read_alone("its rotary positions depend on the whole length")
            if self._shares is None:
                return self._prove_sharing(chosen, shared)
            if self._shares:
                try:
                    return self._losses(self._continued(chosen, shared), chosen)
                except torch.OutOfMemoryError:
                    self._read_alone(_TOO_MUCH)
                except _NO_CACHE as error:
                    self._read_alone(f"its cache fails ({type(error).__name__})")
            return self._losses(self._each(chosen), chosen)

    def _losses(
        self, rows: Sequence[torch.Tensor], windows: Sequence[Window]
    ) -> list[_Loss]:
        return [
            self._loss(row, window) for row, window in zip(rows, windows, strict=True)
        ]

    def _loss(self, rows: torch.Tensor, window: Window) -> _Loss:
        """Of the targets; ``rows`` are those of the scored positions alone."""
        targets = torch.tensor(window.targets, device=rows.device)
        size = chunk_size(rows, self.head)
        sums, greedy = [], True
        for start in range(0, len(targets), size):
            wanted = targets[start : start + size]
            logits = self.to_logits(rows[start : start + size])
            sums.append(nll(logits, wanted).sum().item())
            greedy = greedy and bool((logits.argmax(-1) == wanted).all())
        return _Loss(math.fsum(sums), greedy)

    def _each(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Rows of the scored positions; what is read twice is read once."""
        read: dict[tuple[int, ...], torch.Tensor] = {}
        for window in windows:
            if window.ids not in read:
                read[window.ids] = self._run([window])[0]
        return [
            read[window.ids][window.start : window.start + len(window.targets)]
            for window in windows
        ]

    def _continued(self, windows: Sequence[Window], shared: int) -> list[torch.Tensor]:
        """As :meth:`_each`: the first ``shared`` ids once, then all that differs.

        What is shorter is filled up on the right, where nothing before it sees it.
        """
        model = self._model if self._body is None else self._body
        device = _device(self._model)
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

    def _prove_sharing(self, windows: Sequence[Window], shared: int) -> list[_Loss]:
        """Read shared contexts once only if that gives the losses of reading alone."""
        alone = self._losses(self._each(windows), windows)
        if not all(math.isfinite(loss.nll) for loss in alone):
            return alone  # the scoring itself reports the window
        try:
            rows = self._continued(windows, shared)
        except torch.OutOfMemoryError:
            self._read_alone(_TOO_MUCH)
            return alone
        except _NO_CACHE as error:
            self._read_alone(f"it has no cache to go on from ({type(error).__name__})")
            return alone
        together = self._losses(rows, windows)
        apart = math.fsum(
            abs(one.nll - other.nll) for one, other in zip(alone, together, strict=True)
        ) / max(math.fsum(loss.nll for loss in alone), 1e-12)
        # Other shapes are rounded otherwise, in half precision to 8 bits a product.
        if apart > (1e-5 if _is_single_or_better(rows[0].dtype) else 2e-2):
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
        return rows if self.head is None else self.head(rows)

    def _run(self, windows: Sequence[Window]) -> torch.Tensor:
        """Hidden states or logits of whole windows: [batch x tokens x width]."""
        ids = torch.tensor([w.ids for w in windows], device=_device(self._model))
        if self._body is not None and not self._proven:
            self._prove(ids[:1], windows[0])
        if self._body is None:
            return _logits(self._model, ids)
        return _hidden(self._body, ids)

    @contextmanager
    def failing(
        self, batch: Sequence[int], windows: Sequence[Window]
    ) -> Iterator[None]:
        """Say of an error in which window of a batch it was, and what to do."""
        length = len(windows[batch[0]].ids)
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"out of memory on {_device(self._model)} at windows of "
                f"{length} tokens, batch size {len(batch)}: use a "
                "smaller --ppl-batch-size, a half-precision --ppl-dtype or another "
                "--ppl-device"
            ) from error
        except (IndexError, RuntimeError, ValueError) as error:
            raise MeasurementError(
                f"the model failed on {place(batch[0], windows)} "
                f"({length} tokens): {type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')}"
            ) from error

    def _chunks(
        self, row: torch.Tensor, window: Window
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        targets = torch.tensor(window.targets, device=row.device)
        size = chunk_size(row, self._head)
        for start in range(0, len(targets), size):
            chunk = targets[start : start + size]
            first = window.start + start
            yield slice(first, first + len(chunk)), chunk

    def _prove(self, ids: torch.Tensor, window: Window) -> None:
        """Keep the chunked head only if it gives the model's own losses.

        Compared over evenly spread scored positions of the first window. The whole
        window runs through the model as its author wrote it; where the model can be
        told which logits to compute (``logits_to_keep``), only those are.
        """
        assert self._head is not None
        assert self._body is not None
        try:
            hidden = _hidden(self._body, ids)[0]
            count = min(
                len(window.targets), _PROOF_POSITIONS, chunk_size(hidden, self._head)
            )
            spread = torch.linspace(0, len(window.targets) - 1, count).long()
            targets = torch.tensor(window.targets)[spread].to(ids.device)
            positions = (spread + window.start).to(ids.device)
            hidden = hidden[positions]  # a copy: the others' memory is given back
            fast = nll(self._head(hidden), targets)
        except (AttributeError, TypeError, RuntimeError) as error:
            self._fall_back(f"its body cannot be run alone ({type(error).__name__})")
            return
        full = nll(_logits(self._model, ids, positions), targets)
        if not torch.isfinite(full).all():
            return  # the scoring itself reports the window
        apart = (fast - full).abs().sum().item() / max(full.abs().sum().item(), 1e-12)
        # Rounding of the head's products, summed with random sign, stays far below;
        # half precision rounds each logit to 8 bits and more.
        allowed = 2e-6 if _is_single_or_better(hidden.dtype) else 2e-3
        if apart > allowed:
            self._fall_back("it changes the logits behind the output head")
            return
        self._proven = True

    def _fall_back(self, why: str) -> None:
        self._body = None
        self.notices.append(
            f"full logits are computed for this model: {why} (slower, more memory, "
            "same numbers)"
        )


class _Loss(NamedTuple):
    """Of one window: nats, and whether its targets are the greedy choice."""

    nll: float
    greedy: bool | UnsetType = UNSET


class _Tally:
    """Sums up for whoever watches."""

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


def chunk_size(rows: torch.Tensor, head: torch.nn.Module | None) -> int:
    """How many positions' logits may exist at once. Without head, rows are logits."""
    kind = "cpu" if rows.device.type == "cpu" else "accelerator"
    weight = getattr(head, "weight", None)
    vocabulary = int(rows.shape[-1] if weight is None else weight.shape[0])
    return max(1, _CHUNK_ELEMENTS[kind] // vocabulary)


def _window_score(loss: _Loss, index: int, windows: Sequence[Window]) -> WindowScore:
    if not math.isfinite(loss.nll):
        where = place(index, windows, answers=loss.greedy is not UNSET)
        raise InvalidLossError.at(index, f"the loss of {where} is {loss.nll}")
    window = windows[index]
    return WindowScore(loss.nll, len(window.targets), window.page, greedy=loss.greedy)


def nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] of each position, in float64 [positions].

    Both originals call the kernel behind ``cross_entropy``. In float32 it sums a large
    vocabulary's exponentials a little low (7e-6 nat a token at 49,152 words, measured
    against float64); a better sum would be apart from them by more than rounding.
    """
    if not _is_single_or_better(logits.dtype):
        logits = logits.float()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses.to("cpu").double()


def _hidden(body: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    output = body(input_ids=ids, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _logits(
    model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of ``ids``: [batch x tokens x vocabulary]; of some positions: [n x v]."""
    options: dict[str, Any] = {}
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        options["use_cache"] = False
    keep = positions is not None and "logits_to_keep" in accepted
    if keep:
        options["logits_to_keep"] = positions
    logits: torch.Tensor = model(input_ids=ids, **options).logits
    if positions is None:
        return logits
    return logits[0] if keep else logits[0, positions]


def _output_head(model: torch.nn.Module) -> torch.nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return head if isinstance(head, torch.nn.Module) else None


def _body(model: torch.nn.Module) -> torch.nn.Module | None:
    body = getattr(model, "base_model", None)
    return body if isinstance(body, torch.nn.Module) and body is not model else None


def _device(model: torch.nn.Module) -> torch.device:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    source = embeddings if isinstance(embeddings, torch.nn.Module) else model
    first = next(itertools.chain(source.parameters(), model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def _rotates_by_length(model: torch.nn.Module) -> bool:
    """Whether a longer input turns its first tokens otherwise, too.

    Of transformers' rotary embeddings ``longrope`` (Phi-3 with 128k) takes other
    factors beyond a length and ``dynamic`` another base. What is read of a short
    context is not what a longer input has there, and a proof on a short one shows none
    of it.
    """
    types: set[str] = set()
    for module in model.modules():
        kind = getattr(module, "rope_type", None)  # a layer type's each, or one
        types |= {*kind.values()} if isinstance(kind, dict) else {str(kind)}
    return any(kind == "longrope" or "dynamic" in kind for kind in types)


def _is_single_or_better(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64)


def place(index: int, windows: Sequence[Window], *, answers: bool = False) -> str:
    """``window 3 of 11 (page 2)``, for messages; an answer is on no page."""
    if answers:
        return f"answer {index + 1} of {len(windows)}"
    page = windows[index].page
    return f"window {index + 1} of {len(windows)}" + (
        "" if page is None else f" (page {page + 1})"
    )


def batches(
    windows: Sequence[Window], size: int, order: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices of windows of equal length, at most ``size`` together."""
    indices = range(len(windows)) if order is None else order
    if size == 1:
        yield from ([index] for index in indices)
        return
    by_length: dict[int, list[int]] = {}
    for index in indices:
        by_length.setdefault(len(windows[index].ids), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def groups(windows: Sequence[Window]) -> Iterator[list[int]]:
    """Indices of neighbours of one page that share at least half of their contexts."""
    group: list[int] = []
    for index, window in enumerate(windows):
        if group:
            members = [*(windows[i] for i in group), window]
            longest = max(member.start for member in members)
            shared = shared_context(members)
            # Windows of a whole text share nothing, and there are as many as it wants.
            if (
                windows[group[0]].page != window.page
                or not shared
                or 2 * shared < longest
            ):
                yield group
                group = []
        group.append(index)
    if group:
        yield group


def shared_context(windows: Sequence[Window]) -> int:
    """How many of their first ids windows share, up to the first scored position."""
    shared = min(window.start for window in windows)
    first = windows[0].ids
    for window in windows[1:]:
        if window.ids[:shared] != first[:shared]:
            pairs = zip(first, window.ids, strict=False)
            shared = next(i for i, (a, b) in enumerate(pairs) if a != b)
    return shared


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


@contextmanager
def _compact_heap(device: torch.device) -> Iterator[None]:
    """Have glibc map large activations one by one, and unmap them when freed.

    Once a program has freed a large block, glibc takes blocks of up to 32 MiB from its
    heap, where activations of different sizes leave holes: about twice the memory that
    a model's layers hold at a time. Not where the user has tuned malloc.
    """
    tuned = {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if device.type != "cpu" or tuned or platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    try:
        yield
    finally:
        # What glibc itself adapts to in a program that frees large blocks.
        mallopt(_M_MMAP_THRESHOLD, _ADAPTED_TO)
