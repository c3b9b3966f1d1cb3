"""Options are pure: values in, checked values or one message out."""

from __future__ import annotations

import pytest

from pytest_pplguard.errors import UsageError
from pytest_pplguard.options import (
    Known,
    Target,
    parse_batch_size,
    parse_cap,
    parse_choice,
    parse_corpora,
    parse_error,
    parse_ray_address,
    parse_targets,
    parse_threads,
)


def known(paths: dict[str, str | None], *, existing: tuple[str, ...] = ()) -> Known:
    return Known(
        paths=paths,
        candidates=tuple(paths),
        exists=lambda path: path in existing,
        same_path=lambda one, other: one.rstrip("/") == other,
    )


@pytest.mark.parametrize("text", ["1", "16"])
def test_batch_sizes(text: str) -> None:
    assert parse_batch_size(text, option="-b") == int(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "1e3"])
def test_no_batch_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_batch_size(text, option="-b")
    assert str(caught.value) == (
        f"-b: {text!r} is not a batch size; give a whole number from 1, or auto"
    )


@pytest.mark.parametrize(
    "text",
    [
        "head:6379",
        "10.0.0.1:6379",
        "[fe80::1]:6379",
        "ray://head:10001",
        "auto",
        "local",
    ],
)
def test_addresses_of_a_ray_cluster(text: str) -> None:
    assert parse_ray_address(text, option="-a") == text


@pytest.mark.parametrize(
    "text",
    ["head", "head:", ":6379", "ray://h", "Auto", "h:p", "http://head:8265", "a/b:1"],
)
def test_no_addresses_of_a_ray_cluster(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ray_address(text, option="-a")
    assert str(caught.value) == (
        f"-a: {text!r} is no address of a Ray cluster; give HOST:6379, "
        "ray://HOST:10001 or auto"
    )


def test_a_batch_size_that_is_found() -> None:
    assert parse_batch_size("auto", option="-b") == "auto"


@pytest.mark.parametrize(("text", "threads"), [("1", 1), ("16", 16)])
def test_threads(text: str, threads: int) -> None:
    assert parse_threads(text, option="-t") == threads


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "auto", ""])
def test_no_threads(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_threads(text, option="-t")
    assert str(caught.value) == (
        f"-t: {text!r} is no number of threads; give a whole number from 1"
    )


@pytest.mark.parametrize(("text", "cap"), [("0.05", 0.05), ("1e-3", 0.001), ("2", 2)])
def test_caps(text: str, cap: float) -> None:
    assert parse_cap(text, option="-c") == cap


@pytest.mark.parametrize("text", ["0", "-0.1", "nan", "inf", "some", ""])
def test_no_caps(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cap(text, option="-c")
    assert str(caught.value) == (
        f"-c: {text!r} is no cap; give nats a token above 0, for example 0.05"
    )


@pytest.mark.parametrize(("text", "error"), [("0.001", 0.001), ("0.5", 0.5)])
def test_errors_of_verdicts(text: str, error: float) -> None:
    assert parse_error(text, option="-e") == error


@pytest.mark.parametrize("text", ["0", "-0.1", "0.51", "1", "nan", "inf", "0.1%"])
def test_no_errors_of_verdicts(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_error(text, option="-e")
    assert str(caught.value) == (
        f"-e: {text!r} is no probability of a wrong verdict; give one above 0 and of "
        "at most 0.5, for example 0.001"
    )


def test_corpora_are_split_at_the_first_equals_sign() -> None:
    assert parse_corpora(["a=b=c", "d=e", "a=b=c"], option="-c") == {
        "a": "b=c",
        "d": "e",
    }


@pytest.mark.parametrize("value", ["a", "=b", "a=", ""])
def test_no_corpora(value: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=PATH"):
        parse_corpora([value], option="-c")


def test_a_choice() -> None:
    assert parse_choice("a", ("a", "b"), option="-c") == "a"
    with pytest.raises(UsageError, match=r"-c: 'x' is not one of a, b"):
        parse_choice("x", ("a", "b"), option="-c")


def test_an_existing_path_wins_over_a_known_name() -> None:
    files = known({"f/a": None}, existing=("f/a=x",))
    assert parse_targets(["f/a=x"], files) == (Target(name="f/a", spec="f/a=x"),)
    assert parse_targets(["f/a=y"], files) == (Target(name="f/a", spec="y"),)


def test_a_bare_path_means_the_only_candidate_else_the_one_whose_path_it_is() -> None:
    assert parse_targets(["x"], known({"f/a": "y"})) == (Target("f/a", "x"),)
    files = known({"f/a": "y", "f/b": "x"})
    assert parse_targets(["x/"], files) == (Target("f/b", "x/"),)


def test_several_fit() -> None:
    with pytest.raises(UsageError) as caught:
        parse_targets(["x"], known({"f/a": "x", "f/b": "x", "f/c": None}))
    assert str(caught.value) == (
        "--ppl-model x: several checkpoints have this `path:`; say which it is, for "
        "example --ppl-model f/a=x (candidates: f/a, f/b)"
    )


@pytest.mark.parametrize("more", [1, 2])
def test_a_long_list_of_candidates_is_cut(more: int) -> None:
    """But not for one name, which takes no more room than the words that replace it."""
    names = [f"f/{letter}" for letter in "abcdefghij"[: 8 + more]]
    with pytest.raises(UsageError) as caught:
        parse_targets(["x"], known(dict.fromkeys(names)))
    shown = ", ".join(names)
    if more == 2:
        shown = f"{', '.join(names[:8])} and 2 more, see `pplguard show`"
    assert str(caught.value).endswith(f"(candidates: {shown})")


def test_demo_wins_over_a_folder_of_its_name_only_where_it_is_known() -> None:
    demo: dict[str, str | None] = {"demo/dense": None, "demo/wanda-50": None}
    assert parse_targets(["demo"], known(demo, existing=("demo",))) == (
        Target("demo/dense", "demo/dense"),
        Target("demo/wanda-50", "demo/wanda-50"),
    )
    files = known({"f/a": None}, existing=("demo",))
    assert parse_targets(["demo"], files) == (Target("f/a", "demo"),)


def test_values_keep_their_order_and_count_once() -> None:
    files = known({"f/a": None, "f/b": None})
    assert parse_targets(["f/b=x", "f/a=y", "f/b=x"], files) == (
        Target("f/b", "x"),
        Target("f/a", "y"),
    )
