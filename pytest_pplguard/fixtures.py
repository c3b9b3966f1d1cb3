"""Fixtures for the user's own tests; their docstrings are the manual.

All are function-scoped over the process's store: a session fixture would keep the
checkpoint in memory to the end.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from .session.failing import fail

if TYPE_CHECKING:
    from .session.marker import Request
    from .values import Verdict

FIXTURES = ("ppl_model", "ppl_model_copy", "ppl_tokenizer", "ppl_device", "ppl_guard")


@pytest.fixture
def ppl_model(request: pytest.FixtureRequest) -> Any:
    """The checkpoint given with --ppl-model, loaded once and shared. Read-only.

    A ``transformers`` model in eval mode, gradients off, on its device. Which one, if
    several are given: ``@pytest.mark.ppl(..., checkpoint="llama-2-7b/wanda-50")``. A
    test that changes it in place has it dropped and loaded anew for the next one; take
    ``ppl_model_copy`` for that. Without --ppl-model the test is skipped.
    """
    return _load(request, lend=True).model


@pytest.fixture
def ppl_model_copy(request: pytest.FixtureRequest) -> Any:
    """A deep copy of ``ppl_model`` that the test may change, prune, or train.

    Costs the model's memory a second time, for as long as the test runs.
    """
    import copy

    return copy.deepcopy(_load(request).model)


@pytest.fixture
def ppl_tokenizer(request: pytest.FixtureRequest) -> Any:
    """The tokenizer of the checkpoint given with --ppl-model."""
    return _load(request).tokenizer


@pytest.fixture
def ppl_device(request: pytest.FixtureRequest) -> str:
    """The device that checkpoints are loaded to, as torch writes it: ``cuda:0``."""
    from .checkpoints import main_device, probe
    from .errors import PplguardError
    from .session.setup import guard_of
    from .session.xdist import worker_index

    try:
        options = guard_of(request.config).options
        return main_device(
            options.device,
            options.max_memory,
            probe(),
            worker_index=worker_index(request.config),
        ).device
    except PplguardError as error:
        fail(str(error))


@pytest.fixture
def ppl_guard(request: pytest.FixtureRequest) -> PplGuard:
    """Hold models of your own to recorded baselines: ``ppl_guard.check(...)``.

    ::

        def test_prune_is_still_good(ppl_guard, ppl_model_copy):
            prune(ppl_model_copy)
            ppl_guard.check(ppl_model_copy, "wanda", checkpoint="llama-2-7b/wanda-50")
    """
    return PplGuard(request)


class PplGuard:
    """What the fixture ``ppl_guard`` gives."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def check(
        self, model: Any, *methods: str, tokenizer: Any = None, **options: Any
    ) -> list[Verdict]:
        """Measure ``model`` and fail the test if a number is not within its gate.

        Args:
            model: a causal language model, a path, or ``(model, tokenizer)``.
            methods: ``"wanda"``, ``"lm-eval"``, any other (docs/protocols.md lists
                them), or keys like ``"wanda/wikitext2:4096"``.
            tokenizer: the model's tokenizer; by default that of the checkpoint given
                with ``--ppl-model``.
            options: ``checkpoint``, ``rel``, ``abs``, ``max``, ``min``, ``drift``,
                ``sigma``, ``direction``, ``window``, as the marker takes them. Without
                a tolerance the one of the baseline file holds.

        Returns:
            The verdicts, all passed.
        """
        from .errors import UsageError
        from .session.marker import parse_request

        try:
            asked = parse_request(methods, options, what="ppl_guard.check")
        except UsageError as error:
            fail(str(error))
        if isinstance(model, tuple):
            model, tokenizer = _split_pair(model)
        if model is None:
            fail("ppl_guard.check: model is None")
        return _judge(
            self._request.node,
            asked,
            what=model,
            tokenizer=tokenizer,
            origin="ppl_guard.check",
        )


def judge_marked(item: pytest.Function, returned: Any) -> None:
    """Judge what a marked test has returned; None stands for the checkpoint."""
    asked = marker_request(item)
    assert asked is not None
    tokenizer = None
    if isinstance(returned, tuple):
        returned, tokenizer = _split_pair(returned)
    _judge(item, asked, what=returned, tokenizer=tokenizer, origin="@pytest.mark.ppl")


