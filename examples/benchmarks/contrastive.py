"""herjax beside JaxGCRL's replay, on a contrastive agent's batches: goals are future states and actions of the same episode.

    pip install --no-deps jaxgcrl    # Of which only the buffer and the relabelling are used; it asks for an old JAX.
    taskset -c 0 python examples/benchmarks/contrastive.py

A training step of JaxGCRL (arXiv:2408.11052): every environment's next 62 steps are stored, a window as long as an episode is
read of each environment, every transition gets a goal from later in it, geometrically, and all are shuffled. herjax stores as
many, and draws as many transitions from all that it holds, with such goals.

What differs: JaxGCRL's transitions are those of one window of each environment. A window lies across two episodes: goals beyond
its end are not drawn, and the last one before an end has itself as goal. herjax's are independent draws, whose goals come
from all the rest of their own episode, their own step included.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import herjax
from interleaved import seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times both on the same work."""

    num_envs: int = 512
    """Environments."""
    episode_length: int = 1000
    """Steps of every episode."""
    inserted: int = 62
    """Steps of each environment stored before all is sampled."""
    episodes: int = 2
    """Held of each environment."""
    observation: int = 29
    """Numbers of an observation."""
    action: int = 8
    """Numbers of an action."""
    discount: float = 0.99
    """Of the geometric distribution of how far ahead goals are."""
    rounds: int = 5
    """Timed steps of each."""
    out: Path = Path("results/contrastive.json")
    """Where the figures go."""

    @property
    def draws(self) -> int:
        """Transitions in a training step."""
        return self.num_envs * (self.episode_length - 1)


class Experience(NamedTuple):
    """What the environments did: leaves [inserted, num_envs, ...]."""

    observation: jax.Array
    action: jax.Array


class Program(NamedTuple):
    """The halves of a training step."""

    start: Callable[[], Any]  # An empty buffer.
    store: Callable[[Any, Experience, jax.Array, jax.Array], Any]  # (state, experience, its first step, key) -> state
    draw: Callable[[Any, jax.Array], Any]  # (state, key) -> state, sums


def sums(batch: Any) -> Any:
    """Of every leaf, so that all of a batch is made."""
    return jax.tree.map(jnp.sum, batch)


def herjax_program(settings: Settings, *, running: bool = False) -> Program:
    """Steps added one by one, in a scan, and all transitions drawn at once; with `running` of running episodes, too."""

    def start() -> herjax.BufferState:
        return herjax.init(
            Experience(jnp.zeros(settings.observation), jnp.zeros(settings.action)),
            capacity=settings.num_envs * settings.episode_length * settings.episodes,
            max_episode_length=settings.episode_length,
            goal_fn=lambda transition: transition,
            reward_fn=lambda *_: jnp.float32(0),
            strategy=herjax.geometric(settings.discount),
            num_goals=1,
            relabel="sample",
            num_envs=settings.num_envs,
            sample_running=running,
        )

    def store(buffer: herjax.BufferState, experience: Experience, first: jax.Array, key: jax.Array) -> herjax.BufferState:
        def one(buffer: herjax.BufferState, number_and_step: tuple[jax.Array, Experience]) -> tuple[herjax.BufferState, None]:
            number, transition = number_and_step
            done = (number + 1) % settings.episode_length == 0
            if running:
                return herjax.end_episode(herjax.add(buffer, transition, goal=transition), None, key, done), None
            return herjax.end_episode(herjax.add(buffer, transition), transition, key, done), None

        stored: herjax.BufferState = jax.lax.scan(one, buffer, (first + jnp.arange(settings.inserted), experience))[0]
        return stored

    def draw(buffer: herjax.BufferState, key: jax.Array) -> Any:
        batch = herjax.sample(buffer, key, settings.draws, hindsight_ratio=1.0)
        return buffer, sums((batch.transition, batch.goal))

    return Program(start, store, draw)


