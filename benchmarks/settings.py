"""What is measured, and how much of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

_STARTED = time.perf_counter()


@dataclass(frozen=True)
class Settings:
    """As the command line says.

    ``quick`` is for seeing that everything runs: small, few, no figures to keep.
    """

    quick: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 1
    models: tuple[str, ...] = ("demo", "smollm2", "vocabulary")
    windows: tuple[int, ...] = (512, 2048, 4096)
    wanted_pairs: int | None = None
    write_docs: bool = False

    @property
    def tokens(self) -> int:
        """About how many tokens are scored between two looks at the clock."""
        return 512 if self.device == "cpu" else 16_384

    def pairs(self, window: int) -> int:
        """Fewer of what takes longer."""
        if self.wanted_pairs is not None:
            return self.wanted_pairs
        if self.quick:
            return 2
        if self.device != "cpu":
            return 7
        return {512: 5, 2048: 3}.get(window, 2)


def say(text: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.perf_counter() - _STARTED:6.0f} s] {text}", flush=True)
