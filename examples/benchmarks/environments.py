"""What each call costs with many environments in one buffer, and the bytes that it holds, beside flashbax's flat buffer.

    taskset -c 0 python examples/benchmarks/environments.py
    taskset -c 0 python examples/benchmarks/environments.py --num-envs 16 --episode-length 50 --capacity 100000

Buffers are full. Calls are timed in a scan of many, as they stand in a training loop: `end_episode` when no episode ends, when
a few do, and when all do.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import herjax
from interleaved import digest

GOAL_SIZE = 3
CALLS = 100
"""Calls of a timed scan, where they are not those of an episode."""
PLAIN_IMAGES = 1000
"""Rows of the buffers of images whose bytes are counted."""

Row = dict[str, Any]
"""A line of a table."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times the calls of a buffer that many environments fill."""

    num_envs: int = 1024
    """Environments."""
    episode_length: int = 250
    """Steps of every episode, and the most that there could be."""
    capacity: int = 2**21
    """Transitions held."""
    transition_size: int = 20
    """Floats of a transition."""
    num_goals: int = 4
    """Hindsight goals per transition."""
    few: int = 4
    """Environments whose episodes end where a few do."""
    batch_size: int = 256
    """Transitions drawn at once."""
    rounds: int = 5
    """Pairs of episodes timed, once the buffer is full."""
    weigh: bool = True
    """Whether to count bytes, too; needs flashbax."""
    out: Path = Path("results/environments.json")
    """Where the figures go."""


class GoalTransition(NamedTuple):
    """What a plain replay buffer of goal-conditioned transitions stores."""

    transition: jax.Array
    goal: jax.Array
    reward: jax.Array


def achieved_goal(transition: jax.Array) -> jax.Array:
    """The first elements."""
    return transition.ravel()[:GOAL_SIZE]


def reward(transition: jax.Array, goal: jax.Array) -> jax.Array:
    """0 where the goal is achieved, else -1."""
    return jnp.all(achieved_goal(transition) == goal).astype(jnp.float32) - 1


def make(settings: Settings, relabel: str, prioritized: bool) -> herjax.BufferState:
    """An empty buffer."""
    return herjax.init(
        jax.ShapeDtypeStruct((settings.transition_size,), jnp.float32),
        capacity=settings.capacity,
        max_episode_length=settings.episode_length,
        goal_fn=achieved_goal,
        reward_fn=reward,
        num_goals=settings.num_goals,
        relabel=relabel,
        priority_exponent=0.6 if prioritized else None,
        num_envs=settings.num_envs,
    )


