"""Buffers that were played until their rings turned round, and what the oracle says of them.

The oldest episode has lost its first steps, and the youngest runs on.
"""

import dataclasses
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np

import herjax
import numbered
from numbered import LENGTH
from oracle import Episode, Oracle

SHARE, STEPS, BATCH = 12, 36, 8192

SETTINGS = {
    "kept": {"relabel": "episode_end", "num_envs": None, "priority_exponent": None},
    "kept-windows": {"relabel": "episode_end", "num_envs": 3, "priority_exponent": 0.6, "num_steps": 3, "discount": 0.5},
    "late": {"relabel": "sample", "num_envs": None, "priority_exponent": 0.6},
    "late-windows": {"relabel": "sample", "num_envs": 3, "priority_exponent": None, "num_steps": 3, "discount": 0.5},
    "late-back": {"relabel": "sample", "num_envs": None, "priority_exponent": None, "strategy": "episode"},
    "kept-none": {"relabel": "episode_end", "num_envs": None, "priority_exponent": 0.6, "num_goals": 0},
    "late-none": {"relabel": "sample", "num_envs": 3, "priority_exponent": None, "num_goals": 0, "strategy": "episode"},
}
"""By name: what `init` is given. The others are future goals, two of them; "back" is a strategy that looks back."""

FIELDS = {"relabel": "sample", "num_envs": 3, "priority_exponent": 0.6}
"""The same for transitions of several fields."""


def make(name: str) -> herjax.BufferState:
    """An empty buffer of these settings."""
    setting = {"num_goals": 2, "strategy": "future"} | (FIELDS if name == "fields" else SETTINGS[name])
    capacity = SHARE * (setting["num_envs"] or 1)
    return (numbered.make_of_fields if name == "fields" else numbered.make)(capacity=capacity, **setting)


@dataclasses.dataclass(frozen=True)
class Played:
    """A buffer, and what it should hold. In step s environment e's transition is `s * n + e`; what it pursued is below 0."""

    state: herjax.BufferState
    oracles: list[Oracle]

    @cached_property
    def held(self) -> set[int]:
        """All finished transitions that are held, of all environments."""
        return {number for oracle in self.oracles for number in oracle.held}

    @cached_property
    def episodes(self) -> dict[int, Episode]:
        """The episode of each finished transition; `held` is what is held now."""
        now = tuple(self.held)
        episodes = [dataclasses.replace(episode, held=now) for oracle in self.oracles for episode in oracle.episodes]
        return {number: episode for episode in episodes for number in episode.transitions}

    @cached_property
    def batch(self) -> herjax.Sample:
        """A batch that holds every transition, on the host."""
        batch: herjax.Sample = jax.device_get(herjax.sample(self.state, jax.random.key(5), BATCH))
        numbers = batch.transition.number if isinstance(batch.transition, numbered.Transition) else batch.transition
        assert set(numbers.tolist()) == self.held
        return batch

    def first_held(self, number: int) -> int:
        """The first transition still held of this one's episode."""
        return next(other for other in self.episodes[number].transitions if other in self.held)


def dones_of(envs: int) -> np.ndarray:
    """Where episodes end: bool [STEPS, envs]. One is longer than the longest that is stored; each last one goes on."""
    lengths = (5, 1, 4, 7, 3, 2, 4, 5, 2)
    dones = np.zeros((STEPS, envs), np.bool_)
    for env in range(envs):
        ends = np.cumsum(np.roll(lengths, env)) - 1
        dones[ends[ends < STEPS - 2], env] = True
    return dones


@jax.jit
def _play_fields(state: herjax.BufferState, dones: jax.Array, key: jax.Array) -> herjax.BufferState:
    """As `numbered.play`, for `numbered.Transition`s."""
    steps, n = dones.shape

    def step(state: herjax.BufferState, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[herjax.BufferState, None]:
        number, done, key = xs
        numbers = number * n + jnp.arange(n, dtype=jnp.int32)
        state = herjax.add(state, jax.vmap(numbered.transition)(numbers))
        return herjax.end_episode(state, jax.vmap(numbered.goal)(-1 - numbers), key, done), None

    return jax.lax.scan(step, state, (jnp.arange(steps), dones, jax.random.split(key, steps)))[0]


@cache
def played(name: str) -> Played:
    """The buffer of these settings, after as many steps as fill it more than twice."""
    state = make(name)
    envs = state.config.num_envs or 1
    dones = dones_of(envs)
    oracles = [Oracle(SHARE, LENGTH) for _ in range(envs)]
    for number, done in enumerate(dones):
        for env, oracle in enumerate(oracles):
            oracle.add(number * envs + env)
            oracle.end_episode(-1 - (number * envs + env), done=bool(done[env]))
    for oracle in oracles:
        assert oracle.pending
        assert oracle.num_held < len(oracle.finished)
    gone = [oracle.held[0] not in {episode.transitions[0] for episode in oracle.episodes} for oracle in oracles]
    assert any(gone), "no episode has lost its first steps"
    assert any(oracle.num_dropped for oracle in oracles)
    if name == "fields":
        return Played(_play_fields(state, dones, jax.random.key(envs)), oracles)
    return Played(numbered.play(state, jnp.int32(0), dones, jax.random.key(envs)), oracles)
