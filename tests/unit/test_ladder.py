"""The order of a ladder's rungs, and which methods can be its ends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.errors import UsageError
from pytest_pplguard.measure.ladder import State, check_ends, ends_of, path
from pytest_pplguard.protocols import METHODS, PROTOCOLS, Cut, LmEval
from pytest_pplguard.values import Key

WANDA, LM_EVAL = State(Cut(), 256), State(LmEval.cut, 256)


def difference(one: State, other: State) -> dict[str, tuple[Any, Any]]:
    """Properties that are not the same, with both values."""
    pairs = {
        name: (getattr(one.cut, name), getattr(other.cut, name))
        for name in Cut.__struct_fields__
    }
    pairs |= {
        "window": (one.window, other.window),
        "stride": (one.stride, other.stride),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changes(way: list[State]) -> list[tuple[str, Any, Any]]:
    found = []
    for one, other in itertools.pairwise(way):
        ((name, (before, after)),) = difference(one, other).items()
        found.append((name, before, after))
    return found


def test_from_wanda_to_lm_eval() -> None:
    assert changes(path(WANDA, LM_EVAL)) == [
        ("text", "rows", "detokenised pages"),
        ("tail", "dropped", "kept"),
        ("per_page", False, True),
        ("first", "as it is", "prefix"),
        ("tail", "kept", "filled backwards"),
        ("divisor", "tokens", "words"),
    ]


def test_strides_halves_and_means_change_where_they_can() -> None:
    cut = Cut(text="file", first="BOS in its place", scored="second half")
    strided = State(cut, 512, stride=256)
    assert changes(path(strided, LM_EVAL)) == [
        ("text", "file", "detokenised pages"),
        ("tail", "dropped", "kept"),
        ("window", 512, 256),
        ("stride", 256, None),
        ("scored", "second half", "all"),
        ("per_page", False, True),
        ("first", "BOS in its place", "prefix"),
        ("tail", "kept", "filled backwards"),
        ("divisor", "tokens", "words"),
    ]


def measurable(state: State) -> bool:
    """A cut that does what it says: a prefix ignores strides and halves."""
    cut = state.cut
    return (
        (cut.first != "prefix" or (state.stride is None and cut.scored == "all"))
        and (cut.divisor != "words" or cut.mean == "tokens")
        and (state.stride is None or state.stride <= state.window)
    )


def wastes_pages(state: State) -> bool:
    return state.cut.per_page and state.cut.tail == "dropped"


CUTS = st.builds(
    Cut,
    text=st.sampled_from(["rows", "file", "detokenised pages"]),
    per_page=st.booleans(),
    tail=st.sampled_from(["dropped", "kept", "filled backwards"]),
    first=st.sampled_from(["as it is", "BOS in its place", "prefix"]),
    scored=st.sampled_from(["all", "second half"]),
    mean=st.sampled_from(["tokens", "windows"]),
    divisor=st.sampled_from(["tokens", "words"]),
)
STATES = st.builds(
    State,
    CUTS,
    st.sampled_from([256, 512]),
    st.sampled_from([None, 128, 256, 512]),
).filter(measurable)


@given(STATES, STATES)
def test_a_way_changes_one_property_a_step_and_each_rung_is_a_cut(
    start: State, goal: State
) -> None:
    way = path(start, goal)
    assert way[0] == start
    assert way[-1] == goal
    apart = difference(start, goal)
    through_kept = set(apart.get("tail", ())) == {"dropped", "filled backwards"}
    assert len(changes(way)) == len(apart) + through_kept
    assert all(map(measurable, way))
    if not (wastes_pages(start) and wastes_pages(goal)):
        assert not any(map(wastes_pages, way[1:-1]))
    assert path(goal, start) == way[::-1]


def test_no_way_where_an_end_is_no_cut_itself() -> None:
    prefix = State(Cut(first="prefix", scored="second half"), 256)
    with pytest.raises(UsageError) as caught:
        path(prefix, State(Cut(first="prefix", scored="second half", per_page=True,
                               divisor="words", tail="kept"), 256))  # fmt: skip
    assert str(caught.value) == (
        "these two methods differ in properties that cannot be changed one by one"
    )


def test_the_ends() -> None:
    start, goal = Key.parse("wanda/demo:256"), Key.parse("lm-eval/wikitext+demo:256")
    ends = ends_of(start, goal)
    assert [(end.key, end.state, end.metric) for end in ends] == [
        (start, WANDA, "token_perplexity"),
        (goal, LM_EVAL, "word_perplexity"),
    ]


def test_methods_between_which_no_ladder_stands() -> None:
    cuts = ", ".join(name for name in PROTOCOLS if name != "kl")
    wrong = {
        ("wandb", "lm-eval"): (
            "unknown method 'wandb' (did you mean 'wanda'?): this version measures "
            f"{METHODS}"
        ),
        ("wanda", "kl"): (
            "the method kl is more than a way to cut a text, so no steps lead to it; "
            f"explain walks between {cuts}"
        ),
        ("wanda", "wanda"): (
            f"from wanda to wanda there are no steps; give two of {cuts}"
        ),
    }
    for ends, message in wrong.items():
        with pytest.raises(UsageError) as caught:
            check_ends(*ends)
        assert str(caught.value) == message


def test_two_texts_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        ends_of(Key.parse("wanda/demo:256"), Key.parse("lm-eval/wikitext:256"))
    assert str(caught.value) == (
        "wanda/demo:256 reads the text demo and lm-eval/wikitext:256 reads wikitext2: "
        "give one for both, --corpus NAME"
    )
