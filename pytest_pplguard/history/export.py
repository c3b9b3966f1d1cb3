"""Sends a history to an MLflow tracking server: nothing twice, nothing by halves.

Each checkpoint of each run becomes an MLflow run with a tag that is unique for it. That
run is finished only when all of it was sent; one that an interrupted export has left is
completed by the next.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import PplguardError, UsageError
from ..values import Key
from .records import HistoryRun, Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

ID_TAG = "pplguard.id"
"""The tag that says which checkpoint of which run an MLflow run is."""

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # else minutes, where there is no server
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LONGEST_VALUE = 500
_LONGEST_NAME = 250
_AT_ONCE = 100
"""Params that MLflow takes in one request; it takes more metrics."""


def export_runs(
    runs: Sequence[HistoryRun],
    uri: str,
    *,
    experiment: str,
    checkpoints: Sequence[str] = (),
) -> tuple[int, int]:
    """Send what an MLflow tracking server does not have yet.

    A run that was deleted there is not sent again.

    Args:
        runs: of a history.
        uri: of the server, or of a folder or database of MLflow's.
        experiment: its name; it is made where there is none.
        checkpoints: only these, all where there are none.

    Returns:
        How many MLflow runs were sent, and how many were there already.

    Raises:
        UsageError: mlflow is not installed, or the experiment was deleted.
        PplguardError: the server cannot be reached, or refuses something.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError(
            "--mlflow needs the package mlflow-skinny: "
            "pip install 'pytest-pplguard[mlflow]'"
        )
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    sent = there = 0
    # Its own errors, those of its transport and of its stores have no common root.
    try:
        client = MlflowClient(tracking_uri=uri)
        place = _experiment(client, experiment)
        known = _known(client, place)
        for run in runs:
            for checkpoint, points in _by_checkpoint(run).items():
                if checkpoints and checkpoint not in checkpoints:
                    continue
                name, finished = known.get(f"{run.id}/{checkpoint}", ("", False))
                if finished:
                    there += 1
                    continue
                _send(client, place, name, run, checkpoint, points)
                sent += 1
    except PplguardError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PplguardError(
            f"--mlflow {uri}: {line} ({sent} runs were sent; the next export sends the "
            "others)"
        ) from error
    return sent, there


def _experiment(client: MlflowClient, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is None:
        return str(client.create_experiment(name))
    if known.lifecycle_stage != "active":
        raise UsageError(
            f"--experiment {name}: it was deleted on this MLflow server; restore it "
            "there, or give another name"
        )
    return str(known.experiment_id)


def _known(client: MlflowClient, experiment: str) -> dict[str, tuple[str, bool]]:
    """MLflow's id of each run that was sent, and whether that is complete or gone."""
    from mlflow.entities import ViewType

    known: dict[str, tuple[str, bool]] = {}
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment], run_view_type=ViewType.ALL, max_results=1000, page_token=token
        )
        for run in page:
            name = run.data.tags.get(ID_TAG)
            if name is not None:
                gone = run.info.lifecycle_stage != "active"
                finished = gone or run.info.status == "FINISHED"
                known[name] = run.info.run_id, finished
        token = page.token
        if not token:
            return known


def _by_checkpoint(run: HistoryRun) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in run.points:
        found.setdefault(point.checkpoint, []).append(point)
    return found


