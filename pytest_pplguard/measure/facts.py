"""What is known of a model without running it."""

from __future__ import annotations

from msgspec import Struct

from ..values import Scalar


class Facts(Struct, frozen=True):
    """What is known of a model without running it.

    ``device`` is a kind (``cuda``), ``device_name`` what the hardware is called,
    ``versions`` are those of the packages where the model runs, ``more`` what is
    recorded beside them, such as the executor. ``embeddings`` are the rows of its
    embedding; it and ``max_positions`` are None where nobody says.
    """

    dtype: str
    device: str
    device_name: str
    attention: str
    versions: dict[str, Scalar]
    max_positions: int | None = None
    embeddings: int | None = None
    rotates_by_length: bool = False
    more: dict[str, Scalar] = {}
