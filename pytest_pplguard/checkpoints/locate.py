"""Turns what a user typed into a folder (or GGUF file) with a whole checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import CheckpointError
from ..values import near_matches
from .jsonfiles import read_json

DEMO = Path(__file__).resolve().parent.parent / "demo"
TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
"""A folder needs one of these; ``tokenizer_config.json`` alone has no vocabulary."""

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder an adapter of PEFT."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_HUB_PATTERNS = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja")
_HUB_WEIGHTS = ("*.safetensors",)
_HUB_PICKLES = ("pytorch_model*.bin", ADAPTER_PICKLE)
_HUB_CODE = ("*.py",)
_LISTED = 8


class Located(Struct, frozen=True):
    """A checkpoint on this machine.

    ``spec`` is what the user gave and what messages call it; ``gguf`` is the name of
    a GGUF file in ``folder``, None for a Hugging Face folder; ``revision`` is the one
    asked of the Hub. ``base`` is the model that an adapter belongs to, None if
    ``folder`` holds a whole model.
    """

    spec: str
    folder: Path
    gguf: str | None = None
    revision: str | None = None
    base: Located | None = None

    @property
    def model(self) -> Located:
        """Where config and weights of the whole model are."""
        return self.base or self


def locate(
    spec: str,
    *,
    cwd: Path | None = None,
    offline: bool | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    config_only: bool = False,
    weights: bool = True,
) -> Located:
    """Find a checkpoint: a folder, a ``.gguf`` file, ``demo/NAME`` or a Hub id.

    What exists on disk wins over a demo name and over a Hub id. An adapter of PEFT is
    found together with its base: the one behind ``+``, else the one that its
    ``adapter_config.json`` names (as a path from the adapter's folder, a path from
    ``cwd``, or a Hub id).

    Args:
        spec: what the user gave; a Hub id is ``org/name`` or ``org/name@revision``, an
            adapter may be ``ADAPTER+BASE``.
        cwd: where relative paths start; the current folder by default.
        offline: use only what the Hub's cache holds; None follows ``HF_HUB_OFFLINE``.
        allow_pickle: fetch pickle weights from the Hub as well.
        trust_remote_code: fetch Python files from the Hub as well.
        config_only: a folder that holds no more than a ``config.json`` will do, or
            that file itself, and no weights are fetched.
        weights: fetch weights from the Hub; config and tokenizer are small.

    Raises:
        CheckpointError: there is nothing there, or it is no whole checkpoint.
    """
    cwd = cwd or Path.cwd()
    fetched = weights and not config_only
    patterns = (
        *_HUB_PATTERNS,
        *(_HUB_WEIGHTS if fetched else ()),
        *(_HUB_PICKLES if fetched and allow_pickle else ()),
        *(_HUB_CODE if trust_remote_code else ()),
    )

    def find(wanted: str) -> Located:
        return _find(wanted, cwd, patterns, offline)

    typed, named = _split_base(spec, cwd)
    if config_only and Path(typed).name == CONFIG and os.path.isfile(cwd / typed):
        typed = os.path.dirname(typed) or "."
    found = find(typed)
    if found.gguf is None and (found.folder / ADAPTER_CONFIG).is_file():
        _refuse_model_beside_adapter(found)
        base = (
            _named_base(found, cwd, find)
            if named is None
            else _typed_base(found, named, find)
        )
        _check_base(found, base, tokenizer=not config_only)
        return Located(typed, found.folder, revision=found.revision, base=base)
    if named is not None:
        raise CheckpointError(
            f"{typed} is no adapter (it has no {ADAPTER_CONFIG}), so it takes no base: "
            f"write ADAPTER+BASE, or {typed} alone"
        )
    if found.gguf is None:
        _check_folder(found, tokenizer=not config_only)
    return found


def _find(
    spec: str, cwd: Path, patterns: Sequence[str], offline: bool | None
) -> Located:
    """Where ``spec`` is; what a folder holds is not looked at."""
    if not spec.strip():
        raise CheckpointError("the path of a checkpoint is empty")
    path = cwd / Path(os.path.expanduser(spec))
    # Of a name that is too long, os.path says that there is none.
    if os.path.isdir(path):
        return Located(spec, path)
    if os.path.exists(path):
        return _file(spec, path)
    if spec.startswith("demo/") or spec == "demo":
        return Located(spec, _demo(spec))
    match = _HUB_ID.fullmatch(spec)
    if match is None:
        raise CheckpointError(_nothing_there(spec, path))
    repo, revision = match["repo"], match["revision"]
    try:
        folder = _fetch(repo, revision, patterns, offline)
    except CheckpointError as error:
        raise CheckpointError(
            f"there is no {path.absolute()}, and the Hub id {spec} {error}. "
            f"Give a local folder, or run `hf download {repo}` where there is a network"
        ) from error
    return Located(spec, folder, revision=revision)


# --------------------------------------------------------------------- adapter and base


def _split_base(spec: str, cwd: Path) -> tuple[str, str | None]:
    """``ADAPTER+BASE`` in two; a path that exists is not split."""
    places = [place for place, character in enumerate(spec) if character == "+"]
    if not places or os.path.exists(cwd / Path(os.path.expanduser(spec))):
        return spec, None
    for place in places:
        if os.path.isdir(cwd / Path(os.path.expanduser(spec[:place]))):
            break
    else:
        place = places[0]
    return spec[:place], spec[place + 1 :]


def _refuse_model_beside_adapter(found: Located) -> None:
    weights = (SAFETENSORS, SAFETENSORS_INDEX, PICKLE, PICKLE_INDEX)
    if whole := [name for name in weights if (found.folder / name).is_file()]:
        raise CheckpointError(
            f"{found.spec} holds both an adapter ({ADAPTER_CONFIG}) and a whole model "
            f"({whole[0]}): move one of them to a folder of its own"
        )


def _typed_base(found: Located, named: str, find: Callable[[str], Located]) -> Located:
    """The base that the user wrote behind an adapter."""
    if not named:
        raise CheckpointError(
            f"{found.spec}+: no base behind the plus sign; write {found.spec}+BASE, or "
            f"{found.spec} alone for the base that {ADAPTER_CONFIG} names"
        )
    try:
        return find(named)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base of the adapter {found.spec}: {error}"
        ) from error


def _named_base(found: Located, cwd: Path, find: Callable[[str], Located]) -> Located:
    """The base that an adapter's config names."""
    config = read_json(found.folder / ADAPTER_CONFIG)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    way_out = f"name it behind the adapter: {found.spec}+BASE"
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"the adapter {found.spec} does not say what its base is "
            f"(base_model_name_or_path in {ADAPTER_CONFIG}): {way_out}"
        )
    places = list(
        dict.fromkeys(
            place.resolve()
            for start in (cwd, found.folder)
            if os.path.isdir(place := start / Path(os.path.expanduser(named)))
        )
    )
    if len(places) > 1:
        raise CheckpointError(
            f"the adapter {found.spec} names the base {named}, and there are two: "
            f"{' and '.join(map(str, places))}. Say which: {found.spec}+BASE"
        )
    if places:
        return find(str(places[0]))
    try:
        return find(f"{named}@{revision}" if isinstance(revision, str) else named)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base {named} of the adapter {found.spec} was not found: {error}. "
            f"Or {way_out}"
        ) from error


