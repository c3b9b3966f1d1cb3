"""Counts the zeros of a checkpoint's decoder layers, as the Wanda code does.

Wanda's ``check_sparsity`` counts the weights of the ``nn.Linear`` modules inside the
decoder layers of the model in memory; here the saved files are counted wherever they
hold the weights as they are. Beyond that definition, GPT-2's ``Conv1D`` weights (linear
layers stored the other way round) and the experts that newer transformers fuse into one
tensor are counted as well; older ones had an ``nn.Linear`` for each, and one for the
router.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CheckpointError
from ..tensornames import IN_LAYER, layer_of, match_names
from ..values import Fingerprint
from .files import read_config
from .jsonfiles import section
from .locate import Located
from .streams import Model, Stream, each, model_streams, stored_streams

if TYPE_CHECKING:
    import numpy

_OTHER_STACKS = re.compile(r"vision|visual|audio|speech|encoder")
_NOT_LINEAR = re.compile(
    r"norm|(^|\.)ln_?[0-9a-z]*\.|embed|conv([12]d)?\.weight$|relative_attention"
)
_NOT_WEIGHT = re.compile(r"bias|scale|shape|zero_point|position|inv_freq")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model", "dim")
_INPUT_FIRST = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types whose linear layers are GPT-2's ``Conv1D``: weights [input x output]."""

# A mask that drops the sign: -0.0 is a zero. In the FNUZ formats its bits mean NaN.
_MAGNITUDE = {
    "F64": 0x7FFF_FFFF_FFFF_FFFF,
    "F32": 0x7FFF_FFFF,
    "F16": 0x7FFF,
    "BF16": 0x7FFF,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7F,
    "F8_E4M3FNUZ": 0xFF,
    "F8_E5M2FNUZ": 0xFF,
}


class Zeros(NamedTuple):
    """Zeros of one tensor, and the groups of an N:M pattern that have too few."""

    zeros: int
    total: int
    groups: int = 0
    broken: int = 0

    @property
    def share(self) -> float:
        """Share of zeros."""
        return self.zeros / self.total if self.total else 0.0


class Sparsity(Struct, frozen=True):
    """Zeros in the linear weights of the decoder layers, tensor by tensor.

    ``pattern`` is N:M where groups were looked at.
    """

    tensors: dict[str, Zeros]
    pattern: tuple[int, int] | None = None

    @property
    def zeros(self) -> int:
        """All zeros."""
        return sum(tensor.zeros for tensor in self.tensors.values())

    @property
    def total(self) -> int:
        """All weights."""
        return sum(tensor.total for tensor in self.tensors.values())

    @property
    def fraction(self) -> float:
        """``zeros / total``."""
        return self.zeros / self.total

    def layers(self) -> dict[str, Zeros]:
        """The tensors of each decoder layer together, by the layer's name."""
        sums: dict[str, Zeros] = {}
        for name, tensor in self.tensors.items():
            layer = layer_of(name) or name
            known = sums.get(layer, Zeros(0, 0))
            sums[layer] = Zeros(*map(sum, zip(known, tensor, strict=True)))
        return sums

    def renamed(self, recorded: Collection[str]) -> Sparsity:
        """With tensors under the names that are ``recorded`` of them."""
        names = match_names(recorded, self.tensors)
        tensors = {names.get(name, name): one for name, one in self.tensors.items()}
        return replace(self, tensors=tensors)

    def shares(self, scope: str) -> dict[str, float]:
        """Share of zeros of each ``layer`` or ``tensor`` that has weights at all."""
        zeros = self.layers() if scope == "layer" else self.tensors
        return {name: one.share for name, one in zeros.items() if one.total}


