"""Finds where in the text a change is, for gates that did not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import InvalidLossError, PplguardError
from ..gates import Summed, paired
from ..protocols import Tokenizer, get_protocol
from ..report import place_line, where_lines
from ..values import Key, Measurement, WindowPlace, WindowScore

if TYPE_CHECKING:
    from ..measure import Store


class Localiser:
    """Lines that say where; whatever goes wrong with them is a line too.

    The metrics of one measurement fail one after the other and have the same lines, so
    the last ones are kept.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._last: tuple[Measurement, tuple[str, ...]] | None = None

    def of_change(
        self,
        measured: Measurement,
        recorded: Sequence[WindowScore],
        key: Key,
        tokenizer: Tokenizer | None,
    ) -> tuple[str, ...]:
        """Where ``measured`` moved against what was recorded of the same windows.

        ``tokenizer`` is the measured model's, None where it is gone: then windows are
        numbers without words.
        """
        if self._last is None or self._last[0] is not measured:
            lines = self._of_change(measured, recorded, key, tokenizer)
            self._last = measured, lines
        return self._last[1]

    def of_window(
        self, error: InvalidLossError, key: Key, tokenizer: Tokenizer | None
    ) -> tuple[str, ...]:
        """Where the window of an invalid loss is; nothing where there is no window."""
        if error.window is None or tokenizer is None or _is_of_task(key):
            return ()
        try:
            places = self._store().places([error.window], tokenizer, key)
        except PplguardError as failed:
            return (_no_place(failed),)
        return (place_line(error.window, places[error.window]),)

    def _of_change(
        self,
        measured: Measurement,
        recorded: Sequence[WindowScore],
        key: Key,
        tokenizer: Tokenizer | None,
    ) -> tuple[str, ...]:
        if measured.early is not None:
            return ()
        if _is_of_task(key):  # its documents tell, see :mod:`..gates.documents`
            return ()
        try:
            compares = get_protocol(key.method).needs_reference
            of: Summed = "kl_sum" if compares else "nll_sum"
            change = paired(measured.evidence, recorded, of=of)
        except PplguardError as error:
            return (_no_place(error),)
        places: dict[int, WindowPlace] = {}
        failed: tuple[str, ...] = ()
        if tokenizer is not None:
            indices = [window.index for window in change.moved_most]
            try:
                places = self._store().places(
                    indices, tokenizer, key, digest=measured.windows_digest
                )
            except PplguardError as error:
                failed = (_no_place(error),)
        return (*where_lines(change, places), *failed)


def _is_of_task(key: Key) -> bool:
    """Whether windows are answers: they have a document, and no place in a text."""
    return get_protocol(key.method).runs_task(key)


def _no_place(error: PplguardError) -> str:
    return f"no place in the text: {error}"
