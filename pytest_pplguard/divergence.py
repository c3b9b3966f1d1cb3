"""Two models over the same windows, one after the other -> their KL divergence.

The reference runs first. What its output head reads, the final hidden states of the
scored positions, goes into a temporary file; the head stays in memory, and the rest of
the model may go. While the second model runs, the logits of both are made a few
positions at a time. That says as much as the reference's log-probabilities, in a
fiftieth of the space. Of a model whose logits are not its head's output (see
:mod:`.scoring`) the logits themselves are kept.

The file is bounded: windows that do not fit are left for another round.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from msgspec import Struct

from .checkpoints import at_hand
from .errors import InvalidLossError, MeasurementError
from .scoring import Progress, Scorer, batches, chunk_size, nll, place, to_logits
from .values import Window, WindowScore

BUFFER_BYTES = 8_000_000_000
"""The temporary file is no larger, and takes no more than half of what is free."""

_AT_ONCE = 8
"""Tensors of a chunk's logits that exist at once, as many float32 ones: the logits of
both models, and in float64 their log-probabilities and a product."""


class Reference:
    """What a reference model said about the windows ``start`` to ``stop``.

    Holds a temporary file, which is gone when this is closed or forgotten, or the
    process ends. ``windows_digest`` is that of all windows, ``dtype`` the model's.
    """

    def __init__(
        self, name: str, *, windows_digest: str, dtype: str, start: int
    ) -> None:
        self.name = name
        self.windows_digest = windows_digest
        self.dtype = dtype
        self.start = self.stop = start
        self._head: torch.nn.Module | None = None
        self._shape = torch.Size()
        self._dtype = torch.float32
        self._device = torch.device("cpu")
        with _on_disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, rows: torch.Tensor) -> None:
        """Keep the output for the next window: [scored x width], alike for all."""
        self._shape, self._dtype, self._device = rows.shape, rows.dtype, rows.device
        with _on_disk():
            self._file.write(_bytes(rows.to("cpu").contiguous()))
        self.stop += 1

    def finish(self, head: torch.nn.Module | None) -> None:
        """All is kept; ``head`` makes logits of it, None where they are logits."""
        self._head = head
        with _on_disk():
            self._file.flush()

    def rows(self, index: int) -> torch.Tensor:
        """The output for the window ``index`` of all."""
        rows = torch.empty(self._shape, dtype=self._dtype)
        with _on_disk():
            self._file.seek((index - self.start) * rows.nbytes)
            if self._file.readinto(_bytes(rows)) != rows.nbytes:
                raise OSError("it was cut short")
        return rows.to(self._device)

    def to_logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some rows: [positions x vocabulary]."""
        return to_logits(rows, self._head)

    def at_hand(self) -> AbstractContextManager[None]:
        """Inside, :meth:`to_logits` need not bring an offloaded head every time."""
        return at_hand(self._head)

    def chunk_size(self, rows: torch.Tensor) -> int:
        """How many positions' logits may exist at once."""
        return chunk_size(rows, self._head)

    def close(self) -> None:
        """Give disk and memory back."""
        self._file.close()
        self._head = None


