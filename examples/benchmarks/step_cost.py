"""What the buffer adds to a training iteration: the loop of examples/bitflip.py over the same loop without replay.

    taskset -c 0 python examples/benchmarks/step_cost.py
    taskset -c 0 python examples/benchmarks/step_cost.py --seeds 1 8 --capacities 20000 2000000 --full --no-shares
    taskset -c 0 python examples/benchmarks/step_cost.py --num-steps 1 3

The floor acts, steps the environment and updates on one fixed batch, a constant: what XLA computes of it beforehand makes the
floor lower. States are donated, so that no allocation is counted. Training goes on from call to call, beginning with an empty
buffer as the example does, or with a full one.
"""

import dataclasses
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from interleaved import ratio, scan_program, seconds

sys.path.insert(0, str(Path(__file__).parent.parent))
import bitflip
import herjax

OPERATIONS = ("add", "end_episode", "sample", "update_priorities")

KEYS = 4
"""Keys that a step uses up."""
Row = dict[str, Any]
"""A line of a table."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times training iterations with and without replay."""

    seeds: tuple[int, ...] = (1, 8, 32)
    """Seeds that are vmapped."""
    batch_sizes: tuple[int, ...] = (64,)
    """Transitions in an update."""
    capacities: tuple[int, ...] = (200_000,)
    """Transitions held; the first is the one that the others are compared with."""
    num_steps: tuple[int, ...] = (1,)
    """Steps of an n-step return; compared with the first, too. Shares are timed with the first alone."""
    full: bool = False
    """Whether buffers are full before the timing starts."""
    shares: bool = True
    """Whether to time each operation's share, too."""
    episode_length: int = 10
    """Steps after which an episode ends where the shares are timed."""
    steps: int = 1000
    """Iterations in one timed call."""
    rounds: int = 9
    """Timed calls of each program."""
    out: Path = Path("results/step_cost.json")
    """Where the figures go."""


def fixed_batch(config: bitflip.Config) -> herjax.Sample:
    """A batch of random bits."""
    size, bits = config.batch_size, config.num_bits
    rng = np.random.default_rng(0)
    observation, following, goal = rng.integers(0, 2, (3, size, bits)).astype(np.float32)
    transition = bitflip.Transition(jnp.asarray(observation), jnp.asarray(rng.integers(0, bits, size)), jnp.asarray(following))
    return herjax.Sample(
        transition=transition,
        goal=jnp.asarray(goal),
        reward=-jnp.ones(size),
        terminated=jnp.zeros(size, bool),
        is_hindsight=jnp.ones(size, bool),
        indices=jnp.arange(size),
        probabilities=jnp.ones(size),
        weights=jnp.ones(size),
        last=transition,
        discount=jnp.full(size, config.discount),
    )


def floor_step(config: bitflip.Config, loop: bitflip.Loop, index_and_keys: tuple[jax.Array, jax.Array]) -> bitflip.Loop:
    """`bitflip.train_step` without a buffer: every batch is the same."""
    _, keys = index_and_keys
    env, *_ = bitflip.interact(config, loop.agent, loop.env, keys[:2])
    agent, _, _ = bitflip.update(config, loop.agent, fixed_batch(config))
    return bitflip.Loop(agent, loop.buffer, env)


def train_step(config: bitflip.Config, loop: bitflip.Loop, index_and_keys: tuple[jax.Array, jax.Array]) -> bitflip.Loop:
    """`bitflip.train_step` without its loss."""
    return bitflip.train_step(config, loop, index_and_keys[1])[0]


def partial_step(
    config: bitflip.Config,
    episode_length: int,
    num_operations: int,
    loop: bitflip.Loop,
    index_and_keys: tuple[jax.Array, jax.Array],
) -> bitflip.Loop:
    """`bitflip.train_step` with the first few of `OPERATIONS`, and with episodes of a given length for the buffer.

    Without `sample`, every batch is the same: such an agent does not learn, and the environment's own episodes would be
    longer than where it does.
    """
    index, keys = index_and_keys
    env, transition, goal, _ = bitflip.interact(config, loop.agent, loop.env, keys[:2])
    buffer, batch = loop.buffer, fixed_batch(config)
    if num_operations >= 1:
        buffer = herjax.add(buffer, transition)
    done = (index + 1) % episode_length == 0
    if num_operations == 1:
        # The next episode overwrites this one: past the longest, `add` would store nothing.
        buffer = dataclasses.replace(buffer, pending=jnp.where(done, 0, buffer.pending))
    if num_operations >= 2:
        buffer = herjax.end_episode(buffer, goal, keys[2], done=done)
    if num_operations >= 3:
        beta = config.beta + (1 - config.beta) * (index / config.steps)
        batch = herjax.sample(buffer, keys[3], config.batch_size, beta=beta)
    agent, errors, _ = bitflip.update(config, loop.agent, batch)
    if num_operations >= 4:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(errors))
    return bitflip.Loop(agent, buffer, env)


