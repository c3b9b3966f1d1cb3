"""Gets hold of what a test function returns, which pytest would throw away."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Result:
    """What the test has returned, None before it did."""

    value: Any = None


@contextmanager
def catching_result(item: pytest.Function) -> Iterator[Result]:
    """While ``item`` runs, put its result in a box and let pytest see None.

    Around the whole call: pytest-asyncio turns an async function into another one
    before pytest's own ``pytest_pyfunc_call``, and loses the result on the way.
    """
    test, result = item.obj, Result()
    item.obj = _storing(test, result)
    try:
        yield result
    finally:
        item.obj = test


def _storing(test: Callable[..., Any], result: Result) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def asynchronous(*args: Any, **kwargs: Any) -> None:
            result.value = await test(*args, **kwargs)

        return asynchronous

    @functools.wraps(test)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        value = test(*args, **kwargs)
        if inspect.isawaitable(value):
            return value  # pytest says that it cannot run this
        result.value = value
        return None

    return synchronous