def _split_pair(returned: tuple[Any, ...]) -> tuple[Any, Any]:
    """``(model, tokenizer)`` of a pair; fails the test for any other tuple."""
    if len(returned) != 2:
        fail(f"expected (model, tokenizer), not a tuple of {len(returned)}")
    return returned[0], returned[1]


def _judge(
    item: pytest.Item, asked: Request, *, what: Any, tokenizer: Any, origin: str
) -> list[Verdict]:
    """Judge what a marker or ``check`` asks for; fail the test if it does not pass."""
    from .errors import PplguardError
    from .session.failing import fail_gates
    from .session.setup import guard_of

    guard = guard_of(item.config)
    # A test may bring a model for a checkpoint that was not given, but not rely on it.
    own_tokenizer = tokenizer is not None or isinstance(what, str | os.PathLike)
    if asked.checkpoint not in guard.targets and not (
        what is not None and asked.checkpoint is not None and own_tokenizer
    ):
        _skip_without(item, asked.checkpoint)
    before = len(guard.outbox.verdicts)
    try:
        verdicts = guard.judge_request(
            asked, what=what, tokenizer=tokenizer, nodeid=item.nodeid, origin=origin
        )
    except PplguardError as error:
        failed = guard.outbox.verdicts[before:]
        failed.append(
            guard.error(
                asked.checkpoint or ", ".join(guard.targets) or "-",
                ", ".join(asked.methods),
                "perplexity",
                error,
            )
        )
        fail_gates(failed)
    if not all(verdict.passed for verdict in verdicts):
        fail_gates(verdicts)
    return verdicts


def marker_request(item: pytest.Item) -> Request | None:
    """What the test's ``ppl`` marker asks for; None where it has none of its own.

    Raises:
        UsageError: bad arguments.
    """
    from .session.marker import parse_request

    marker = item.get_closest_marker("ppl")
    if marker is None or not isinstance(item, pytest.Function):
        return None
    return parse_request(marker.args, marker.kwargs, what="@pytest.mark.ppl")


def uses_checkpoint(item: pytest.Item) -> bool:
    """Whether a Python test may need a checkpoint in memory."""
    return isinstance(item, pytest.Function) and (
        item.get_closest_marker("ppl") is not None
        or any(name in FIXTURES for name in item.fixturenames)
    )


def needed_checkpoint(item: pytest.Item) -> str | None:
    """The checkpoint that a Python test will ask for, None where that is not plain."""
    from .errors import UsageError
    from .session.setup import guard_of

    guard = guard_of(item.config)
    try:
        asked = marker_request(item)
        if asked is not None:
            return guard.checkpoint_of(asked)
    except UsageError:
        return None
    return next(iter(guard.targets)) if len(guard.targets) == 1 else None


def _load(request: pytest.FixtureRequest, *, lend: bool = False) -> Any:
    from .errors import PplguardError
    from .session.marker import Request
    from .session.setup import guard_of

    guard = guard_of(request.config)
    try:
        asked = marker_request(request.node) or Request(methods=())
        _skip_without(request.node, asked.checkpoint)
        guard.reclaim()
        name = guard.checkpoint_of(asked)
        return guard.store.lend(name) if lend else guard.store.share(name)
    except PplguardError as error:
        fail(str(error))


def check_marked(item: pytest.Function) -> None:
    """Skip a marked test without any checkpoint; fail one that cannot be judged."""
    import unittest

    from .errors import UsageError

    if item.cls is not None and issubclass(item.cls, unittest.TestCase):
        fail(
            "@pytest.mark.ppl does not work on methods of unittest.TestCase: pytest "
            "does not run them as functions; use a plain test function"
        )
    try:
        marker_request(item)
    except UsageError as error:  # a marker of one parameter set
        fail(str(error))
    _skip_without(item, None)


def _skip_without(item: pytest.Item, checkpoint: str | None) -> None:
    """Skip, or fail, a test whose checkpoint was not given; None: any will do."""
    from .session.setup import guard_of

    guard = guard_of(item.config)
    if checkpoint in guard.targets or (checkpoint is None and guard.targets):
        return
    reason = (
        "needs a checkpoint: give --ppl-model [NAME=]PATH"
        if checkpoint is None
        else f"needs the checkpoint {checkpoint}: give --ppl-model {checkpoint}=PATH"
    )
    if guard.options.require:
        fail(f"{item.nodeid} {reason} (ppl_require is set)")
    pytest.skip(reason)