def filled(config: bitflip.Config, key: jax.Array) -> bitflip.Loop:
    """The state of a run whose buffer is full of random episodes of the greatest length."""
    length = config.max_episode_length

    def episode(buffer: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, None]:
        key_bits, key_goals = jax.random.split(key)
        bits = jax.random.bernoulli(key_bits, shape=(length + 1, config.num_bits)).astype(jnp.float32)
        transitions = bitflip.Transition(bits[:-1], jnp.zeros(length, jnp.int32), bits[1:])
        buffer = jax.lax.scan(lambda buffer, transition: (herjax.add(buffer, transition), None), buffer, transitions)[0]
        return herjax.end_episode(buffer, bits[0], key_goals), None

    key_start, key_episodes = jax.random.split(key)
    loop = bitflip.start(config, key_start)
    keys = jax.random.split(key_episodes, config.capacity // length + 1)
    return loop._replace(buffer=jax.lax.scan(episode, loop.buffer, keys)[0])


def measure(settings: Settings, seeds: int, batch_size: int) -> list[Row]:
    """A row for each kind of replay, capacity and number of steps, with its ratio to the floor and to the first of its kind."""
    config = bitflip.Config(batch_size=batch_size, steps=settings.steps * (settings.rounds + 1))

    def program(variant: bitflip.Config, step: Any) -> Any:
        start = partial(filled if settings.full else bitflip.start, variant)
        return scan_program(partial(step, variant), start, settings.steps, seeds, KEYS)

    variants = list(product(settings.capacities, settings.num_steps))
    small = dataclasses.replace(config, capacity=config.max_episode_length, prioritized=False)
    programs = {"floor": program(small, floor_step)}
    firsts = {"floor": "floor"}
    for prioritized in (False, True):
        kind = "prioritised" if prioritized else "uniform"
        names = [f"{kind} {capacity:,}, {num_steps}-step" for capacity, num_steps in variants]
        for name, (capacity, num_steps) in zip(names, variants, strict=True):
            variant = dataclasses.replace(config, prioritized=prioritized, capacity=capacity, num_steps=num_steps)
            programs[name] = program(variant, train_step)
            firsts[name] = names[0]
    taken = seconds(programs, settings.rounds)
    rows = []
    for name, times in taken.items():
        rows.append(
            {
                "seeds": seeds,
                "batch_size": batch_size,
                "replay": name,
                "microseconds_per_seed": float(np.median(times)) / settings.steps / seeds * 1e6,
                "over_floor": ratio(times, taken["floor"]),
                "over_first": ratio(times, taken[firsts[name]]),
            }
        )
    return rows


def measure_shares(settings: Settings, seeds: int) -> list[Row]:
    """A row for each operation: what it adds to the iteration that has only the operations before it."""
    rows = []
    for prioritized in (False, True):
        steps = settings.steps * (settings.rounds + 1)
        config = bitflip.Config(
            capacity=settings.capacities[0], prioritized=prioritized, num_steps=settings.num_steps[0], steps=steps
        )
        start = partial(filled if settings.full else bitflip.start, config)
        operations = OPERATIONS if prioritized else OPERATIONS[:3]
        programs = {
            str(count): scan_program(
                partial(partial_step, config, settings.episode_length, count),
                start,
                settings.steps,
                seeds,
                KEYS,
            )
            for count in range(len(operations) + 1)
        }
        taken = seconds(programs, settings.rounds)
        for count, operation in enumerate(operations):
            share = (taken[str(count + 1)] - taken[str(count)]) / settings.steps / seeds * 1e6
            rows.append(
                {
                    "seeds": seeds,
                    "replay": "prioritised" if prioritized else "uniform",
                    "operation": operation,
                    "microseconds_per_seed": np.percentile(share, [50, 25, 75]).tolist(),
                }
            )
    return rows


def main() -> None:
    """Measures, prints tables, writes JSON."""
    settings = tyro.cli(Settings)
    rows, shares = [], []
    print(f"{'seeds':>5} {'batch':>5} {'replay, capacity, returns':>29} {'us/seed':>8} {'over floor':>20} {'over first':>20}")
    for seeds in settings.seeds:
        for batch_size in settings.batch_sizes:
            for row in measure(settings, seeds, batch_size):
                floor, first = ("{:.2f} ({:.2f}-{:.2f})".format(*row[name]) for name in ("over_floor", "over_first"))
                figures = f"{row['microseconds_per_seed']:8.1f} {floor:>20} {first:>20}"
                print(f"{seeds:5} {batch_size:5} {row['replay']:>29} {figures}", flush=True)
                rows.append(row)
    if settings.shares:
        print(f"\n{'seeds':>5} {'replay':>11} {'operation':>18} {'us/seed it adds':>20}")
        for seeds in settings.seeds:
            for row in measure_shares(settings, seeds):
                figures = "{:.1f} ({:.1f}-{:.1f})".format(*row["microseconds_per_seed"])
                print(f"{seeds:5} {row['replay']:>11} {row['operation']:>18} {figures:>20}", flush=True)
                shares.append(row)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "herjax": herjax.__version__}
    settings.out.write_text(json.dumps({**device, "full": settings.full, "rows": rows, "shares": shares}, indent=1))


if __name__ == "__main__":
    main()