def measure_sparsity(
    located: Located,
    *,
    model: Model | None = None,
    allow_pickle: bool = False,
    pattern: tuple[int, int] | None = None,
) -> Sparsity:
    """Count zeros in the linear weights of the decoder layers.

    Counted are two-dimensional ``.weight`` tensors and expert tensors inside the
    decoder layers; norms, biases, embeddings and the head are not. From the files,
    which needs no torch and constant memory, unless they do not hold the weights that
    run: those of a merged adapter, of a quantised checkpoint and of pickles are
    counted in the loaded model.

    Args:
        located: from :func:`~.locate.locate`.
        model: loads it; called only if need be.
        allow_pickle: whether pickle weights may be loaded.
        pattern: N and M; looks at every group of M weights along the input dimension,
            of which no more than N may be other than zero.

    Raises:
        CheckpointError: the weights cannot be read or stay packed, no decoder layer
            was found, or M does not divide an input dimension.
    """
    config = read_config(located)
    streams, why = _stored(located, config, allow_pickle=allow_pickle)
    if why and model is None:
        raise CheckpointError(
            f"{located.spec}{why}: its sparsity can only be counted in the loaded model"
        )
    if why:
        assert model is not None
        streams = model_streams(model())
        _, packed = _split(streams)
        if packed:
            raise CheckpointError(
                f"{located.spec}: {packed[0].name} is packed ({packed[0].dtype}) also "
                "in memory: the sparsity of such weights is not counted; count the "
                "zeros of the checkpoint as it was before packing"
            )
    linear, _ = _split(streams, None if why else _layer_count(config))
    if not sum(_size(stream) for stream in linear):
        raise CheckpointError(
            f"{located.spec} has no linear weights of decoder layers (tensors named "
            "like model.layers.0.mlp.up_proj.weight): its sparsity cannot be counted"
        )
    apart = {
        stream.name: _apart(stream, pattern, config, located.spec)
        for stream in linear
        if pattern is not None
    }
    counted = each(
        linear, lambda one: count_zeros(one, pattern, apart.get(one.name, 1))
    )
    return Sparsity({stream.name: counted[stream.name] for stream in linear}, pattern)


def sparsity_of(fingerprint: Fingerprint) -> Sparsity:
    """The zeros that a fingerprint knows of."""
    facts = {name: fingerprint.tensors[name] for name in fingerprint.linear}
    return Sparsity({name: Zeros(one.zeros, one.size) for name, one in facts.items()})


def linear_weights(streams: Iterable[Stream], config: Mapping[str, Any]) -> list[str]:
    """Names of the tensors in which sparsity is counted, of a checkpoint's files."""
    linear, _ = _split(streams, _layer_count(config))
    return sorted(stream.name for stream in linear)


def packed_weights(streams: Iterable[Stream], config: Mapping[str, Any]) -> list[str]:
    """Names of the tensors of decoder layers whose elements are no plain floats."""
    _, packed = _split(streams, _layer_count(config))
    return sorted(stream.name for stream in packed)


def _stored(
    located: Located, config: Mapping[str, Any], *, allow_pickle: bool
) -> tuple[list[Stream], str]:
    """The tensors in the files, and why those are not the weights that run."""
    if located.base is not None:
        return [], " is an adapter"
    streams = stored_streams(located, allow_pickle=allow_pickle)
    if not streams:
        return [], " has pickle weights"
    _, packed = _split(streams, _layer_count(config))
    if packed:
        return [], f": {packed[0].name} is packed ({packed[0].dtype})"
    return streams, ""


def _layer_count(config: Mapping[str, Any]) -> int | None:
    """How many decoder layers run; some checkpoints append layers that never do."""
    for settings in (config, section(config, "text_config")):
        for name in _LAYER_COUNTS:
            if isinstance(settings.get(name), int):
                return int(settings[name])
    return None


def _split(
    streams: Iterable[Stream], layers: int | None = None
) -> tuple[list[Stream], list[Stream]]:
    """The tensors to count, and packed ones, in the first ``layers`` (None: all)."""
    linear, packed = [], []
    for stream in streams:
        rest = _rest(stream.name, layers)
        if rest is None or _NOT_WEIGHT.search(rest.rpartition(".")[2]):
            continue
        if not stream.is_float:
            packed.append(stream)
        elif _is_linear(rest, len(stream.shape)):
            linear.append(stream)
    return linear, packed