def listen(
    scorer: Scorer,
    windows: Sequence[Window],
    *,
    name: str,
    windows_digest: str,
    dtype: str,
    start: int = 0,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Reference:
    """Run the reference called ``name`` over as many windows as fit, from ``start``.

    All windows have one length. Batches are cut as from the first window, so that each
    gives the very bits that it would give in a single round.

    Raises:
        InvalidLossError: its output is not a number.
        MeasurementError: it cannot read a window, or the disk is full.
        DeviceError: the device ran out of memory.
    """
    tell = progress or (lambda done, total, mean: None)
    left = [batch for batch in batches(windows, batch_size) if batch[0] >= start]
    reference = Reference(name, windows_digest=windows_digest, dtype=dtype, start=start)
    try:
        with scorer.running():
            first = scorer.rows(left[0], windows)
            fit = max(1, _room() // sum(rows.nbytes for rows in first))
            chosen = left[:fit]
            total = sum(map(len, chosen))
            tell(0, total, 0.0)
            for batch in chosen:
                outputs = first if batch is left[0] else scorer.rows(batch, windows)
                for index, rows in zip(batch, outputs, strict=True):
                    _refuse_nan(rows, name, index, windows)
                    reference.add(rows)
                tell(reference.stop - start, total, math.nan)
        reference.finish(scorer.head)
    except BaseException:
        reference.close()
        raise
    return reference


def compare(
    scorer: Scorer,
    windows: Sequence[Window],
    reference: Reference,
    *,
    name: str,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> list[WindowScore]:
    """Run the model called ``name`` over the windows that the reference has read.

    Raises:
        InvalidLossError: a loss or a divergence is not finite.
        MeasurementError: the vocabularies differ, or the model cannot read a window.
        DeviceError: the device ran out of memory.
    """
    tell = progress or (lambda done, total, mean: None)
    span = range(reference.start, reference.stop)
    chosen = [batch for batch in batches(windows, batch_size) if batch[0] in span]
    scores: list[WindowScore] = []
    tell(0, len(span), 0.0)
    with scorer.running():
        for batch in chosen:
            outputs = scorer.rows(batch, windows)
            for index, rows in zip(batch, outputs, strict=True):
                known = reference.rows(index)
                scores.append(
                    _score(index, windows, rows, known, (scorer, name), reference)
                )
            losses = math.fsum(score.nll_sum for score in scores)
            tell(len(scores), len(span), losses / sum(score.scored for score in scores))
    return scores


class Beside:
    """A reference that is in memory beside the model, and leaves nothing on disk."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self.scorer = scorer

    def to_logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some rows: [positions x vocabulary]."""
        return self.scorer.to_logits(rows)

    def at_hand(self) -> AbstractContextManager[None]:
        """As of :class:`Reference`."""
        return at_hand(self.scorer.head)

    def chunk_size(self, rows: torch.Tensor) -> int:
        """How many positions' logits may exist at once."""
        return chunk_size(rows, self.scorer.head)


def compare_beside(
    scorer: Scorer,
    windows: Sequence[Window],
    reference: Beside,
    batch: Sequence[int],
    *,
    name: str,
) -> dict[int, WindowScore]:
    """As :func:`compare`, of one batch that both models read now.

    Raises:
        InvalidLossError: an output, a loss or a divergence is not finite.
        MeasurementError: the vocabularies differ, or a model cannot read a window.
        DeviceError: the device ran out of memory.
    """
    scores = {}
    with reference.scorer.running(), scorer.running():
        heard = reference.scorer.rows(batch, windows)
        for index, known in zip(batch, heard, strict=True):
            _refuse_nan(known, reference.name, index, windows)
        outputs = scorer.rows(batch, windows)
        for index, rows, known in zip(batch, outputs, heard, strict=True):
            scores[index] = _score(
                index, windows, rows, known, (scorer, name), reference
            )
    return scores


def _refuse_nan(
    rows: torch.Tensor, name: str, index: int, windows: Sequence[Window]
) -> None:
    if rows.isnan().any():
        raise InvalidLossError(
            f"the output of the reference {name} for {place(index, windows)} is nan"
        )


def _score(
    index: int,
    windows: Sequence[Window],
    rows: torch.Tensor,
    known: torch.Tensor,
    model: tuple[Scorer, str],
    reference: Reference | Beside,
) -> WindowScore:
    window = windows[index]
    with model[0].failing([index], windows):
        sums = _compare(rows, known, window, model, reference)
    _check(sums, place(index, windows), reference.name)
    return WindowScore(
        nll_sum=sums.nll,
        scored=len(window.targets),
        page=window.page,
        kl_sum=sums.kl,
        top1=sums.top1,
        reference_nll=sums.reference_nll,
    )


class _Sums(Struct):
    """Over one window: nats, and positions with the same first choice."""

    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    top1: int = 0


def _compare(
    rows: torch.Tensor,
    known: torch.Tensor,
    window: Window,
    model: tuple[Scorer, str],
    reference: Reference | Beside,
) -> _Sums:
    """Logits of a model's ``rows`` and a reference's ``known``, chunk by chunk."""
    scorer, name = model
    targets = torch.tensor(window.targets, device=rows.device)
    least = min(chunk_size(rows, scorer.head), reference.chunk_size(known))
    size = max(1, least // _AT_ONCE)
    parts: list[_Sums] = []
    with at_hand(scorer.head), reference.at_hand():
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = scorer.to_logits(rows[part])
            theirs = reference.to_logits(known[part]).to(logits.device)
            if logits.shape != theirs.shape:
                raise MeasurementError(
                    f"{name} has logits for {logits.shape[-1]} tokens and the "
                    f"reference {reference.name} for {theirs.shape[-1]}: a divergence "
                    "needs one vocabulary"
                )
            parts.append(
                _Sums(
                    nll=nll(logits, targets[part]).sum().item(),
                    reference_nll=nll(theirs, targets[part]).sum().item(),
                    kl=kl_divergence(theirs, logits).sum().item(),
                    top1=int((theirs.argmax(-1) == logits.argmax(-1)).sum()),
                )
            )
    return _Sums(
        nll=math.fsum(sums.nll for sums in parts),
        reference_nll=math.fsum(sums.reference_nll for sums in parts),
        kl=math.fsum(sums.kl for sums in parts),
        top1=sum(sums.top1 for sums in parts),
    )


def kl_divergence(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """KL(P_reference || P_model) of each position, in nats, from logits [n x words].

    In float64, or float32 on a device that has no other. A token that the reference
    rules out (a logit of -inf) adds nothing, whatever the model says.
    """
    wide = torch.float32 if model.device.type == "mps" else torch.float64
    theirs = torch.log_softmax(reference.to(wide), dim=-1)
    terms = theirs - torch.log_softmax(model.to(wide), dim=-1)
    # exp(-inf) * (-inf - x) is not a number; its limit is 0.
    terms.masked_fill_(theirs == -math.inf, 0.0)
    # No divergence is negative; that of nearly equal ones may be rounded to be.
    return terms.mul_(theirs.exp_()).sum(dim=-1).clamp_(min=0.0)


def _check(sums: _Sums, where: str, reference: str) -> None:
    if not math.isfinite(sums.nll):
        raise InvalidLossError(f"the loss of {where} is {sums.nll}")
    if not math.isfinite(sums.reference_nll):
        raise InvalidLossError(
            f"the loss of the reference {reference} for {where} is {sums.reference_nll}"
        )
    if not math.isfinite(sums.kl):
        raise InvalidLossError(
            f"the divergence from {reference} of {where} is {sums.kl}: the model gives "
            "no probability at all to a token that the reference does not rule out"
        )


def _bytes(rows: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, whatever its dtype."""
    return rows.view(torch.uint8).numpy().data.cast("B")


def _room() -> int:
    """Bytes that the temporary file may take."""
    with _on_disk():
        return min(BUFFER_BYTES, shutil.disk_usage(tempfile.gettempdir()).free // 2)


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeasurementError(
            "what the reference says cannot be kept in a temporary file: "
            f"{error.strerror or error}: make room, or set TMPDIR to a folder with "
            f"room for {BUFFER_BYTES / 1e9:g} GB"
        ) from error
