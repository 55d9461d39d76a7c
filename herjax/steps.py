"""Other steps of the episodes that a batch was drawn from: `steps`."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax import checks
from herjax.batches import Sample, require_sample
from herjax.functions import Goal, RewardFn, TerminatedFn, Transition
from herjax.reading import rows_of, transitions_once, visits
from herjax.rings import first_held, is_held, row_of_step
from herjax.state import BufferState, can_sample, config_of


class Steps(NamedTuple):
    """Steps around the transitions of a batch; every field is [batch_size, offsets, ...]. On an empty buffer all of it is zero.

    Attributes:
      transition: in the structure, shapes and dtypes of `init`'s example.
      reward: of that step alone, under the goal of the batch.
      terminated: whether that step ends the task under that goal. None without `terminated_fn`.
      mask: whether the buffer holds that step of the episode. Where it does not, the other fields are those of the nearest step
        that it holds.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.end_episode(herjax.add(buffer, jnp.float32(3)), jnp.float32(5), jax.random.key(0))
      >>> around = herjax.steps(buffer, herjax.sample(buffer, jax.random.key(1), 2), [0, 1])
      >>> isinstance(around, herjax.Steps), around.transition.tolist(), around.mask.tolist()
      (True, [[3.0, 3.0], [3.0, 3.0]], [[True, False], [True, False]])
    """

    transition: Transition
    reward: jax.Array  # [batch_size, offsets]
    terminated: jax.Array | None  # bool [batch_size, offsets]
    mask: jax.Array  # bool [batch_size, offsets]


def steps(state: BufferState, batch: Sample, offsets: Iterable[int]) -> Steps:
    """Steps of the same episodes around each of a batch's transitions.

    For a sequence give `range(16)`, for a stack of frames `range(-3, 1)`, for a subgoal eight steps on `[8]`.

    Args:
      state: the buffer that the batch was drawn from, not yet changed. Of another the result is finite, and means nothing.
      batch: from `sample` or `relabel`, of any setting of `init`'s `relabel`.
      offsets: steps from each transition; static ints, at least one.

    Returns:
      The steps, [batch_size, len(offsets), ...] each.

    Raises:
      ValueError: there is no offset.
      TypeError: `batch` is no `Sample`, or an offset no int.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> for position in (1.0, 2.0, 3.0):
      ...     buffer = herjax.add(buffer, jnp.float32(position))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> around = herjax.steps(buffer, batch, range(-1, 2))
      >>> sorted(set(zip(*(around.transition[:, place].tolist() for place in range(3)))))
      [(1.0, 1.0, 2.0), (1.0, 2.0, 3.0), (2.0, 3.0, 3.0)]
    """
    if not isinstance(offsets, Iterable) or (isinstance(offsets, np.ndarray | jax.Array) and not offsets.shape):
        raise TypeError(f"offsets is {offsets!r}; give several ints, static, such as range(16) or [8].")
    given = tuple(checks.whole("each of the offsets", offset) for offset in offsets)
    if not given:
        raise ValueError("offsets hold no number; give at least one, such as range(16).")
    found: Steps = _steps(state, batch, offsets=given)
    return found


@partial(jax.jit, static_argnames=("offsets",))
def _steps(state: BufferState, batch: Sample, *, offsets: tuple[int, ...]) -> Steps:
    """`steps`, compiled."""
    config = config_of(state)
    require_sample(batch)
    state, batch = jax.lax.stop_gradient((state, batch))
    rows = rows_of(state, batch.indices)
    here, longest = visits(state, rows), config.max_episode_length
    wanted = here.step[:, None] + np.clip([offsets], -longest, longest).astype(np.int32)
    nearest = jnp.clip(wanted, first_held(state, rows, here.step)[:, None], here.length[:, None] - 1)
    mask = (wanted == nearest) & is_held(state, rows)[:, None]
    near_rows = row_of_step(config, rows[:, None], here.step[:, None], nearest)
    mask, (found,) = transitions_once(state, mask.astype(jnp.int32), near_rows.ravel())
    transition = jax.tree.map(lambda leaf: leaf.reshape(*mask.shape, *leaf.shape[1:]), found)
    there = jnp.broadcast_to(can_sample(state), mask.shape)
    reward = _under_goals(config.reward_fn, transition, batch.goal).astype(batch.reward.dtype)
    terminated = None if config.terminated_fn is None else _under_goals(config.terminated_fn, transition, batch.goal) & there
    return Steps(transition, jnp.where(there, reward, 0), terminated, mask > 0)


def _under_goals(function: RewardFn | TerminatedFn, transition: Transition, goal: Goal) -> jax.Array:
    """What a function says of each step, [n, offsets, ...], under the goal of its transition, [n, ...]: [n, offsets]."""
    return jax.vmap(jax.vmap(function, (0, None)))(transition, goal)
