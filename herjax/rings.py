"""Where rows lie: each environment has a ring of `rows_per_env` rows, as `herjax.state` tells."""

import jax
import jax.numpy as jnp

from herjax.config import Config
from herjax.lanes import group_of
from herjax.state import BufferState


def wrapped(rows: int, offset: jax.Array) -> jax.Array:
    """Wraps an offset that has left a ring of so many rows, by less than its length: int32 of `offset`'s shape."""
    offset = jnp.where(offset < 0, offset + rows, offset)
    return jnp.where(offset >= rows, offset - rows, offset)


def row_at(config: Config, env: jax.Array, offset: jax.Array) -> jax.Array:
    """The row at an offset in an environment's ring, wrapped: int32."""
    return env * config.rows_per_env + wrapped(config.rows_per_env, offset)


def env_and_offset(config: Config, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The environment that a row belongs to, and its offset in the ring: int32 of `row`'s shape each."""
    if config.envs == 1:
        return jnp.zeros_like(row), row
    env = jax.lax.div(row, jnp.int32(config.rows_per_env))
    return env, row - env * config.rows_per_env


def row_of_step(config: Config, row: jax.Array, step: jax.Array, other: jax.Array) -> jax.Array:
    """The row of another step of the episode whose `step` is in `row`: int32."""
    env, offset = env_and_offset(config, row)
    return row_at(config, env, offset - step + other)


def held_row(state: BufferState, number: jax.Array) -> jax.Array:
    """The row of each transition that can be drawn, by a number in [0, size): int32 of `number`'s shape."""
    ends = jnp.cumsum(state.drawable)
    env = group_of(ends, number)
    back = ends[env] - number  # 1 for the youngest.
    return row_at(state.config, env, state.newest[env] - back)


def is_held(state: BufferState, row: jax.Array) -> jax.Array:
    """Whether a row, any int32, holds a transition that can be drawn; bool of `row`'s shape."""
    inside = (row >= 0) & (row < state.config.num_rows)
    env, offset = env_and_offset(state.config, jnp.where(inside, row, 0))
    age = 1 + wrapped(state.config.rows_per_env, state.newest[env] - 1 - offset)  # 1 for the youngest.
    return inside & (age <= state.drawable[env])


def first_held(state: BufferState, row: jax.Array, step: jax.Array) -> jax.Array:
    """The first step still held of the episode whose `step` is in `row`, which is held: int32 of `row`'s shape."""
    env, offset = env_and_offset(state.config, row)
    younger = wrapped(state.config.rows_per_env, state.newest[env] - 1 - offset)  # Rows of its environment.
    older = state.drawable[env] - 1 - younger
    return jnp.clip(step - older, 0, step)


def running_place(state: BufferState, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Step and length so far of the running episode of a row's environment, were the row in it: int32 of `row`'s shape each.

    It is in it if the step is below the length.
    """
    env, offset = env_and_offset(state.config, row)
    return wrapped(state.config.rows_per_env, offset - state.head[env]), state.pending[env]


def observation_at(config: Config, env: jax.Array, offset: jax.Array) -> jax.Array:
    """The row at an offset in an environment's ring of observations, wrapped: int32. These rings begin after row 0."""
    return 1 + env * config.observations_per_env + wrapped(config.observations_per_env, offset)


def observation_after(config: Config, row: jax.Array) -> jax.Array:
    """The next row of the same ring of observations: int32 of `row`'s shape. Of row 0, which is nobody's, that one."""
    rows = config.observations_per_env
    ends = jax.lax.rem(row, jnp.int32(rows)) == 0
    return jnp.maximum(row + 1 - jnp.where(ends, rows, 0), 0)


def observation_of(state: BufferState, rows: jax.Array) -> jax.Array:
    """Where the observations of transitions are, by the rows of these, int32 [n]: int32 [n]."""
    first = state.config.storage.columns[0].layout
    return first.read(state.columns[0], rows)[:, 0].view(jnp.int32)