def _rest(name: str, layers: int | None) -> str | None:
    """The name inside its decoder layer; None if it is in none that counts."""
    match = IN_LAYER.fullmatch(name)
    if match is None or _OTHER_STACKS.search(match["before"]):
        return None
    if layers is not None and int(match["number"]) >= layers:
        return None
    return match["rest"]


def _is_linear(rest: str, dimensions: int) -> bool:
    if _NOT_LINEAR.search(rest) or dimensions not in (2, 3):
        return False
    return rest.endswith(".weight") or ".experts." in f".{rest}"


def _size(stream: Stream) -> int:
    return math.prod(stream.shape)


def count_zeros(
    stream: Stream, pattern: tuple[int, int] | None = None, apart: int = 1
) -> Zeros:
    """Zeros of one tensor, and its groups; ``apart`` is from :func:`_apart`."""
    import numpy

    if not _size(stream):
        return Zeros(0, 0)
    keep, size = pattern or (0, 0)
    nonzero = broken = 0
    for words in stream.read(size * apart if pattern else 1):
        kept = (words & words.dtype.type(_MAGNITUDE[stream.dtype])) != 0
        nonzero += int(numpy.count_nonzero(kept))
        if pattern:
            broken += _broken(kept, keep, size, apart)
    total = _size(stream)
    return Zeros(total - nonzero, total, total // size if pattern else 0, broken)


# --------------------------------------------------------------------------- patterns


def _apart(
    stream: Stream, pattern: tuple[int, int], config: Mapping[str, Any], spec: str
) -> int:
    """How far apart the weights are that follow each other in a group."""
    keep, size = pattern
    axis = input_axis(stream, config, spec)
    width = stream.shape[axis]
    if width % size:
        raise CheckpointError(
            f"{spec}: {stream.name} is {list(stream.shape)}: {size} does not "
            f"divide its input dimension of {width}, so it has no pattern "
            f"{keep}:{size}; gate the fraction instead"
        )
    return math.prod(stream.shape[axis + 1 :])


def _broken(kept: numpy.ndarray[Any, Any], keep: int, size: int, apart: int) -> int:
    """Groups of ``size`` weights of which more than ``keep`` are other than zero."""
    import numpy

    members = kept.view("u1").reshape(-1, size, apart)
    # One member after the other is much faster than a sum over a short axis.
    counts = numpy.zeros((len(members), apart), "u1" if size < 256 else "u4")
    for index in range(size):
        counts += members[:, index]
    return int(numpy.count_nonzero(counts > keep))


def input_axis(stream: Stream, config: Mapping[str, Any], spec: str) -> int:
    """Which dimension is multiplied with the layer's input."""
    if stream.name.endswith(".weight"):
        conv1d = config.get("model_type") in _INPUT_FIRST
        return 0 if conv1d else len(stream.shape) - 1
    # Experts in one tensor: models differ in the order, the sizes give it away.
    first, second = len(stream.shape) - 2, len(stream.shape) - 1
    hidden = _hidden_size(config)
    sizes = stream.shape[first], stream.shape[second]
    if hidden is None or sizes.count(hidden) != 1:
        raise CheckpointError(
            f"{spec}: {stream.name} is {list(stream.shape)}: which of its dimensions "
            "is the input cannot be told, so no pattern can be checked; gate the "
            "fraction instead"
        )
    holds_hidden = first if sizes[0] == hidden else second
    if re.search(r"(^|\.)(down_proj|w2)", stream.name):
        return first + second - holds_hidden
    return holds_hidden


def _hidden_size(config: Mapping[str, Any]) -> int | None:
    for settings in (section(config, "text_config"), config):
        for name in _HIDDEN_SIZES:
            if isinstance(settings.get(name), int):
                return int(settings[name])
    return None
