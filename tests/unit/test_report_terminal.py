"""Lines broken at a terminal's width, and failure texts laid out for it."""

from __future__ import annotations

from msgspec.structs import replace

from pytest_pplguard.report import failure_lines, failure_text, summary_lines, wrapped
from pytest_pplguard.values import Outcome, Verdict

COMMAND = (
    "pytest baselines/llama-2-7b.yaml::wanda-50::lm-eval/wikitext:4096 --ppl-model "
    "llama-2-7b/wanda-50=/checkpoints/llama-2-7b/wanda-50 --ppl-update"
)
VERDICT = Verdict(
    "llama-2-7b/wanda-50",
    "lm-eval/wikitext:4096",
    "word_perplexity",
    Outcome.REGRESSED,
    False,
    11.22,
    11.5,
    0.025,
    allowed=(11.1642, 11.2761),
    gate="rel 0.005, baselines/llama-2-7b.yaml:12",
    where=(
        "the whole text moved: 83 of 83 windows are worse, by 0.025 +- 0.003 nats a "
        "token",
    ),
    reasons=(
        "so it was with `pplguard measure MODEL --window 4096 --limit 12 --stride 8`",
    ),
    command=COMMAND,
)


def lay_out(width: int | None) -> list[str]:
    return failure_lines(
        failure_text(VERDICT), width=width, style=lambda text, _: text, shown=set()
    )


def test_a_failure_at_80_columns() -> None:
    assert "\n".join(lay_out(80)) == (
        """\
llama-2-7b/wanda-50 lm-eval/wikitext:4096: word_perplexity regressed by 2.50 %
  baseline     11.22
  measured     11.5
  allowed      11.1642 .. 11.2761 (rel 0.005, baselines/llama-2-7b.yaml:12)
  because      so it was with
               `pplguard measure MODEL --window 4096 --limit 12 --stride 8`
  where        the whole text moved: 83 of 83 windows are worse, by
               0.025 +- 0.003 nats a token
  to accept    """
        + COMMAND
    )


def test_a_failure_in_a_log_is_the_text_itself() -> None:
    assert "\n".join(lay_out(None)) == failure_text(VERDICT)


def test_lines_about_a_checkpoint_are_shown_with_its_first_failure() -> None:
    lost = ("layer 2, all projections: mask lost, 50.0 % -> 0.0 %", "the rest is same")
    first = replace(VERDICT, changes=lost)
    other = replace(first, metric="byte_perplexity", where=())
    another = replace(first, changes=("layer 3: scaled by 1.04?", "the rest is same"))
    short = replace(first, changes=("other weights",))
    shown: set[str] = set()

    def about_checkpoint(verdict: Verdict) -> list[str]:
        laid_out = failure_lines(
            failure_text(verdict), width=100, style=lambda text, _: text, shown=shown
        )
        return [line for line in laid_out if line.startswith("  checkpoint")]

    assert about_checkpoint(first) == [
        f"  checkpoint   {lost[0]}",
        "  checkpoint   the rest is same",
    ]
    assert about_checkpoint(other) == [
        f"  checkpoint   {lost[0]} ... (in full further up)"
    ]
    assert about_checkpoint(another) == [
        "  checkpoint   layer 3: scaled by 1.04?",
        "  checkpoint   the rest is same",
    ]
    assert [*map(about_checkpoint, (short, short))] == 2 * [
        ["  checkpoint   other weights"]
    ]
    # What follows in the same failure is not cut with it.
    everything = failure_lines(
        failure_text(first), width=None, style=lambda text, _: text, shown=shown
    )
    assert everything == [
        line.replace("-> 0.0 %", "-> 0.0 % ... (in full further up)")
        for line in failure_text(first).split("\n")
        if "the rest is same" not in line
    ]


def test_a_narrow_terminal_breaks_no_word_and_no_command() -> None:
    lines = lay_out(40)
    assert lines[-1] == f"  to accept    {COMMAND}"
    words = " ".join(lines).split()
    assert words == failure_text(VERDICT).split()


def test_headlines_and_commands_are_styled() -> None:
    lines = failure_lines(
        failure_text(VERDICT),
        width=None,
        style=lambda text, style: f"<{style}:{text}>",
        shown=set(),
    )
    assert lines[0].startswith("<bold red:llama-2-7b/wanda-50 ")
    assert lines[-1] == f"  to accept    <bold:{COMMAND}>"
    assert not any("<" in line for line in lines[1:-1])


def test_wrapping_keeps_lines_and_hangs() -> None:
    text = "one two three\nfour five"
    assert wrapped(text, None, first="* ", rest="  ") == [
        "* one two three",
        "  four five",
    ]
    assert wrapped("x" * 30 + " y", 25, rest="  ") == ["x" * 30, "  y"]


LONG = Verdict(
    "meta-llama--Llama-2-7b-hf/wanda-unstructured-50",
    "lm-eval/mmlu_high_school_european_history:4096:shots5",
    "exact_match,flexible-extract",
    Outcome.NOT_COMPARABLE,
    False,
    1234567.0,
    7654321.0,
    5.2,
)


def test_names_that_are_too_long_have_their_own_line() -> None:
    assert "\n".join(summary_lines([LONG])) == (
        """\
meta-llama--Llama-2-7b-hf/wanda-unstructured-50
                               baseline   measured     change  outcome
  lm-eval/mmlu_high_school_european_history:4096:shots5
    exact_match,flexible-extract
                             1.23457e+06 7.65432e+06  +520.00 %  NOT COMPARABLE
1 not comparable"""
    )


def test_colours_leave_the_table_in_its_place() -> None:
    marks = []

    def style(text: str, style: str) -> str:
        marks.append((text.strip(), style))
        return text

    plain = summary_lines([LONG, VERDICT])
    assert summary_lines([LONG, VERDICT], style=style) == plain
    assert ("REGRESSED", "bold red") in marks
    assert ("+2.50 %", "red") in marks
    assert ("NOT COMPARABLE", "bold red") in marks
    assert ("+520.00 %", "red") not in marks  # what is not comparable is not judged
