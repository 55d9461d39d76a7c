"""What the buffer adds to a training iteration: the loop of examples/bitflip.py over the same loop without replay.

    taskset -c 0 python examples/benchmarks/step_cost.py
    taskset -c 0 python examples/benchmarks/step_cost.py --seeds 1 8 --capacities 10000 1000000

The floor acts, steps the environment and updates on one fixed batch. States are donated, so that no allocation is counted.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from interleaved import ratio, seconds

sys.path.insert(0, str(Path(__file__).parent.parent))
import bitflip
import herjax


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times training iterations with and without replay."""

    seeds: tuple[int, ...] = (1, 8, 32)
    """Seeds that are vmapped."""
    batch_sizes: tuple[int, ...] = (64,)
    """Transitions in an update."""
    capacities: tuple[int, ...] = (200_000,)
    """Transitions held; the first is the one that the others are compared with."""
    steps: int = 1000
    """Iterations in one timed call."""
    rounds: int = 9
    """Timed calls of each program."""
    out: Path = Path("results/step_cost.json")
    """Where the figures go."""


def program(step: Callable[..., Any], config: bitflip.Config, seeds: int, steps: int) -> Callable[[], None]:
    """A function that runs `steps` iterations of all seeds, going on from where the last call ended."""

    def iterate(loops: Any, keys: jax.Array) -> Any:
        indices = jnp.arange(steps)
        return jax.vmap(lambda loop, key: jax.lax.scan(step, loop, (indices, jax.random.split(key, steps)))[0])(loops, keys)

    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.block_until_ready(jax.jit(jax.vmap(partial(bitflip.start, config)))(keys))
    run = jax.jit(iterate, donate_argnums=0)
    calls = 0

    def call() -> None:
        nonlocal state, calls
        calls += 1
        state = jax.block_until_ready(run(state, jax.random.split(jax.random.key(calls), seeds)))

    return call


def floor_step(config: bitflip.Config, loop: bitflip.Loop, step_and_key: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
    """`bitflip.train_step` without a buffer: every batch is the same."""
    step, key = step_and_key
    outcome = bitflip.interact(config, loop, key)
    agent, _, loss = bitflip.update(config, loop.agent, fixed_batch(config), step)
    return bitflip.Loop(agent, loop.buffer, outcome.env_state, outcome.observation), loss


def fixed_batch(config: bitflip.Config) -> herjax.Sample:
    """A batch of random bits."""
    size, bits = config.batch_size, config.num_bits
    rng = np.random.default_rng(0)
    observation, following, goal = rng.integers(0, 2, (3, size, bits)).astype(np.float32)
    return herjax.Sample(
        transition=bitflip.Transition(
            jnp.asarray(observation), jnp.asarray(rng.integers(0, bits, size)), jnp.asarray(following)
        ),
        goal=jnp.asarray(goal),
        reward=-jnp.ones(size),
        terminated=jnp.zeros(size, bool),
        is_hindsight=jnp.ones(size, bool),
        indices=jnp.arange(size),
        probabilities=jnp.ones(size),
        weights=jnp.ones(size),
    )


def measure(settings: Settings, seeds: int, batch_size: int) -> list[dict[str, Any]]:
    """A row for each kind of replay and each capacity, with its ratio to the floor and to the first capacity."""
    config = bitflip.Config(batch_size=batch_size)
    small = dataclasses.replace(config, capacity=config.max_episode_length, prioritized=False)
    programs = {"floor": program(partial(floor_step, small), small, seeds, settings.steps)}
    for prioritized in (False, True):
        for capacity in settings.capacities:
            variant = dataclasses.replace(config, prioritized=prioritized, capacity=capacity)
            name = f"{'prioritised' if prioritized else 'uniform'} {capacity:,}"
            programs[name] = program(partial(bitflip.train_step, variant), variant, seeds, settings.steps)
    taken = seconds(programs, settings.rounds)
    rows = []
    for name, times in taken.items():
        first = f"{name.split()[0]} {settings.capacities[0]:,}" if name != "floor" else "floor"
        rows.append(
            {
                "seeds": seeds,
                "batch_size": batch_size,
                "replay": name,
                "microseconds_per_seed": float(np.median(times)) / settings.steps / seeds * 1e6,
                "over_floor": ratio(times, taken["floor"]),
                "over_first_capacity": ratio(times, taken[first]),
            }
        )
    return rows


def main() -> None:
    """Measures, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    print(f"{'seeds':>5} {'batch':>5} {'replay, capacity':>24} {'us/seed':>8} {'over floor':>20} {'over first capacity':>20}")
    rows = []
    for seeds in settings.seeds:
        for batch_size in settings.batch_sizes:
            for row in measure(settings, seeds, batch_size):
                floor, first = ("{:.2f} ({:.2f}-{:.2f})".format(*row[name]) for name in ("over_floor", "over_first_capacity"))
                print(
                    f"{seeds:5} {batch_size:5} {row['replay']:>24} {row['microseconds_per_seed']:8.1f} {floor:>20} {first:>20}",
                    flush=True,
                )
                rows.append(row)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    settings.out.write_text(json.dumps({**device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
