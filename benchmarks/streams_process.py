"""Fingerprint or count a checkpoint; print seconds, or peak memory, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_pplguard.checkpoints import Located, fingerprint, measure_sparsity

PAIRS = 5
GIB = 2

Way = Callable[[Path], object]


def read_and_hash(folder: Path) -> None:
    """What the promise is measured by: each file's SHA-256, one after the other."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")


WAYS: dict[str, Way] = {
    "fingerprint": lambda folder: fingerprint(Located("m", folder)),
    "sparsity": lambda folder: measure_sparsity(Located("m", folder)),
    "2:4": lambda folder: measure_sparsity(Located("m", folder), pattern=(2, 4)),
}


def seconds(way: Way, folder: Path) -> float:
    started = time.perf_counter()
    way(folder)
    return time.perf_counter() - started


def measure_time(way: Way, folder: Path) -> dict[str, list[float]]:
    """Seconds of reading and hashing, and of ``way``, in alternating pairs."""
    read_and_hash(folder)  # into the page cache
    way(folder)
    pairs = [
        (seconds(read_and_hash, folder), seconds(way, folder)) for _ in range(PAIRS)
    ]
    return {"hash": [one for one, _ in pairs], "ours": [two for _, two in pairs]}


def write_large(folder: Path, gib: int) -> None:
    """One float32 tensor of so many GiB, half of it zeros, and a config."""
    import numpy

    shape = [gib << 14, 1 << 14]
    size = 4 * math.prod(shape)
    name = "model.layers.0.mlp.up_proj.weight"
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    block = numpy.random.default_rng(0).normal(size=1 << 20).astype("<f4")
    block[::2] = 0
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _ in range(size // block.nbytes):
            stream.write(block.tobytes())
    (folder / "config.json").write_text("{}")


def main() -> None:
    """``streams_process.py WAY time|peak|write FOLDER [THREADS]``."""
    name, what, folder, *threads = sys.argv[1:]
    if threads:
        count = int(threads[0])
        os.cpu_count = lambda: count
    way = WAYS.get(name, read_and_hash)
    answer: object = None
    if what == "write":
        write_large(Path(folder), GIB)
    elif what == "time":
        answer = measure_time(way, Path(folder))
    else:
        way(Path(folder))
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = kib * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
