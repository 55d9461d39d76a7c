"""Bytes that a transition takes in herjax and in others: of an ant, of a humanoid, of an image.

    pip install --no-deps jaxgcrl    # See contrastive.py; rows of those that are not installed are left out.
    python examples/benchmarks/memory.py

The least is every observation once, the action, the goal that was pursued, and 8 bytes. Whole buffers are weighed: herjax's,
flashbax's and JaxGCRL's by their arrays, cpprb's by what filling it adds to its process. Priorities are not counted.

What differs: cpprb keeps the last observation of an episode apart, and relabels only where it stores pairs. flashbax and
JaxGCRL take the row after a step for what it led to, in whatever episode that is, so that the last observation of an episode is
lost. JaxGCRL's observation has the goal in it. Both JaxGCRL and herjax can relabel what they hold; flashbax has no hindsight.
"""

import dataclasses
import importlib
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import herjax
from contrastive import load_jaxgcrl


class Kind(NamedTuple):
    """What a task's transitions are made of."""

    observation: jax.ShapeDtypeStruct
    action: jax.ShapeDtypeStruct
    goal: jax.ShapeDtypeStruct


def floats(number: int) -> jax.ShapeDtypeStruct:
    """That many of float32."""
    return jax.ShapeDtypeStruct((number,), jnp.float32)


KINDS = {
    "ant": Kind(floats(29), floats(8), floats(2)),
    "humanoid": Kind(floats(268), floats(17), floats(3)),
    "84x84x4 bytes": Kind(jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8), jax.ShapeDtypeStruct((), jnp.int32), floats(4)),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Weighs buffers."""

    capacity: int = 10_000
    """Transitions."""
    max_episode_length: int = 100
    """Steps of an episode, all of which have as many."""
    out: Path = Path("results/memory.json")
    """Where the figures go."""
    cpprb: str | None = None
    """Weigh cpprb's buffer of this kind of transitions alone, and print its bytes."""


def nbytes(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def of_herjax(settings: Settings, kind: Kind, **options: Any) -> float:
    """With `relabel="sample"` unless told otherwise."""
    example = {"observation": kind.observation, "action": kind.action, "next_observation": kind.observation}
    functions = {"goal_fn": lambda _: jnp.zeros(kind.goal.shape), "reward_fn": lambda *_: jnp.float32(0)}
    sizes = {"capacity": settings.capacity, "max_episode_length": settings.max_episode_length}
    state = jax.eval_shape(partial(herjax.init, example, **sizes, **functions, **({"relabel": "sample"} | options)))
    return nbytes(state) / transitions_held(settings, next_of="next_of" in options)


def transitions_held(settings: Settings, *, next_of: bool) -> int:
    """Of a full buffer: of each episode the last observation takes a place, too."""
    longest = settings.max_episode_length
    return settings.capacity * longest // (longest + 1) if next_of else settings.capacity


def of_flashbax(settings: Settings, kind: Kind) -> float:
    """Its flat buffer, which keeps one row a step and gives pairs of neighbours."""
    flashbax = importlib.import_module("flashbax")

    row = {"observation": kind.observation, "action": kind.action, "goal": kind.goal}
    row |= {"reward": jax.ShapeDtypeStruct((), jnp.float32), "done": jax.ShapeDtypeStruct((), jnp.bool_)}
    buffer = flashbax.make_flat_buffer(max_length=settings.capacity, min_length=1, sample_batch_size=1)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), row)
    return nbytes(jax.eval_shape(buffer.init, zeros)) / settings.capacity


def of_jaxgcrl(settings: Settings, kind: Kind) -> float:
    """Its queue of one environment, whose observation has the goal in it, too, and all of which is float32."""
    Transition, _, Queue = load_jaxgcrl()  # noqa: N806 - classes.
    number = jnp.zeros((), jnp.float32)
    observation = jnp.zeros(int(np.prod(kind.observation.shape)) + kind.goal.size, jnp.float32)
    extras = {"state_extras": {"truncation": number, "traj_id": number}}
    row = Transition(observation, jnp.zeros(kind.action.shape, jnp.float32), number, number, extras)
    sizes = {"sample_batch_size": 1, "num_envs": 1, "episode_length": settings.max_episode_length}
    queue = Queue(max_replay_size=settings.capacity, dummy_data_sample=row, **sizes)
    return nbytes(jax.eval_shape(queue.init, jax.random.key(0))) / settings.capacity


def of_cpprb(settings: Settings, name: str) -> float:
    """Its buffer with `next_of`, filled in a process of its own."""
    sizes = ["--capacity", str(settings.capacity), "--max-episode-length", str(settings.max_episode_length)]
    command = [sys.executable, __file__, *sizes, "--cpprb", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def weigh_cpprb(settings: Settings, kind: Kind) -> float:
    """How much this process grows by it, for each transition."""
    cpprb = importlib.import_module("cpprb")
    names = {"obs": kind.observation, "act": kind.action, "goal": kind.goal, "rew": floats(1), "done": floats(1)}
    columns = {name: {"shape": leaf.shape or 1, "dtype": leaf.dtype} for name, leaf in names.items()}
    row = {name: np.ones((settings.max_episode_length, *(leaf.shape or (1,))), leaf.dtype) for name, leaf in names.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    buffer = cpprb.ReplayBuffer(settings.capacity, columns, next_of="obs")
    for _ in range(settings.capacity // settings.max_episode_length):
        buffer.add(**row, next_obs=row["obs"])
        buffer.on_episode_end()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / settings.capacity


def main() -> None:
    """Weighs, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    if settings.cpprb is not None:
        print(weigh_cpprb(settings, KINDS[settings.cpprb]))
        return
    once = {"next_of": {"next_observation": "observation"}}
    systems: dict[str, Callable[[str, Kind], float]] = {
        "herjax, next_of": lambda _, kind: of_herjax(settings, kind, **once),
        "the same, sample_running": lambda _, kind: of_herjax(settings, kind, **once, sample_running=True),
        "the same, 'episode_end', k = 4": lambda _, kind: of_herjax(settings, kind, **once, relabel="episode_end"),
        "herjax, pairs": lambda _, kind: of_herjax(settings, kind),
    }
    others = {
        "cpprb, next_of": ("cpprb", lambda name, _: of_cpprb(settings, name)),
        "flashbax, flat": ("flashbax", lambda _, kind: of_flashbax(settings, kind)),
        "JaxGCRL": ("jaxgcrl", lambda _, kind: of_jaxgcrl(settings, kind)),
    }
    systems |= {name: weigh for name, (module, weigh) in others.items() if importlib.util.find_spec(module) is not None}
    least = {name: nbytes(kind) + 8 for name, kind in KINDS.items()}
    rows = {system: {name: weigh(name, kind) for name, kind in KINDS.items()} for system, weigh in systems.items()}
    print(f"{'bytes a transition (over the least)':>36}" + "".join(f"{name:>22}" for name in KINDS))
    for system, row in ({"the least": least} | rows).items():
        print(f"{system:>36}" + "".join(f"{size:14,.0f} ({size / least[name]:4.2f})" for name, size in row.items()))
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps({"least": least, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