def _check_base(adapter: Located, base: Located, *, tokenizer: bool) -> None:
    if base.gguf is not None or (base.folder / ADAPTER_CONFIG).is_file():
        kind = "an adapter itself" if base.gguf is None else "a GGUF file"
        raise CheckpointError(
            f"the base {base.spec} of the adapter {adapter.spec} is {kind}: give the "
            f"folder of the whole model: {adapter.spec}+BASE"
        )
    _check_folder(base, tokenizer=tokenizer and not has_tokenizer(adapter.folder))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_PATTERNS)


# ------------------------------------------------------------------ one file or folder


def _nothing_there(spec: str, path: Path) -> str:
    return (
        f"{spec} does not exist (looked at {path.absolute()}). "
        "Give a folder, a .gguf file, demo/dense, demo/wanda-50, "
        "or a Hub id like org/name"
    )


def _demo(spec: str) -> Path:
    name = spec.removeprefix("demo").removeprefix("/").rstrip("/")
    folders = sorted(config.parent for config in DEMO.glob("*/config.json"))
    known = [f"demo/{folder.name}" for folder in folders]
    if f"demo/{name}" in known:
        return DEMO / name
    raise CheckpointError(
        f"there is no demo checkpoint {spec!r}{near_matches(spec, known)}; "
        f"there are: {', '.join(known) or 'none in this installation'}"
    )


