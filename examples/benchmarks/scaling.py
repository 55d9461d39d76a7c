"""What a step's four calls cost as buffers, episodes, goals, observations and seeds grow; prints a table and plots it.

    taskset -c 0 python examples/benchmarks/scaling.py

The calls are add, end_episode, sample and update_priorities, on full buffers. What a loop without a buffer takes is subtracted:
it makes the same transitions, puts each into a batch as large, and digests that.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import herjax
from interleaved import digest, ratio, scan_program, seconds

GOAL_SIZE = 10

Row = dict[str, Any]
"""A line of the table."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of everything that is varied."""

    copies: int = 100_000
    """Copies held, hindsight ones and not."""
    episode_length: int = 50
    """Steps of every episode, and the most that there could be."""
    num_goals: int = 4
    """Hindsight goals per transition."""
    observation: tuple[int, ...] = (10,)
    """Shape of an observation: float32, or uint8 where it has more than one axis. A transition has two of them."""
    seeds: int = 1
    """Buffers that are vmapped."""


AXES: dict[str, tuple[Point, ...]] = {
    "copies": tuple(Point(copies=copies) for copies in (10_000, 100_000, 1_000_000, 10_000_000)),
    "episode_length": tuple(Point(episode_length=length) for length in (10, 50, 100, 500, 1000)),
    "num_goals": tuple(Point(num_goals=goals) for goals in (0, 1, 2, 4, 8, 16)),
    "observation": tuple(Point(observation=shape, copies=10_000) for shape in ((10,), (100,), (1000,), (84, 84, 4))),
    "seeds": tuple(Point(seeds=seeds) for seeds in (1, 2, 4, 8, 16, 32)),
}
"""What is varied, and its settings; the first but one is what the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times the buffer's calls along each axis."""

    axes: tuple[str, ...] = tuple(AXES)
    """What to vary."""
    batch_size: int = 64
    """Copies drawn at each step."""
    steps: int = 1000
    """Steps in one timed call; a multiple of every episode length, so that all calls end as many."""
    rounds: int = 7
    """Timed calls of each program."""
    out: Path = Path("results/scaling.json")
    """Where the figures go; the plot goes beside it."""


class Transition(NamedTuple):
    """Two observations of `Point.observation`'s shape."""

    observation: jax.Array
    next_observation: jax.Array


def transition_at(point: Point, index: jax.Array) -> Transition:
    """A transition in which every element is the step's number, or the next one's: nothing that would take time to make."""
    dtype = jnp.float32 if len(point.observation) == 1 else jnp.uint8
    return Transition(*(jnp.full(point.observation, number.astype(dtype)) for number in (index, index + 1)))


def achieved_goal(transition: Transition) -> jax.Array:
    """The first elements of what followed."""
    return transition.next_observation.ravel()[:GOAL_SIZE].astype(jnp.float32)


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """0 where the goal is achieved, else -1."""
    return jnp.all(achieved_goal(transition) == goal).astype(jnp.float32) - 1