@cache
def load_jaxgcrl() -> tuple[Any, Any, Any]:
    """JaxGCRL's transition, relabelling and buffer, without the environments and loggers that its packages import."""
    root = Path(importlib.util.find_spec("jaxgcrl").submodule_search_locations[0])
    for name in ("", ".agents", ".agents.crl", ".utils"):
        package = sys.modules[f"jaxgcrl{name}"] = ModuleType(f"jaxgcrl{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
    brax = ["brax", "brax.training", "brax.training.types", "brax.v1", "etils"]
    own = ["agents.crl.losses", "agents.crl.networks", "envs", "envs.wrappers", "utils.evaluator"]
    sys.modules |= {name: MagicMock() for name in (*brax, *(f"jaxgcrl.{name}" for name in own))}
    sys.modules["brax.training.replay_buffers"] = SimpleNamespace(ReplayBuffer=Mapping)
    crl, replay = (importlib.import_module(f"jaxgcrl.{name}") for name in ("agents.crl.crl", "utils.replay_buffer"))
    return crl.Transition, crl.flatten_batch, replay.TrajectoryUniformSamplingQueue


def jaxgcrl_program(settings: Settings) -> Program:
    """Its own buffer and its own relabelling, called as its training step calls them."""
    Transition, flatten_batch, Queue = load_jaxgcrl()  # noqa: N806 - classes.

    def transition(experience: Experience, number: jax.Array) -> Transition:
        """With the number of the episode, float32, and no reward."""
        numbers = jnp.broadcast_to(number, experience.action.shape[:-1]).astype(jnp.float32)
        extras = {"state_extras": {"truncation": 0 * numbers, "traj_id": numbers}}
        return Transition(*experience, 0 * numbers, 0 * numbers, extras)

    queue = Queue(
        max_replay_size=settings.episode_length * settings.episodes,
        dummy_data_sample=transition(Experience(jnp.zeros(settings.observation), jnp.zeros(settings.action)), jnp.float32(0)),
        sample_batch_size=256,
        num_envs=settings.num_envs,
        episode_length=settings.episode_length,
    )
    config = (settings.discount, settings.observation, (0, 1))

    def store(state: Any, experience: Experience, first: jax.Array, key: jax.Array) -> Any:
        del key
        number = (first + jnp.arange(settings.inserted)) // settings.episode_length
        return queue.insert_internal(state, transition(experience, number[:, None]))

    def draw(state: Any, key: jax.Array) -> Any:
        key_goals, key_order = jax.random.split(key)
        state, windows = queue.sample_internal(state)
        batch = jax.vmap(flatten_batch, (None, 0, 0))(config, windows, jax.random.split(key_goals, settings.num_envs))
        batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:], order="F"), batch)
        order = jax.random.permutation(key_order, settings.draws)
        batch = jax.tree.map(lambda leaf: leaf[order], batch)
        return state, sums((batch.extras["state"], batch.action, batch.extras["future_state"], batch.extras["future_action"]))

    return Program(lambda: queue.init(jax.random.key(0)), store, draw)


def prepare(settings: Settings, program: Program) -> tuple[Callable[[], None], dict[str, float]]:
    """A function that makes a training step on a full buffer, and the bytes that it takes."""
    shape = (settings.inserted, settings.num_envs)
    keys = jax.random.split(jax.random.key(1))
    experience = Experience(
        jax.random.normal(keys[0], (*shape, settings.observation)), jax.random.normal(keys[1], (*shape, settings.action))
    )
    state, number = jax.jit(program.start)(), 0

    def step(state: Any, first: jax.Array, key: jax.Array) -> Any:
        key_store, key_draw = jax.random.split(key)
        return program.draw(program.store(state, experience, first, key_store), key_draw)

    store, compiled = jax.jit(program.store, donate_argnums=0), jax.jit(step, donate_argnums=0)
    memory = compiled.lower(state, np.int32(0), keys[0]).compile().memory_analysis()

    def call() -> None:
        nonlocal state, number
        state, found = compiled(state, np.int32(number), jax.random.fold_in(keys[0], number))
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(jax.device_get(found)))
        number += settings.inserted

    while number < settings.episode_length * (settings.episodes + 1):
        state = store(state, experience, np.int32(number), jax.random.fold_in(keys[1], number))
        number += settings.inserted
    sizes = {"held_MB": sum(leaf.nbytes for leaf in jax.tree.leaves(state)), "temporary_MB": memory.temp_size_in_bytes}
    return call, {name: size / 1e6 for name, size in sizes.items()}


def main() -> None:
    """Measures, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    makers = {"herjax": herjax_program, "herjax, sample_running": partial(herjax_program, running=True)}
    if importlib.util.find_spec("jaxgcrl") is None:
        print("jaxgcrl is not installed and is skipped; see the top of this file.")
    else:
        makers["JaxGCRL"] = jaxgcrl_program
    began = time.perf_counter()
    prepared = {name: prepare(settings, make(settings)) for name, make in makers.items()}
    print(f"buffers filled in {time.perf_counter() - began:.0f} s")
    taken = seconds({name: call for name, (call, _) in prepared.items()}, settings.rounds)
    rows = {name: {"seconds": float(np.median(times)), **prepared[name][1]} for name, times in taken.items()}
    print(f"{'':>22} {'seconds':>10} {'held, MB':>10} {'temporary':>10}    for {settings.draws:,} transitions")
    for name, row in rows.items():
        print(f"{name:>22} {row['seconds']:10.2f} {row['held_MB']:10.0f} {row['temporary_MB']:10.0f}")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
