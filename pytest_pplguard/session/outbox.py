"""What one test produced, on its way to the controller as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..report import plain
from ..values import Recording, Verdict


class Outbox(Struct):
    """What one test produced, in wire form as soon as it leaves the process.

    ``journals`` are the files of complete measurements, which may go when the run ends.
    """

    verdicts: list[Verdict] = []
    recordings: list[Recording] = []
    notices: list[str] = []
    journals: list[str] = []

    def drain(self) -> dict[str, Any] | None:
        """Everything as plain JSON data, and the box is empty; None if it was."""
        if not (self.verdicts or self.recordings or self.notices or self.journals):
            return None
        wire = {
            "verdicts": plain(self.verdicts),
            "recordings": plain(self.recordings),
            "notices": list(self.notices),
            "journals": list(self.journals),
        }
        self.verdicts, self.recordings, self.notices, self.journals = [], [], [], []
        return wire


def decode_outbox(wire: Mapping[str, Any]) -> Outbox:
    """The other end of :meth:`Outbox.drain`."""
    return msgspec.convert(wire, Outbox)
