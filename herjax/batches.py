"""What a batch is: `Sample`, and those of its fields that its goals decide."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax import hindsight
from herjax.config import Copy
from herjax.functions import Goal, Transition
from herjax.rings import row_of_step
from herjax.rows import Pytree
from herjax.state import BufferState, can_sample


class Sample(NamedTuple):
    """A batch of copies; every field is [batch_size, ...]. On an empty buffer all of it is zero.

    A value to learn from is `reward + discount * value(last.next_observation, goal)`.

    Attributes:
      transition: the transitions, in the structure, shapes and dtypes of `init`'s example.
      goal: the goal of each copy, as `goal_fn` returns it: the one that was pursued, or a hindsight goal.
      reward: under that goal, in `reward_fn`'s dtype. With num_steps > 1, the discounted sum of the window, in a float's.
      terminated: whether `last` ends the task under that goal. None without `terminated_fn`.
      is_hindsight: whether the goal is a hindsight goal.
      indices: for `update_priorities`.
      probabilities: of drawing that index; with `axis_name`, were all shards drawn from as one.
      weights: importance weights, divided by the largest of the batch; ones when uniform.
      last: the last transition of the window; with num_steps=1, `transition`.
      discount: 0 where terminated, else discount^m for a window of m steps. None if `init` was given no discount.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> settings = dict(capacity=8, max_episode_length=4, goal_fn=lambda t: t, num_goals=0, num_steps=2, discount=0.5)
      >>> buffer = herjax.init(jnp.float32(0), reward_fn=lambda t, goal: jnp.where(t == goal, 0.0, -1.0), **settings)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(3)), jnp.float32(4))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> isinstance(batch, herjax.Sample), sorted(set(zip(batch.reward.tolist(), batch.discount.tolist())))
      (True, [(-1.5, 0.25), (-1.0, 0.5)])
    """

    transition: Transition
    goal: Goal
    reward: jax.Array  # [batch_size]
    terminated: jax.Array | None  # bool [batch_size]
    is_hindsight: jax.Array  # bool [batch_size]
    indices: jax.Array  # int32 [batch_size]
    probabilities: jax.Array  # float32 [batch_size]
    weights: jax.Array  # float32 [batch_size]
    last: Transition
    discount: jax.Array | None  # float32 [batch_size]


def require_sample(batch: Sample) -> None:
    """`TypeError` where it is none."""
    if not isinstance(batch, Sample):
        raise TypeError(f"batch is a {type(batch).__name__}; give the Sample that sample returned.")


def last_rows(state: BufferState, rows: jax.Array, copies: jax.Array) -> tuple[jax.Array, ...]:
    """The rows of the last transitions of the windows that begin in `rows`, int32 [n]; none if all have one step.

    `copies`, rows of `Copy`, say how long the windows are.
    """
    config = state.config
    if config.num_steps == 1:
        return ()
    windows = jax.vmap(lambda copy: config.copy.unpack(copy).window)(copies)
    return (row_of_step(config, rows, jnp.int32(0), jnp.maximum(windows - 1, 0)),)


def under_goals(
    state: BufferState, transition: Transition, is_hindsight: jax.Array, copies: jax.Array, last: list[Transition]
) -> dict[str, Pytree]:
    """The fields of a `Sample` that its goals decide; `last` has what lies in `last_rows`."""
    config = state.config
    copy: Copy = jax.vmap(config.copy.unpack)(copies)
    return {
        "goal": copy.goal,
        "reward": copy.reward,
        "terminated": copy.terminated,
        "is_hindsight": is_hindsight > 0,
        "last": last[0] if last else transition,
        "discount": _discount(state, copy, jnp.broadcast_to(can_sample(state), is_hindsight.shape)),
    }


def _discount(state: BufferState, copy: Copy, there: jax.Array) -> jax.Array | None:
    """What the value after each window is worth, float32 [batch_size]; `there`, bool [batch_size], is whether there is one."""
    if state.config.discount is None:
        return None
    worth = there if copy.terminated is None else there & ~copy.terminated
    window = jnp.int32(1) if copy.window is None else copy.window
    # Not an element picked: JAX refuses to pick one of a constant on a mesh with Explicit axes.
    is_length = jnp.reshape(window, (-1, 1)) == np.arange(state.config.longest_window + 1, dtype=np.int32)[None]
    return jnp.where(worth, jnp.sum(jnp.where(is_length, hindsight.powers(state)[None], 0), axis=1), 0)
