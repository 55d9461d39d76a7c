"""Timing programs side by side: turn by turn, so that a machine that slows down slows all of them."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def seconds(programs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """Runs every program once a round, after one round that does not count.

    Args:
      programs: functions that return when their work is done.
      rounds: how often each is timed.

    Returns:
      Seconds of each round, float64 [rounds], by the programs' names.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for count in range(rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            if count > 0:
                taken[name].append(time.perf_counter() - began)
    return {name: np.asarray(times) for name, times in taken.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float, float]:
    """The rounds' ratios: median, first and third quartile."""
    quartiles = np.percentile(numerator / denominator, [50, 25, 75])
    return float(quartiles[0]), float(quartiles[1]), float(quartiles[2])
