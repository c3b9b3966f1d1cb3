"""lm-eval's own ``wikitext`` task and evaluator over our pages, our scorer behind it.

lm-eval keeps its definition of documents, words and metrics; only the log-likelihoods
come from here. ``lm_eval.models.huggingface`` is not imported: it costs seconds, and
would load the model a second time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator

from .errors import MeasurementError
from .lm_eval_names import TASKS, quiet
from .protocols import perplexity

Loglikelihoods = Callable[[list[str]], list[float]]
"""Total log-likelihood (nats) of each of the texts."""

_TASK_FILE = TASKS / "wikitext" / "wikitext.yaml"


class PagesResult:
    """What lm-eval made of the pages: its metrics, and the units it divided by."""

    def __init__(self, metrics: dict[str, float], units: dict[str, int]) -> None:
        self.metrics = metrics
        self.units = units


def evaluate_wikitext(
    pages: Sequence[str], loglikelihoods: Loglikelihoods
) -> PagesResult:
    """Run lm-eval's ``wikitext`` task over ``pages``.

    ``loglikelihoods`` gets the detokenised pages in order. Not ``simple_evaluate``: it
    seeds random, numpy and torch in the user's session and runs git.

    Raises:
        InvalidLossError: the losses are beyond any finite perplexity.
        MeasurementError: lm-eval returned no number for one of the task's metrics.
    """

    def finite(texts: list[str]) -> list[float]:
        # lm-eval's own weighted_perplexity would overflow at the end.
        totals = loglikelihoods(texts)
        for unit, count in units.items():
            perplexity(-sum(totals) / count, unit.removesuffix("s"))
        return totals

    with quiet():
        task = _pages_task(pages)
        units = _units(task, pages)
        results = lm_eval.evaluator.evaluate(
            lm=_RollingLM(finite),
            task_dict={"wikitext": task},
            bootstrap_iters=0,
            log_samples=False,
        )
    values = results["results"]["wikitext"]
    metrics = {}
    for metric in task.aggregation():
        value = values.get(f"{metric},none")
        if not isinstance(value, float):
            raise MeasurementError(
                f"lm-eval {lm_eval.__version__} gave {value!r} for the metric {metric} "
                "of its task wikitext"
            )
        metrics[metric] = value
    return PagesResult(metrics, units)


def units_of_wikitext(pages: Sequence[str]) -> dict[str, int]:
    """Words and bytes of ``pages``, as :func:`evaluate_wikitext` divides by them."""
    with quiet():
        return _units(_pages_task(pages), pages)


def _units(task: Any, pages: Sequence[str]) -> dict[str, int]:
    """Words and bytes of all pages, as the task's own ``process_results`` counts."""
    counts = [task.process_results({"page": page}, (0.0,)) for page in pages]
    return {
        "words": sum(count["word_perplexity"][1] for count in counts),
        "bytes": sum(count["byte_perplexity"][1] for count in counts),
    }


class _RollingLM(lm_eval.api.model.LM):  # type: ignore[misc]
    """lm-eval's view of our scorer, for the task ``wikitext``."""

    def __init__(self, loglikelihoods: Loglikelihoods) -> None:
        super().__init__()
        self._loglikelihoods = loglikelihoods

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        return self._loglikelihoods([request.args[0] for request in requests])

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        raise _unexpected("loglikelihood")

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        raise _unexpected("generate_until")


def _unexpected(request: str) -> MeasurementError:
    return MeasurementError(
        f"lm-eval {lm_eval.__version__} asked for {request}; its task wikitext is "
        "expected to ask for loglikelihood_rolling only"
    )


def _pages_task(pages: Sequence[str]) -> Any:
    """The stock task, reading ``pages`` instead of the Hub."""
    import datasets

    class PagesTask(lm_eval.api.task.ConfigurableTask):  # type: ignore[misc]
        def download(self, *args: Any, **options: Any) -> None:
            test = datasets.Dataset.from_dict({"page": list(pages)})
            self.dataset = datasets.DatasetDict({"test": test})

        def build_all_requests(self, *args: Any, **options: Any) -> None:
            # Its bar counts pages being wrapped, a matter of milliseconds.
            with contextlib.redirect_stderr(io.StringIO()):
                super().build_all_requests(*args, **options)

    # Splits that a local text does not have; the task only scores `test`.
    config = {**_task_config(), "training_split": None, "validation_split": None}
    return PagesTask(config=config)


def _task_config() -> dict[str, Any]:
    try:
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError:  # before lm-eval 0.4.12
        from lm_eval.utils import load_yaml_config

        return dict(load_yaml_config(yaml_path=str(_TASK_FILE), mode="full"))
    return dict(load_yaml(_TASK_FILE, resolve_func=True))
