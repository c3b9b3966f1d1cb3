"""Arguments of ``@pytest.mark.ppl`` and ``ppl_guard.check``: checked, keys resolved."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from ..errors import UsageError
from ..protocols import PROTOCOLS, check_key, get_protocol, method_names
from ..values import CheckpointEntry, Key, Tolerance, near_matches

Direction = Literal["both", "no-worse"]


class Request(Struct, frozen=True):
    """What a test asks for: methods or keys, of which checkpoint, how tightly."""

    methods: tuple[str, ...]
    checkpoint: str | None = None
    tolerance: Tolerance | None = None
    window: int | None = None


def ppl(
    *methods: str,
    checkpoint: str | None = None,
    rel: float | None = None,
    abs: float | None = None,
    max: float | None = None,
    min: float | None = None,
    drift: float | None = None,
    sigma: float | None = None,
    direction: Direction | None = None,
    window: int | None = None,
) -> Request:
    """The signature of the marker and of ``ppl_guard.check``.

    Args:
        methods: ``"wanda"``, ``"lm-eval"`` or another method, which stands for its only
            recorded key, or whole keys like ``"wanda/wikitext2:4096"``.
        checkpoint: ``FILE/NAME`` of the baseline; by default the one that is given with
            ``--ppl-model``.
        rel: within ``baseline / (1 + rel)`` and ``baseline * (1 + rel)``.
        abs: within ``baseline - abs`` and ``baseline + abs``.
        max: never above, whatever the baseline.
        min: never below, whatever the baseline.
        drift: how far the predictions may have moved, in nats a token, estimated from
            the windows.
        sigma: within so many standard errors of the difference; for accuracies of
            tasks, and not beside ``rel`` or ``abs``.
        direction: ``"both"``, or ``"no-worse"``: better is never a failure.
        window: tokens a window, where a method has several keys or none yet.

    Raises:
        UsageError: an argument that cannot mean anything.
    """
    if not methods:
        raise UsageError(f"name a method; there are {method_names()}")
    for method in methods:
        if not isinstance(method, str):
            raise UsageError(f"{method!r} is no method or key, but {_type(method)}")
        if "/" in method:
            check_key(Key.parse(method))
            if window is not None:
                raise UsageError(f"{method} has its window; leave window={window} out")
        else:
            get_protocol(method)
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UsageError(f"checkpoint={checkpoint!r} is no name FILE/NAME")
    if window is not None and (type(window) is not int or window < 2):
        raise UsageError(f"window={window!r} is no number of tokens")
    if direction is not None and direction not in get_args(Direction):
        raise UsageError(
            f"direction={direction!r} is not one of {', '.join(get_args(Direction))}"
        )
    bounds = {
        "rel": rel,
        "abs": abs,
        "max": max,
        "min": min,
        "drift": drift,
        "sigma": sigma,
    }
    for name, bound in bounds.items():
        _check_bound(name, bound)
    _check_units(bounds)
    given = [value for value in (*bounds.values(), direction) if value is not None]
    tolerance = Tolerance(**bounds, direction=direction or "both") if given else None
    return Request(methods, checkpoint, tolerance, window)


def parse_request(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, what: str
) -> Request:
    """Arguments as :func:`ppl` takes them; ``what`` opens every message.

    Raises:
        UsageError: unknown or bad argument.
    """
    known = [
        name
        for name, parameter in inspect.signature(ppl).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in kwargs:
        if name not in known:
            raise UsageError(
                f"{what}: unknown argument {name!r}{near_matches(name, known)}; "
                f"it takes {', '.join(known)}"
            )
    try:
        return ppl(*args, **kwargs)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


def resolve_key(
    method: str, entry: CheckpointEntry, name: str, request: Request
) -> Key:
    """The key that ``method`` means for a checkpoint.

    Without a window: the only recorded or gated key of that method.

    Raises:
        UsageError: none or several fit.
    """
    if "/" in method:
        return Key.parse(method)
    known = [
        key
        for key in map(
            Key.parse, dict.fromkeys([*entry.recorded, *entry.gates.metrics])
        )
        if key.method == method
    ]
    if request.window is not None:
        others = known
        known = [key for key in others if key.window == request.window]
        if not known and len({(key.text, key.corpus) for key in others}) == 1:
            return replace(others[0], window=request.window)
        if not known:
            return PROTOCOLS[method].key_for(None, request.window, None)
    if len(known) == 1:
        return known[0]
    if not known:
        raise UsageError(
            f"{name} has no baseline by the method {method}, so its window is not "
            f"known: give window=, or a whole key like {_example(method)}"
        )
    raise UsageError(
        f"{name} has several baselines by the method {method}; name one of "
        f"{', '.join(map(str, known))} instead of {method!r}"
    )


def _example(method: str) -> str:
    return str(PROTOCOLS[method].key_for(None, 2048, None))


def _check_bound(name: str, bound: object) -> None:
    if bound is None:
        return
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise UsageError(f"{name}={bound!r} is no number, but {_type(bound)}")
    if not math.isfinite(bound) or bound < 0:
        raise UsageError(f"{name}={bound!r} must be a finite number from 0")


def _check_units(bounds: Mapping[str, float | None]) -> None:
    sigma = bounds["sigma"]
    if sigma is None:
        return
    if sigma == 0:
        raise UsageError("sigma=0 must be greater than 0")
    for name in ("rel", "abs"):
        if bounds[name] is not None:
            raise UsageError(
                f"mixed units: sigma={sigma!r} counts standard errors, "
                f"{name}={bounds[name]!r} does not; keep one of them"
            )


def _type(value: object) -> str:
    return f"a {type(value).__name__}"
