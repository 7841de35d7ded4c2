"""Plays policies of spending rollouts against rollouts with known truth, and measures intervals and cost.

    python benchmarks/estimator.py [--quick] [--outcomes FILE] [--per-candidate 16]

Prints one JSON object. Without `--outcomes` the rollouts are simulated: 100 to 400 positions, 15 directions (3
teachers, 5 objectives); with it they are made of recorded outcomes (`docs/estimation.md` says how). `policies` are
compared at the same number of rollouts: `mse` is the median over rollouts of the mean squared error of the numerator
summed over a rollout's nodes, `ratio_to_uniform` the quotient of medians over rollouts for the worst direction,
`coverage` that of nominal 95 % intervals of the numerator.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measures import cost, first_kind, intervals, policies
from _policies import DEFAULT
from _recorded import read_worlds
from _worlds import World, simulate

SEED = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outcomes", type=Path, help="recorded outcomes, JSON lines")
    parser.add_argument("--quick", action="store_true", help="few rollouts and repetitions: minutes, not an hour")
    parser.add_argument("--rollouts", type=int, help="simulated rollouts (default 30, quick 6)")
    parser.add_argument("--repetitions", type=int, help="repetitions of every policy (default 40, quick 6)")
    parser.add_argument("--per-candidate", type=int, default=16, help="average rollouts of a candidate")
    parser.add_argument("--parts", default="policies,intervals,first_kind,cost", help="what to measure")
    arguments = parser.parse_args()
    worlds = _worlds(arguments)
    repetitions = arguments.repetitions or (6 if arguments.quick else 40)
    parts = arguments.parts.split(",")
    result: dict[str, Any] = {
        "default_policy": DEFAULT,
        "source": str(arguments.outcomes or "simulation"),
        "rollouts": len(worlds),
        "repetitions": repetitions,
        "per_candidate": arguments.per_candidate,
        "directions": len(worlds[0].directions),
        "nodes": sum(len(world.nodes) for world in worlds),
    }
    started = time.perf_counter()
    if "policies" in parts:
        result["policies"] = policies(worlds, repetitions, arguments.per_candidate)
        _note("policies", started)
    if "intervals" in parts:
        budgets = [16] if arguments.quick else [4, 16, 64]
        result["intervals"] = [intervals(worlds, 1 if arguments.quick else 3, budget) for budget in budgets]
        _note("intervals", started)
    if "first_kind" in parts and not arguments.outcomes:
        result["first_kind"] = first_kind(3 if arguments.quick else 20, arguments.per_candidate)
    if "cost" in parts and not arguments.outcomes:
        result["cost"] = cost([1_000, 10_000] if arguments.quick else [1_000, 2_000, 5_000, 10_000, 20_000])
    print(json.dumps(result, indent=2))


def _worlds(arguments: argparse.Namespace) -> list[World]:
    if arguments.outcomes:
        return read_worlds(arguments.outcomes)
    random = np.random.default_rng(SEED)
    return [simulate(random, number) for number in range(arguments.rollouts or (6 if arguments.quick else 30))]


def _note(part: str, started: float) -> None:
    print(f"{part}: done after {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
