"""Replicas: what handing out costs, what two cores give, kills, and 256 of them.

``python -m benchmarks --only cluster``; ``python -m benchmarks.cluster --faults 20``
only kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .figures import MB, Figure, render
from .processes import HERE, run_python
from .scoring import why_not
from .settings import Settings
from .simulated_cluster import Fault, Outcome, SimulatedCluster

Raw = dict[str, Any]

REPLICAS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WINDOWS, CHECKPOINTS = 166, 20
LAYOUT = 3
"""Replicas of each checkpoint where 20 are measured side by side: ``-n 20``."""
PROOF = 2.0
"""Windows' time that each replica's proof of the chunked head takes."""
KILLS = 20
_SEEDS = 20
_RESTART = 60.0


def measure_cluster(settings: Settings) -> Raw:
    """Real replicas of SmolLM2 and of the demo, then the schedule alone."""
    found: Raw = {"absent": why_not("smollm2") or why_no_cores()}
    if not found["absent"]:
        pairs, windows = ("1", "6") if settings.quick else ("2", "32")
        found["speed"] = process("speed", pairs, windows)
        peaks = {name: process("driver", name)["peak"] for name in ("demo", "smollm2")}
        found["driver"] = peaks
    found["faults"] = process("faults", "2" if settings.quick else str(KILLS))
    # A window of a 7B model on a GPU takes about as long as this one on a core.
    window = window_seconds(found["speed"]) if "speed" in found else 1.0
    found["window"] = window
    found["simulated"] = list(simulate(window, 3 if settings.quick else _SEEDS))
    return found


def why_no_cores() -> str:
    cores = getattr(os, "sched_getaffinity", lambda _: ())(0)
    return "" if len(cores) > 1 else "needs two cores, and Linux"


def process(*arguments: str) -> Raw:
    """What the process with the real replicas prints last."""
    printed = run_python(
        str(HERE / "cluster_process.py"), *arguments, extra={"OMP_NUM_THREADS": "1"}
    )
    answer: Raw = json.loads(printed.splitlines()[-1])
    return answer


def window_seconds(speed: Raw) -> float:
    """Of one window on one core."""
    ones = [run for run in speed["runs"] if run["replicas"] == 1]
    return float(statistics.median(run["worked"] / run["windows"] for run in ones))


# --------------------------------------------------------------------------- simulation


def _usual(replicas: int, window: float, seed: int) -> SimulatedCluster:
    made = random.Random(seed)
    wobble = [made.uniform(0.97, 1.03) for _ in range(64)]
    return SimulatedCluster(
        [window] * WINDOWS,
        [1.0] * replicas,
        proof=PROOF * window,
        jitter=lambda portion: wobble[portion % 64],
    )


def _stragglers(replicas: int, window: float, seed: int) -> SimulatedCluster:
    made = random.Random(seed)
    speeds = [0.25 if made.random() < 0.1 else 1.0 for _ in range(replicas)]
    return SimulatedCluster([window] * WINDOWS, speeds, proof=PROOF * window)


def _kills(replicas: int, window: float, seed: int) -> SimulatedCluster:
    made = random.Random(seed)
    end = WINDOWS * window / replicas
    faults = [
        Fault(slot, made.uniform(0, end), "kill")
        for slot in range(replicas)
        if made.random() < 0.1
    ]
    return SimulatedCluster(
        [window] * WINDOWS,
        [1.0] * replicas,
        proof=PROOF * window,
        restart=_RESTART,
        faults=faults,
    )


CASES: dict[str, Callable[[int, float, int], SimulatedCluster]] = {
    "equal replicas": _usual,
    "a tenth at a quarter of the speed": _stragglers,
    "a tenth killed": _kills,
}


def simulate(window: float, seeds: int) -> Iterator[Raw]:
    """Median seconds and waste of each case and number of replicas."""
    for case, make in CASES.items():
        for replicas in REPLICAS:
            outcomes = [make(replicas, window, seed).run() for seed in range(seeds)]
            yield {
                "case": case,
                "replicas": replicas,
                "seconds": statistics.median(map(_seconds, outcomes)),
                "waste": statistics.median(one.waste for one in outcomes),
            }


def _seconds(outcome: Outcome) -> float:
    if outcome.seconds is None:
        raise SystemExit("a simulated run did not end")
    return outcome.seconds


def ideal(raw: Raw, replicas: int) -> float:
    """Seconds of windows alone, shared out without a rest."""
    return float(WINDOWS * raw["window"] / replicas)


def side_by_side(raw: Raw, replicas: int = 64) -> float:
    """Efficiency of 20 checkpoints at once, three replicas each, of all that there are.

    Replicas that no checkpoint gets stand idle, and count.
    """
    window = float(raw["window"])
    outcomes = [_usual(LAYOUT, window, seed).run() for seed in range(CHECKPOINTS)]
    end = max(map(_seconds, outcomes))
    return CHECKPOINTS * WINDOWS * window / (end * replicas)


def replayed(raw: Raw, replicas: int) -> float | None:
    """Simulated over real seconds, of the runs that were real."""
    if "speed" not in raw:
        return None
    ratios: list[float] = []
    for run in raw["speed"]["runs"]:
        if run["replicas"] != replicas:
            continue
        window = run["worked"] / run["windows"]
        proof = run["proved"] / replicas
        made = SimulatedCluster(
            [window] * run["windows"], [1.0] * replicas, proof=proof
        )
        ratios.append(_seconds(made.run()) / run["seconds"])
    return statistics.median(ratios)


# ------------------------------------------------------------------------------ figures


def cluster_figures(raw: Raw) -> list[Figure]:
    """What is promised of replicas."""
    overhead = gain = larger = None
    why = alone = raw["absent"]
    if "driver" in raw:
        peaks = raw["driver"]
        larger = (peaks["smollm2"] - peaks["demo"]) / MB
        alone = f"{peaks['demo'] / MB:.0f} MB with the demo; a larger vocabulary"
    if "speed" in raw:
        runs = raw["speed"]["runs"]
        ones = [run for run in runs if run["replicas"] == 1]
        twos = {run["turn"]: run for run in runs if run["replicas"] == 2}
        overhead = 100 * statistics.median(
            (run["seconds"] - run["proved"]) / run["worked"] - 1 for run in ones
        )
        gain = statistics.median(
            run["seconds"] / twos[run["turn"]]["seconds"] for run in ones
        )
        longest = statistics.median(run["worked"] / run["portions"] for run in ones)
        why = (
            f"median of {len(ones)} pairs, SmolLM2, windows of {raw['speed']['window']}"
        )
    kills = raw["faults"]["kills"]
    equal = sum(one["equal"] for one in kills)
    figures = [
        Figure(
            "handing out portions, beyond scoring",
            overhead,
            "%",
            5,
            why if overhead is None else f"portions of {longest:.1f} s",
        ),
        Figure("two replicas on two cores, one on one = 1", gain, "x", 1.7, why, True),
        Figure(
            "the driver's memory, what 538 MB of weights add", larger, "MB", 50, alone
        ),
        Figure(
            "runs with a replica killed, equal bit for bit",
            100 * equal / len(kills),
            "%",
            100,
            f"{len(kills)} kills at random moments, {raw['faults']['windows']} windows",
            True,
        ),
        Figure(
            f"efficiency, {CHECKPOINTS} checkpoints on 64 replicas",
            side_by_side(raw),
            "x",
            0.85,
            f"simulated: -n {CHECKPOINTS} with --ppl-replicas {LAYOUT}, {WINDOWS} "
            "windows each",
            True,
        ),
    ]
    for replicas in (1, 2):
        figures.append(
            Figure(
                f"simulated / real seconds, {replicas} replica{'s' * (replicas > 1)}",
                replayed(raw, replicas),
                "x",
                note=raw["absent"],
            )
        )
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Kill replicas of the demo, or do all."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cluster", description=__doc__
    )
    parser.add_argument("--faults", type=int, metavar="N", help="only kill, N times")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    if options.faults is None:
        print(render(cluster_figures(measure_cluster(Settings(quick=options.quick)))))
        return 0
    kills = process("faults", str(options.faults))["kills"]
    for one in kills:
        print(
            f"killed after {one['after']:.2f} s of {one['usual']:.2f} s: "
            f"{one['seconds']:.2f} s, {'equal' if one['equal'] else 'NOT EQUAL'}"
        )
    return int(not all(one["equal"] for one in kills))


if __name__ == "__main__":
    sys.exit(main())
