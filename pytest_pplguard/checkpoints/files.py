"""Reads what a checkpoint's files say about its weights, without loading a model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeGuard

from msgspec import Struct

from ..errors import CheckpointError
from .jsonfiles import read_json, section
from .locate import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    PICKLE,
    PICKLE_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TOKENIZER_PATTERNS,
    Located,
)

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element, for each dtype that the safetensors format knows."""

_MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""
_MAX_DIMENSIONS = 64
"""As numpy and torch have it."""
_MAX_SIZE = 1 << 63
_CHUNK = 1 << 22
_LFS = b"version https://git-lfs"
_TOKENIZER_EXTRAS = (
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorInfo(Struct, frozen=True):
    """Where a tensor's bytes are: ``file[offsets[0]:offsets[1]]``, from byte 0 on.

    ``state`` is the file's (:func:`file_state`) when its header was read.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]
    state: tuple[int, ...] = ()


# ---------------------------------------------------------------------------- config


def read_config(located: Located) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint, or of an adapter's base; empty for GGUF.

    Raises:
        CheckpointError: it is no JSON object.
    """
    if located.gguf:
        return {}
    return read_json(located.model.folder / "config.json")


def saved_dtype(located: Located) -> str | None:
    """The dtype in which the weights were saved, as torch names it.

    The config's word counts, as it does for transformers; without one, the dtype of
    most of the bytes. None for GGUF and pickle files, and for packed weights.

    Raises:
        CheckpointError: config or weights cannot be read.
    """
    config = read_config(located)
    for settings in (config, section(config, "text_config")):
        named = settings.get("dtype") or settings.get("torch_dtype")
        if isinstance(named, str):
            return named.removeprefix("torch.")
    folder = located.model.folder
    if located.gguf or not _safetensors_file(folder):
        return None
    sizes: Counter[str] = Counter()
    for tensor in tensor_index(folder).values():
        sizes[tensor.dtype] += tensor.offsets[1] - tensor.offsets[0]
    return _DTYPES.get(sizes.most_common(1)[0][0]) if sizes else None


# ---------------------------------------------------------------- which files there are


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that transformers would load the weights from, in sorted order.

    Raises:
        CheckpointError: there are none, a shard is missing, an index names a file
            outside the folder, that of safetensors names another kind of file, or the
            weights are pickles and ``allow_pickle`` is false.
    """
    single = _safetensors_file(folder)
    if single is None:
        single = _pickle_file(folder, allow_pickle=allow_pickle)
    if not single.name.endswith(".index.json"):
        return [single]
    return sorted({folder / name for name in _weight_map(single).values()})


def _safetensors_file(folder: Path) -> Path | None:
    """The safetensors file or index, in the order in which transformers looks."""
    for name in (SAFETENSORS, SAFETENSORS_INDEX):
        if (folder / name).is_file():
            return folder / name
    return None


def _pickle_file(folder: Path, *, allow_pickle: bool) -> Path:
    for name in (PICKLE, PICKLE_INDEX):
        if not (folder / name).is_file():
            continue
        if allow_pickle:
            return folder / name
        raise CheckpointError(
            f"{folder} has pickle weights only ({name}), and unpickling can run code: "
            "convert them (model.save_pretrained writes safetensors), or trust them "
            "with --ppl-allow-pickle"
        )
    raise CheckpointError(
        f"{folder} has no weights: neither {SAFETENSORS} nor {SAFETENSORS_INDEX}"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name; every shard exists and lies in the folder."""
    weight_map = named_shards(index)
    for name in sorted(set(weight_map.values())):
        check_shard(index, name)
    return weight_map


def named_shards(index: Path) -> dict[str, str]:
    """Tensor name to shard name, as an index has them.

    Raises:
        CheckpointError: it has no such map, or names a file that is never read.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name in sorted({str(name) for name in weight_map.values()}):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is outside its folder"
            )
        # transformers goes by a shard's name and would unpickle it.
        if index.name == SAFETENSORS_INDEX and not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is no safetensors file: "
                "save the checkpoint again (model.save_pretrained writes safetensors)"
            )
    return {name: str(file) for name, file in weight_map.items()}


def check_shard(index: Path, name: str) -> None:
    """Refuse a shard that an index names and that is not there.

    Raises:
        CheckpointError: it is missing.
    """
    if not (index.parent / name).is_file():
        raise CheckpointError(
            f"{index.parent} lacks the shard {name} that {index.name} names: "
            "copy or download it again"
        )


# -------------------------------------------------------------------- what is in them


def tensor_index(folder: Path, *, allow_pickle: bool = False) -> dict[str, TensorInfo]:
    """Every tensor of the safetensors files, by name; empty for allowed pickles.

    Reads headers only, and checks that they fit the files.

    Raises:
        CheckpointError: a shard is missing, truncated or malformed, the index does not
            fit the shards, the weights are pickles, or a mask of
            ``torch.nn.utils.prune`` was saved with them.
    """
    files = weight_files(folder, allow_pickle=allow_pickle)
    if files[0].suffix != ".safetensors":
        return {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder} holds the tensor {name} twice: in "
                    f"{tensors[name].file.name} and in {file.name}"
                )
            tensors[name] = tensor
    index = _safetensors_file(folder)
    if index is not None and index.name == SAFETENSORS_INDEX:
        _check_index(index, tensors)
    refuse_prune_masks(str(folder), tensors)
    return tensors


def _check_index(index: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file != index.parent / file:
            found = f"it is in {tensors[name].file.name}" if name in tensors else ""
            raise CheckpointError(
                f"{index} is stale: it says that {name} is in {file}, but "
                f"{found or 'no shard has it'}. Save the checkpoint again into an "
                "empty folder"
            )


def index_notices(located: Located) -> tuple[str, ...]:
    """A line for the user if the shards weigh something else than their index says.

    Names and shapes cannot tell a shard of another checkpoint; its dtype shows here.
    """
    index = None if located.gguf else _safetensors_file(located.folder)
    if index is None or index.name != SAFETENSORS_INDEX:
        return ()
    expected = section(read_json(index), "metadata").get("total_size")
    tensors = tensor_index(located.folder)
    found = sum(end - begin for begin, end in (t.offsets for t in tensors.values()))
    if not isinstance(expected, int | float) or expected == found:
        return ()
    return (
        f"{located.spec}: the shards hold {found} bytes of weights, but "
        f"{index.name} counts {int(expected)}: is a shard from another checkpoint?",
    )


def refuse_prune_masks(name: str, keys: Iterable[str]) -> None:
    """Refuse weights that ``torch.nn.utils.prune`` still computes from a mask.

    Raises:
        CheckpointError: one of ``keys`` ends in ``weight_orig`` or ``weight_mask``.
    """
    masks = [key for key in keys if key.endswith(("weight_orig", "weight_mask"))]
    if masks:
        raise CheckpointError(
            f"{name} was saved with its pruning masks ({len(masks)} tensors like "
            f"{min(masks)}): call torch.nn.utils.prune.remove(module, 'weight') on "
            "every pruned module, then save again"
        )


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, from its header.

    Raises:
        CheckpointError: the header is malformed or does not fit the file.
    """
    with _reading(file), file.open("rb") as stream:
        state = file_state(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
        start, header = _header(file, stream, size)
    tensors = {
        name: _tensor(file, name, entry, start, state)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_layout(file, tensors, start, size)
    return tensors


def _header(file: Path, stream: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the parsed header."""
    prefix = stream.read(8)
    if (prefix + stream.read(len(_LFS) - 8)).startswith(_LFS):
        raise CheckpointError(f"{file} is a Git LFS pointer: run `git lfs pull`")
    if len(prefix) < 8:
        raise CheckpointError(f"{file} is truncated: {size} bytes are no safetensors")
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER:
        raise CheckpointError(
            f"{file} is no safetensors file: its header would be {length} bytes long"
        )
    start = 8 + length
    if start > size:
        raise CheckpointError(
            f"{file} is truncated: {size} bytes, its header alone takes {start}"
        )
    stream.seek(8)
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file: malformed header: {error}"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is no safetensors file: malformed header")
    return start, header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice = next(key for key, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return unique


def _tensor(
    file: Path, name: str, entry: object, start: int, state: tuple[int, ...]
) -> TensorInfo:
    """Check one entry of a header; its offsets become those in the file."""
    if not name.isprintable():
        raise CheckpointError(
            f"{file}: the name {name!r} of a tensor holds characters that cannot be "
            "printed: no library writes such names, so do not trust this file"
        )
    if not isinstance(entry, dict):
        raise CheckpointError(f"{file}: malformed entry of {name}")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    offsets = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{file}: {name} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{file}: {name} has no valid shape and data_offsets: "
            f"{reprlib.repr(shape)}, {reprlib.repr(offsets)}"
        )
    begin, end = offsets
    expected = math.prod(shape) * BITS[dtype]
    if (end - begin) * 8 != expected:
        raise CheckpointError(
            f"{file}: {name} is {dtype} {shape}, {expected // 8} bytes, "
            f"but its data_offsets span {end - begin}"
        )
    return TensorInfo(file, dtype, tuple(shape), (start + begin, start + end), state)


def _sizes(value: object) -> TypeGuard[list[int]]:
    # Bounded, so that a product of millions of sizes keeps nobody waiting.
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < _MAX_SIZE for item in value)
    )


def _check_layout(
    file: Path, tensors: Mapping[str, TensorInfo], start: int, size: int
) -> None:
    """Tensors lie side by side from the header to the end of the file."""
    spans = sorted((*tensor.offsets, name) for name, tensor in tensors.items())
    end = max((stop for _, stop, _ in spans), default=start)
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: {size} bytes, expected {end}. "
            "Copy or download it again"
        )
    if end < size:
        raise CheckpointError(
            f"{file} is malformed: {size} bytes, but its tensors end at {end}"
        )
    for (_, stop, left), (begin, _, right) in pairwise([(start, start, ""), *spans]):
        if begin != stop:
            what = "overlap" if begin < stop else "leave a gap"
            raise CheckpointError(
                f"{file} is malformed: {left or 'the header'} and {right} {what}"
            )


# -------------------------------------------------------------------- reading tensors


@contextmanager
def tensor_bytes(tensor: TensorInfo) -> Iterator[Callable[[memoryview], None]]:
    """A function that fills memory with the next bytes of a tensor.

    Raises:
        CheckpointError: the file cannot be read, or is another one than when its
            header was read.
    """
    with _reading(tensor.file), tensor.file.open("rb", buffering=0) as stream:

        def check() -> None:
            if tensor.state and file_state(stream.fileno()) != tensor.state:
                raise CheckpointError(
                    f"{tensor.file} was changed while it was read: wait until whatever "
                    "writes it is done, and run again"
                )

        def take(memory: memoryview) -> None:
            view = memory.cast("B") if memory.nbytes else memory
            while view.nbytes:
                got = stream.readinto(view)
                if not got:
                    raise CheckpointError(
                        f"{tensor.file} became shorter while it was read: wait until "
                        "whatever writes it is done, and run again"
                    )
                view = view[got:]

        check()
        stream.seek(tensor.offsets[0])
        yield take
        check()


def file_state(file: int | Path) -> tuple[int, ...]:
    """What changes with a file's contents: which file, size, time of change."""
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def files_state(located: Located) -> frozenset[tuple[Path, tuple[int, ...]]]:
    """What changes with the contents of a checkpoint's files.

    Raises:
        CheckpointError: they are not there any more.
    """
    with _reading(located.folder):
        if located.gguf:
            files = [located.folder / located.gguf]
        else:
            folders = {located.folder, located.model.folder}
            files = [path for folder in folders for path in folder.iterdir()]
        return frozenset((path, file_state(path)) for path in files if path.is_file())


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read: {error.strerror or error}"
        ) from error


# -------------------------------------------------------------------------- identity


def digest(located: Located, *, allow_pickle: bool = False) -> str:
    """SHA-256 over config, tokenizer and weights: which checkpoint this is.

    Covers file names (sorted), sizes and contents, so it tells checkpoints apart, but
    two folders may differ in it and hold the same model (sharded another way). That of
    an adapter covers its base.

    Raises:
        CheckpointError: the weights are missing or refused.
    """
    total = hashlib.sha256()
    for path in _identity_files(located, allow_pickle=allow_pickle):
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    if located.base is not None:
        total.update(digest(located.base, allow_pickle=allow_pickle).encode())
    return f"sha256:{total.hexdigest()}"


def identity_state(
    located: Located, *, allow_pickle: bool = False
) -> frozenset[tuple[Path, tuple[int, ...]]]:
    """What changes when a file is replaced of which :func:`digest` is made.

    Other files of the folder, such as a README, may come and go.

    Raises:
        CheckpointError: the weights are missing or refused.
    """
    with _reading(located.folder):
        found = frozenset(
            (path, file_state(path))
            for path in _identity_files(located, allow_pickle=allow_pickle)
        )
    if located.base is not None:
        found |= identity_state(located.base, allow_pickle=allow_pickle)
    return found


def _identity_files(located: Located, *, allow_pickle: bool) -> list[Path]:
    folder = located.folder
    if located.gguf:
        return [folder / located.gguf]
    patterns = (
        *(_ADAPTER if located.base is not None else ("config.json",)),
        *TOKENIZER_PATTERNS,
        *_TOKENIZER_EXTRAS,
    )
    described = {path for pattern in patterns for path in folder.glob(pattern)}
    if located.base is not None:
        return sorted(described)
    return sorted(described | {*weight_files(folder, allow_pickle=allow_pickle)})