def _send(
    client: MlflowClient,
    experiment: str,
    name: str,
    run: HistoryRun,
    checkpoint: str,
    points: Sequence[Point],
) -> None:
    """Send one MLflow run, or complete the one called ``name``."""
    from mlflow.entities import Metric, Param

    start = round(datetime.datetime.fromisoformat(run.time).timestamp() * 1000)
    if not name:
        short = f" @ {run.commit[:8]}" if run.commit else ""
        created = client.create_run(
            experiment,
            start_time=start,
            tags={ID_TAG: f"{run.id}/{checkpoint}", **_tags(run, points)},
            run_name=f"{checkpoint}{short}",
        )
        name = created.info.run_id
    names = _Names()
    metrics = [
        Metric(names.of(metric), value, start, 0)
        for metric, value in _metrics(run, checkpoint, points)
    ]
    names = _Names()
    params = (
        Param(names.of(param), str(value)[:_LONGEST_VALUE])
        for param, value in _params(run, checkpoint, points).items()
    )
    while some := list(islice(params, _AT_ONCE)):
        client.log_batch(name, params=some)
    rest = iter(metrics)
    while these := list(islice(rest, _AT_ONCE)):
        client.log_batch(name, metrics=these)
    seconds = sum({p.key: p.seconds or 0.0 for p in points if not p.cached}.values())
    client.set_terminated(name, "FINISHED", start + round(1000 * seconds))


def _tags(run: HistoryRun, points: Sequence[Point]) -> dict[str, str]:
    failed = [point.outcome for point in points if not point.passed]
    tags = {
        "commit": run.commit,
        "branch": run.branch,
        "dirty": str(run.dirty).lower(),
        "job": run.job,
        "outcome": ", ".join(dict.fromkeys(failed)) or "passed",
        "complete": str(run.complete).lower(),
        "mlflow.source.git.commit": run.commit,
        "mlflow.source.git.branch": run.branch,
    }
    return {name: value[:_LONGEST_VALUE] for name, value in tags.items() if value}


def _metrics(
    run: HistoryRun, checkpoint: str, points: Sequence[Point]
) -> Iterator[tuple[str, float]]:
    """Names and values; no name is a folder of another, for stores of files."""
    for point in points:
        name = f"{point.key}/{point.metric}"
        for suffix, value in (
            ("", point.measured),
            (".baseline", point.baseline),
            (".change", point.change),
        ):
            if value is not None:
                yield name + suffix, value
    sparsity = run.sparsity(checkpoint)
    if sparsity is not None:
        yield "sparsity.total", sparsity


def _params(
    run: HistoryRun, checkpoint: str, points: Sequence[Point]
) -> dict[str, object]:
    weights = next((w for w in run.weights if w.checkpoint == checkpoint), None)
    params: dict[str, object] = {"checkpoint": checkpoint, "pplguard": run.version}
    if weights is not None:
        params |= {"spec": weights.spec, "weights_digest": weights.digest}
    params["keys"] = ", ".join(dict.fromkeys(point.key for point in points))
    for point in points:
        if point.windows_digest:
            params |= {
                f"{point.key}/window": Key.parse(point.key).window,
                f"{point.key}/windows": point.windows,
                f"{point.key}/windows_digest": point.windows_digest,
            }
    params |= _environment(run.environment.get(checkpoint, {}))
    return {name: value for name, value in params.items() if value not in ("", None)}


def _environment(by_key: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """What keys have in common by its name, the rest also by key."""
    found: dict[str, dict[str, Any]] = {}
    for key, environment in by_key.items():
        for name, value in environment.items():
            found.setdefault(name, {})[key] = value
    params: dict[str, object] = {}
    for name, values in found.items():
        if len({json.dumps(value) for value in values.values()}) == 1:
            params[f"environment/{name}"] = next(iter(values.values()))
        else:
            params |= {f"{key}/{name}": value for key, value in values.items()}
    return params


class _Names:
    """Names that MLflow takes, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, name: str) -> str:
        """The same for the same names in the same order: an export can be repeated."""
        parts = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name).split("/")
        # A name is a path to MLflow: no empty parts in it, and no dots alone.
        legal = "/".join(p if p.strip(". ") else f"_{p.strip()}" for p in parts)
        legal = legal[: _LONGEST_NAME - 4]
        given, number = legal, 1
        while given in self._given:
            number += 1
            given = f"{legal}_{number}"
        self._given.add(given)
        return given
