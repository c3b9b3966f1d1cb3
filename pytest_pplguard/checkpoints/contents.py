"""Digests of a checkpoint's files as they are: no model is loaded, nothing unpacked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from ..errors import CheckpointError
from .files import weight_files
from .locate import ADAPTER_PICKLE, ADAPTER_WEIGHTS, Located

_TEXTS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.bpe",
    "*.spm",
    "*.vocab",
)
"""Configs, tokenizers, indices of shards: all that transformers might look at."""

_CHUNK = 1 << 24
_READ = 1 << 20
_MOST_THREADS = 16


class Contents(Struct, frozen=True):
    """Digests of a checkpoint's files by name, wherever its folder is.

    ``texts`` are configs and tokenizers, of a GGUF file all of it; ``weights`` are what
    the weights are loaded from. Files of an adapter's base are under ``base/``.
    """

    texts: dict[str, str]
    weights: dict[str, str]


def contents(located: Located, *, allow_pickle: bool = False) -> Contents:
    """Read every byte that decides what a checkpoint computes.

    Raises:
        CheckpointError: a file cannot be read, or the weights are missing or refused.
    """
    if located.gguf:
        whole = _digests({located.gguf: located.folder / located.gguf})
        return Contents(texts=whole, weights={})
    if located.base is None:
        texts = _texts(located.folder)
        weights = weight_files(located.folder, allow_pickle=allow_pickle)
    else:
        texts = _texts(located.folder)
        names = (ADAPTER_WEIGHTS, ADAPTER_PICKLE)
        places = [located.folder / name for name in names]
        weights = [path for path in places if path.is_file()]
    found = Contents(
        texts=_digests({path.name: path for path in texts}),
        weights=_digests(
            {str(path.relative_to(located.folder)): path for path in weights}
        ),
    )
    if located.base is None:
        return found
    base = contents(located.base, allow_pickle=allow_pickle)
    return Contents(
        texts=found.texts | {f"base/{name}": d for name, d in base.texts.items()},
        weights=found.weights | {f"base/{name}": d for name, d in base.weights.items()},
    )


def _texts(folder: Path) -> list[Path]:
    found = {path for pattern in _TEXTS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _digests(files: dict[str, Path]) -> dict[str, str]:
    return {name: file_digest(path) for name, path in sorted(files.items())}


def file_digest(path: Path) -> str:
    """SHA-256 of the SHA-256 of each 16 MiB of a file, which threads compute at once.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        starts = range(0, size, _CHUNK)
        if len(starts) <= 1:
            return _joined([_chunk_digest(path, 0)])
        threads = min(_MOST_THREADS, os.cpu_count() or 1, len(starts))
        with ThreadPoolExecutor(threads) as pool:
            return _joined(pool.map(lambda start: _chunk_digest(path, start), starts))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error


def _joined(parts: Iterable[bytes]) -> str:
    return f"sha256x16m:{hashlib.sha256(b''.join(parts)).hexdigest()}"


def _chunk_digest(path: Path, start: int) -> bytes:
    sha = hashlib.sha256()
    memory = memoryview(bytearray(_READ))
    left = _CHUNK
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (got := stream.readinto(memory[: min(left, _READ)])):
            sha.update(memory[:got])
            left -= got
    return sha.digest()
