"""How many positions a model was made for, read from its config alone."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError
from .config import check_config
from .gguf import gguf_fields
from .locate import Located


def positions(located: Located, *, trust_remote_code: bool = False) -> int | None:
    """The longest window of a checkpoint; None where its config does not say.

    As :func:`..measure.max_positions` of the loaded model, but no weights are read.

    Raises:
        CheckpointError: the config cannot be read, or needs code that is not allowed.
    """
    whole = located.model
    if whole.gguf:
        architecture = "general.architecture"
        name = gguf_fields(whole, architecture).get(architecture)
        length = f"{name}.context_length"
        return _whole(gguf_fields(whole, length).get(length))
    check_config(whole, trust_remote_code=trust_remote_code)
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            whole.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Configs of other people's code raise anything.
    except Exception as error:
        raise CheckpointError(
            f"{located.spec}: its config could not be read: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    text = config.get_text_config()
    return _whole(getattr(text, "max_position_embeddings", None))


def _whole(limit: object) -> int | None:
    return limit if isinstance(limit, int) else None
