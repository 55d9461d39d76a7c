"""Timing programs side by side: turn by turn, so that a machine that slows down slows all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
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


def scan_program(
    step: Callable[[Any, tuple[jax.Array, jax.Array]], Any],
    init: Callable[[jax.Array], Any],
    steps: int,
    runs: int = 1,
    num_keys: int = 2,
) -> Callable[[], None]:
    """A function that runs `steps` steps in a scan with a donated carry, going on from where the last call ended.

    It is compiled here, so that no call's time has compilation in it.

    Args:
      step: `step(carry, (index, keys)) -> carry`.
      init: makes the carry from a key.
      steps: steps of a call.
      runs: how many are vmapped, 1: without vmap. Run i starts at index i, so that episodes end at different times.
      num_keys: keys of a step.
    """

    def scan(carry: Any, first: jax.Array, key: jax.Array) -> Any:
        keys = jax.random.split(key, steps * num_keys).reshape(steps, num_keys)
        return jax.lax.scan(lambda carry, x: (step(carry, x), None), carry, (first + jnp.arange(steps), keys))[0]

    def start(key: jax.Array) -> Any:
        # flashbax starts with weak types, and the scan returns none: without the conversion it would be compiled twice.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), init(key))

    def inputs(call: int) -> tuple[np.ndarray | np.int32, jax.Array]:
        key = jax.random.key(call)
        return (np.arange(runs, dtype=np.int32), jax.random.split(key, runs)) if runs > 1 else (np.int32(0), key)

    state = jax.jit(start if runs == 1 else jax.vmap(start))(inputs(0)[1])  # Calls take the keys from 1 on.
    scan_all = jax.jit(scan if runs == 1 else jax.vmap(scan), donate_argnums=0).lower(state, *inputs(0)).compile()
    calls = 0

    def call() -> None:
        nonlocal state, calls
        firsts, keys = inputs(calls + 1)
        state = jax.block_until_ready(scan_all(state, firsts + np.int32(calls * steps), keys))
        calls += 1

    return call


def digest(batch: Any) -> jax.Array:
    """For each item the sum of its fields' mean magnitudes, float32 [batch_size].

    It serves as priorities: all that was sampled goes into the next state, so that XLA has to compute it.
    """
    leaves = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in jax.tree.leaves(batch)]
    return sum(jnp.mean(jnp.abs(leaf), axis=1) for leaf in leaves)
