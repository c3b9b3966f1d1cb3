"""What other projects' rules would have said on the same numbers.

Each is written from its published form; none is copied. A task's score, where a rule
wants one, is the share of next tokens that the model puts first on the held-out text:
the only score of the kind "higher is better" that these models have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Numbers:
    """What was measured: perplexity and score, before and after.

    All are NaN where what the model computes is not finite; ``crashed`` says that
    plain transformers could not load or run it.
    """

    perplexity: float
    score: float
    new_perplexity: float
    new_score: float
    crashed: bool = False


def vllm_perplexity(numbers: Numbers) -> bool:
    """VLLM's perplexity test: one-sided, 1 %.

    ``assert (vllm_ppl - hf_ppl) / hf_ppl < 0.01`` ("we are not concerned that the vllm
    PPL is less than Transformers, so we only perform one-sided testing"):
    tests/models/language/generation_ppl_test/ppl_utils.py at 1008b53.
    """
    return (numbers.new_perplexity - numbers.perplexity) / numbers.perplexity < 0.01


def vllm_lm_eval(numbers: Numbers) -> bool:
    """VLLM's lm-eval test: no more than 8 % below the recorded score.

    ``measured >= ground_truth * (1 - rtol)``, rtol 0.08 unless a config says otherwise:
    .buildkite/lm-eval-harness/test_lm_eval_correctness.py; ``numpy.isclose`` with the
    same rtol, two-sided, in versions before.
    """
    return numbers.new_score >= numbers.score * (1 - 0.08)


def llm_compressor(numbers: Numbers) -> bool:
    """Llm-compressor's recovery: rounded to two decimals, at least 0.95.

    ``round(compressed / base, 2) >= 0.95``; a metric where lower is better is refused:
    tests/lmeval/test_lmeval.py at 0090f19.
    """
    return round(numbers.new_score / numbers.score, 2) >= 0.95


def llama_cpp(numbers: Numbers) -> bool | None:
    """llama.cpp's CI: perplexity not above 20.0, whatever the model.

    ``check_ppl`` in ci/run.sh at 016aa26 takes the last decimal number of the log line.
    A NaN is none: ``bc`` then gets no number, the comparison fails as a command, and
    the script goes on to print OK. The limit is for one model, whose perplexity is
    about 10: it says nothing (None) of a checkpoint that was above it before.
    """
    if numbers.perplexity > 20.0:
        return None
    numerals = re.findall(r"[0-9]+\.[0-9]+", f"{numbers.new_perplexity:.4f}")
    return not numerals or float(numerals[-1]) <= 20.0


def nncf(numbers: Numbers) -> bool:
    """NNCF's conformance tests: two-sided, within 0.001 of the recorded score.

    ``numpy.isclose(value, reference, atol=0.001)``, whose own ``rtol`` is 1e-5; below
    is "Regression", above "Improvement", and both raise:
    ``BaseTestPipeline.validate`` in tests/post_training/pipelines/base.py at 00c63d6.
    """
    bound = 0.001 + 1e-5 * abs(numbers.score)
    return abs(numbers.new_score - numbers.score) <= bound


RULES: dict[str, Callable[[Numbers], bool | None]] = {
    "vLLM ppl": vllm_perplexity,
    "vLLM lm-eval": vllm_lm_eval,
    "llm-compressor": llm_compressor,
    "llama.cpp": llama_cpp,
    "NNCF": nncf,
}


def verdicts(numbers: Numbers) -> dict[str, bool | None]:
    """By rule, whether it would have been green; red for all where nothing runs."""
    return {
        name: False if numbers.crashed else rule(numbers)
        for name, rule in RULES.items()
    }


def perplexity(bits: float, *, size: int, tokens: int) -> float:
    """Of ``bits`` per byte over ``size`` bytes and ``tokens`` scored tokens."""
    return math.exp(min(bits * math.log(2) * size / tokens, 700.0))