def full_buffer(point: Point, prioritized: bool, _: jax.Array) -> herjax.BufferState:
    """A buffer that holds as many copies as it can."""
    capacity = point.copies // (1 + point.num_goals)
    buffer = herjax.init(
        jax.eval_shape(partial(transition_at, point), jnp.int32(0)),
        capacity=capacity,
        max_episode_length=point.episode_length,
        goal_fn=achieved_goal,
        reward_fn=reward,
        num_goals=point.num_goals,
        priority_exponent=0.6 if prioritized else None,
    )
    keys = jax.random.split(jax.random.key(0), capacity // point.episode_length + 1)

    def episode(buffer: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, None]:
        added = jax.lax.fori_loop(
            0, point.episode_length, lambda index, buffer: herjax.add(buffer, transition_at(point, index)), buffer
        )
        return herjax.end_episode(added, jnp.zeros(GOAL_SIZE), key), None

    return jax.lax.scan(episode, buffer, keys)[0]


def buffer_step(
    point: Point, batch_size: int, buffer: herjax.BufferState, index_and_keys: tuple[jax.Array, jax.Array]
) -> herjax.BufferState:
    """The calls of one step."""
    index, (key_goals, key_sample) = index_and_keys
    buffer = herjax.add(buffer, transition_at(point, index))
    done = (index + 1) % point.episode_length == 0
    buffer = herjax.end_episode(buffer, jnp.zeros(GOAL_SIZE), key_goals, done=done)
    batch = herjax.sample(buffer, key_sample, batch_size)
    priorities = digest(batch._replace(indices=None))
    if buffer.tree is None:
        # A batch that nothing depends on would not be drawn.
        return dataclasses.replace(buffer, num_rejected=buffer.num_rejected + (jnp.sum(priorities) < 0).astype(jnp.int32))
    return herjax.update_priorities(buffer, batch.indices, priorities)


def empty_batch(point: Point, batch_size: int, _: jax.Array) -> tuple[Transition, jax.Array]:
    """A batch of transitions and goals."""
    items = jax.vmap(partial(transition_at, point))(jnp.arange(batch_size))
    return items, jax.vmap(achieved_goal)(items)


def empty_step(
    point: Point, batch: tuple[Transition, jax.Array], index_and_keys: tuple[jax.Array, jax.Array]
) -> tuple[Transition, jax.Array]:
    """The same without a buffer; the digest goes into the batch, so that XLA has to compute it."""
    index, keys = index_and_keys
    transition = transition_at(point, index)
    drawn = jnp.sum(jax.random.key_data(keys).astype(jnp.float32)) * 2.0**-40
    digested = jnp.sum(digest(batch)) * 2.0**-40 + drawn
    item = index % batch[1].shape[0]
    return jax.tree.map(lambda leaf, new: leaf.at[item].set(new), batch, (transition, achieved_goal(transition) + digested))


def measure(settings: Settings, axis: str) -> list[Row]:
    """A row for each point of an axis and each kind of replay, with the ratio to the axis's second point."""
    programs: dict[str, Callable[[], None]] = {}
    for number, point in enumerate(AXES[axis]):
        programs[f"empty {number}"] = scan_program(
            partial(empty_step, point), partial(empty_batch, point, settings.batch_size), settings.steps, point.seeds
        )
        for prioritized in (False, True):
            programs[f"{prioritized} {number}"] = scan_program(
                partial(buffer_step, point, settings.batch_size),
                partial(full_buffer, point, prioritized),
                settings.steps,
                point.seeds,
            )
    taken = seconds(programs, settings.rounds)

    def a_step(prioritized: bool, number: int) -> np.ndarray:
        extra = taken[f"{prioritized} {number}"] - taken[f"empty {number}"]
        return extra / settings.steps / AXES[axis][number].seeds * 1e6

    return [
        {
            "axis": axis,
            "value": getattr(point, axis),
            "replay": "prioritised" if prioritized else "uniform",
            "microseconds_per_seed": np.percentile(a_step(prioritized, number), [50, 25, 75]).tolist(),
            "over_second": ratio(a_step(prioritized, number), a_step(prioritized, 1)),
        }
        for prioritized in (False, True)
        for number, point in enumerate(AXES[axis])
    ]


def plot(rows: list[Row], path: Path) -> None:
    """A panel for each axis, a line for each kind of replay, the quartiles shaded."""
    import matplotlib  # noqa: PLC0415 - only the end of a run needs it.

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        for replay, color in (("uniform", "tab:blue"), ("prioritised", "tab:orange")):
            line = [row for row in rows if row["axis"] == name and row["replay"] == replay]
            values = [max(math.prod(row["value"]) if name == "observation" else row["value"], 0.5) for row in line]
            middle, low, high = np.asarray([row["microseconds_per_seed"] for row in line]).T
            axes.plot(values, middle, "o-", color=color, label=replay, markersize=3)
            axes.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
        label = {"num_goals": "hindsight goals (0 at the left)", "observation": "elements of an observation"}
        axes.set(xscale="log", ylim=(0, None), xlabel=label.get(name, name.replace("_", " ")))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("µs a step and seed")
    panels[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measures, prints a table, writes JSON and a plot."""
    settings = tyro.cli(Settings)
    print(f"{'axis':>15} {'value':>12} {'replay':>11} {'us a step and seed':>24} {'over the second':>20}")
    rows = []
    for axis in settings.axes:
        for row in measure(settings, axis):
            cost = "{:.1f} ({:.1f}-{:.1f})".format(*row["microseconds_per_seed"])
            over = "{:.2f} ({:.2f}-{:.2f})".format(*row["over_second"])
            value = "x".join(map(str, row["value"])) if axis == "observation" else f"{row['value']:,}"
            print(f"{axis:>15} {value:>12} {row['replay']:>11} {cost:>24} {over:>20}", flush=True)
            rows.append(row)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "herjax": herjax.__version__}
    settings.out.write_text(json.dumps({**device, "rows": rows}, indent=1))
    plot(rows, settings.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