def _file(spec: str, path: Path) -> Located:
    """A checkpoint in one file: only GGUF carries its config and tokenizer along."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF":
        return Located(spec, path.parent, gguf=path.name)
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{spec} is not a GGUF file: it starts with {magic!r}, not b'GGUF' "
            "(a broken download, or a Git LFS pointer?)"
        )
    raise CheckpointError(
        f"{spec} is a file, but not a GGUF file: give the folder that holds "
        "config.json, tokenizer and weights"
    )


def _check_folder(found: Located, *, tokenizer: bool = True) -> None:
    """Check that a folder holds what every checkpoint needs besides weights."""
    spec, path = found.spec, found.folder
    _refuse_devices(spec, path)
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" not in names:
        raise CheckpointError(_no_config(spec, path, names))
    if tokenizer and not has_tokenizer(path):
        raise CheckpointError(
            f"{spec} has no tokenizer (none of {', '.join(TOKENIZER_PATTERNS)}): "
            "save it beside the weights with tokenizer.save_pretrained; "
            f"it holds {_listing(names)}"
        )


def _refuse_devices(spec: str, folder: Path) -> None:
    """Refuse what would be read without end: a pipe or device, or a link to one."""
    for entry in sorted(folder.iterdir()):
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise CheckpointError(
                f"{spec}: {entry.name} is neither file nor folder, but a pipe or a "
                "device: no checkpoint has one, so do not trust it"
            )


def _no_config(spec: str, path: Path, names: Iterable[str]) -> str:
    inside = [name for name in names if (path / name / "config.json").is_file()]
    if inside:
        return f"{spec} has no config.json, but its subfolders do: give " + " or ".join(
            f"{spec.rstrip('/')}/{name}" for name in inside[:_LISTED]
        )
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"{spec} has no config.json, but GGUF files: give " + " or ".join(
            f"{spec.rstrip('/')}/{name}" for name in ggufs[:_LISTED]
        )
    return (
        f"{spec} has no config.json, so it is no checkpoint: it "
        + (f"holds {_listing(names)}" if names else "is empty")
        + ". Save one with model.save_pretrained and tokenizer.save_pretrained"
    )


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _fetch(
    repo: str, revision: str | None, patterns: Sequence[str], offline: bool | None
) -> Path:
    """Download a snapshot; the error says in half a sentence why it failed."""
    import huggingface_hub
    from huggingface_hub import constants

    only_local = constants.HF_HUB_OFFLINE if offline is None else offline
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # copies in other formats
            local_files_only=only_local,
        )
    except _hub_errors() as error:
        cause = "it is not in the cache and the Hub is switched off (HF_HUB_OFFLINE)"
        if not only_local:
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
        cause = cause.removeprefix("Got: ").rstrip(".")
        raise CheckpointError(f"could not be fetched from the Hub: {cause}") from error
    return Path(folder)


def _hub_errors() -> tuple[type[Exception], ...]:
    """What a download may raise.

    Missing and gated repositories, and network errors of older Hub clients, are
    OSErrors; newer clients speak httpx, whose base class is none.
    """
    from huggingface_hub import errors

    http = [
        base
        for base in errors.HfHubHTTPError.__mro__
        if base.__name__ == "HTTPError" and issubclass(base, Exception)
    ]
    return (OSError, errors.HFValidationError, *http)