class Calls:
    """A buffer, and how long each call on it took."""

    def __init__(self, settings: Settings, relabel: str, prioritized: bool) -> None:
        self._settings = settings
        self.state = jax.jit(partial(make, settings, relabel, prioritized))()
        self._goals = jnp.zeros((settings.num_envs, GOAL_SIZE))
        self._values = jax.random.normal(jax.random.key(0), (settings.num_envs, settings.transition_size))
        self._programs = {
            name: jax.jit(lambda state, keys, call=call: jax.lax.scan(call, state, self._numbered(keys))[0], donate_argnums=0)
            for name, call in {
                "add": self._add,
                "end_episode, none ends": partial(self._end, 0),
                f"end_episode, {settings.few} end": partial(self._end, settings.few),
                "end_episode, all end": partial(self._end, settings.num_envs),
                "sample": self._sample,
                "sample and update_priorities": self._update,
            }.items()
        }
        self.seconds: dict[str, list[float]] = {}

    def _numbered(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.arange(keys.shape[0]), keys

    def _add(self, state: herjax.BufferState, _: Any) -> tuple[herjax.BufferState, None]:
        return herjax.add(state, self._values), None

    def _end(
        self, number: int, state: herjax.BufferState, call: tuple[jax.Array, jax.Array]
    ) -> tuple[herjax.BufferState, None]:
        """Ends the episodes of as many environments, in each call of others."""
        index, key = call
        turn = jnp.arange(self._settings.num_envs) // max(number, 1)
        return herjax.end_episode(state, self._goals, key, (turn == index) & (number > 0)), None

    def _sample(self, state: herjax.BufferState, call: tuple[jax.Array, jax.Array]) -> tuple[herjax.BufferState, None]:
        batch = herjax.sample(state, call[1], self._settings.batch_size)
        # All that was drawn goes into the next state, so that XLA has to compute it.
        drawn = jnp.sum(digest(batch._replace(indices=None))) < 0
        return dataclasses.replace(state, num_rejected=state.num_rejected + drawn.astype(jnp.int32)), None

    def _update(self, state: herjax.BufferState, call: tuple[jax.Array, jax.Array]) -> tuple[herjax.BufferState, None]:
        batch = herjax.sample(state, call[1], self._settings.batch_size)
        return herjax.update_priorities(state, batch.indices, digest(batch._replace(indices=None))), None

    def run(self, name: str, calls: int, number: int) -> None:
        """Times several calls of a name; `number` is where their keys come from."""
        keys = jax.random.split(jax.random.key(number), calls)
        began = time.perf_counter()
        self.state = jax.block_until_ready(self._programs[name](self.state, keys))
        self.seconds.setdefault(name, []).append((time.perf_counter() - began) / calls)

    def round(self, number: int) -> None:
        """Times every call, over an episode that a few environments end one after another, and one that all end at once."""
        settings = self._settings
        for end, calls in (
            (f"end_episode, {settings.few} end", settings.num_envs // settings.few),
            ("end_episode, all end", 1),
        ):
            self.run("add", settings.episode_length, number)
            for name in ("end_episode, none ends", "sample"):
                self.run(name, CALLS, number)
            if self.state.tree is not None:
                self.run("sample and update_priorities", CALLS, number)
            self.run(end, calls, number)


def measure(settings: Settings, relabel: str, prioritized: bool) -> list[Row]:
    """A row for each call."""
    calls = Calls(settings, relabel, prioritized)
    episodes_to_fill = settings.capacity // settings.num_envs // settings.episode_length + 1
    for number in range(-(-episodes_to_fill // 2)):  # Two episodes a round.
        calls.round(number)
    calls.seconds.clear()
    for number in range(episodes_to_fill, episodes_to_fill + settings.rounds):
        calls.round(number)
    return [
        {
            "relabel": relabel,
            "replay": "prioritised" if prioritized else "uniform",
            "call": name,
            "microseconds": (np.percentile(taken, [50, 25, 75]) * 1e6).tolist(),
        }
        for name, taken in calls.seconds.items()
    ]


def held_bytes(init: Callable[[], Any]) -> int:
    """The bytes of the state that `init` makes, without making it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(init)))


def flashbax_bytes(example: Any, rows: int, num_envs: int) -> int:
    """The bytes of flashbax's flat buffer with as many rows."""
    import flashbax  # noqa: PLC0415 - of the benchmark extra.

    buffer = flashbax.make_flat_buffer(max_length=rows, min_length=1, sample_batch_size=1, add_batch_size=num_envs)
    return held_bytes(lambda: buffer.init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)))


def image_goal(transition: dict[str, jax.Array]) -> jax.Array:
    """A whole image."""
    return transition["next_observation"]


def image_reward(transition: dict[str, jax.Array], goal: jax.Array) -> jax.Array:
    """Whether the images are alike, as 0 and -1."""
    return jnp.all(image_goal(transition) == goal).astype(jnp.float32) - 1


def bytes_table(settings: Settings) -> list[Row]:
    """What both settings hold, over flashbax's flat buffer of as many rows of transition, goal and reward."""
    image = jax.ShapeDtypeStruct((84, 84), jnp.uint8)
    images = {"observation": image, "action": jax.ShapeDtypeStruct((), jnp.int32), "next_observation": image}
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    floats = jax.ShapeDtypeStruct((settings.transition_size,), jnp.float32)
    goal = jax.ShapeDtypeStruct((GOAL_SIZE,), jnp.float32)
    rows = []
    for name, relabel, own, plain, transitions, envs in (
        ("floats", "sample", None, GoalTransition(floats, goal, scalar), settings.capacity, settings.num_envs),
        ("floats", "episode_end", None, GoalTransition(floats, goal, scalar), settings.capacity, settings.num_envs),
        ("84x84 uint8", "sample", images, GoalTransition(images, image, scalar), PLAIN_IMAGES, 1),
        ("84x84 uint8", "episode_end", images, GoalTransition(images, image, scalar), PLAIN_IMAGES, 1),
    ):
        if own is None:
            held = held_bytes(partial(make, settings, relabel, prioritized=False))
        else:
            init = partial(herjax.init, own, capacity=transitions, max_episode_length=50, relabel=relabel)
            held = held_bytes(partial(init, goal_fn=image_goal, reward_fn=image_reward, num_goals=settings.num_goals))
        others = flashbax_bytes(plain, transitions, envs)
        rows.append({"transition": name, "relabel": relabel, "bytes": held, "flashbax_bytes": others, "ratio": held / others})
    return rows


def main() -> None:
    """Measures, prints two tables, writes JSON."""
    settings = tyro.cli(Settings)
    held = bytes_table(settings) if settings.weigh else []
    if held:
        print(f"{'transition':>12} {'relabel':>12} {'bytes':>15} {'flashbax':>15} {'ratio':>6}")
    for row in held:
        figures = f"{row['bytes']:>15,} {row['flashbax_bytes']:>15,} {row['ratio']:6.2f}"
        print(f"{row['transition']:>12} {row['relabel']:>12} {figures}", flush=True)
    print(f"\n{'relabel':>12} {'replay':>11} {'call':>28} {'us':>28}")
    rows = []
    for relabel in ("episode_end", "sample"):
        for prioritized in (False, True):
            for row in measure(settings, relabel, prioritized):
                cost = "{:,.1f} ({:,.1f}-{:,.1f})".format(*row["microseconds"])
                print(f"{relabel:>12} {row['replay']:>11} {row['call']:>28} {cost:>28}", flush=True)
                rows.append(row)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "herjax": herjax.__version__}
    about["settings"] = {name: str(value) for name, value in vars(settings).items()}
    settings.out.write_text(json.dumps({**about, "bytes": held, "calls": rows}, indent=1))


if __name__ == "__main__":
    main()
