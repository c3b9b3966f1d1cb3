"""What one test produced, on its way to the controller as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..report import plain
from ..values import LossDetail, Recording, Scalar, Verdict, WeightsDetail


class Outbox(Struct):
    """What one test produced, in wire form as soon as it leaves the process.

    ``journals`` are the files of complete measurements, which may go when the run ends.
    ``losses`` and ``weights`` are what is behind the verdicts, for reports. ``asides``
    are for those who ask for more (``-v``), and so are ``environments``, each by its
    checkpoint and key.
    """

    verdicts: list[Verdict] = []
    recordings: list[Recording] = []
    notices: list[str] = []
    journals: list[str] = []
    losses: list[LossDetail] = []
    weights: list[WeightsDetail] = []
    asides: list[str] = []
    environments: dict[str, dict[str, Scalar]] = {}

    def drain(self) -> dict[str, Any] | None:
        """Everything as plain JSON data, and the box is empty; None if it was."""
        boxes = {name: getattr(self, name) for name in self.__struct_fields__}
        if not any(boxes.values()):
            return None
        for name in boxes:
            setattr(self, name, type(getattr(self, name))())
        wire: dict[str, Any] = plain(boxes)
        return wire


def decode_outbox(wire: Mapping[str, Any]) -> Outbox:
    """The other end of :meth:`Outbox.drain`."""
    return msgspec.convert(wire, Outbox)
