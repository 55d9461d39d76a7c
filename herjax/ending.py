"""How the running episodes end: `end_episode`, `discard`."""

import dataclasses

import jax
import jax.numpy as jnp

from herjax import checks, hindsight, prioritized
from herjax.arguments import batched, check_goal, only_where
from herjax.functions import Goal
from herjax.lanes import Chunk, for_each_step, materialized, seen, written_after
from herjax.reading import Visits
from herjax.rings import observation_at, observation_of, row_at, wrapped
from herjax.rows import Pytree
from herjax.state import BufferState, Observations, config_of


@jax.jit
def end_episode(state: BufferState, goal: Goal | None, key: jax.Array | None, done: jax.Array | bool = True) -> BufferState:
    """Ends the running episode: hindsight goals are drawn, rewards recomputed, and its transitions can be sampled.

    With `relabel="sample"`, `sample` draws the goals and recomputes the rewards instead.

    Args:
      state: the buffer.
      goal: the goal that the ended episode pursued; structure, shapes and dtypes are those of `goal_fn`'s result. With
        `num_envs`, a goal of each environment along a leading axis. With `sample_running`, None: `add` was given it.
      key: one key, also with `num_envs`: draws the hindsight goals; used up. With relabel="sample" it may be None.
      done: bool [], whether the episode ended; with `num_envs`, that or bool [num_envs]. Where it is False, or no transition is
        pending, nothing changes.

    Returns:
      The next state. The oldest transitions have made room; the ended episode is held whole.

    Raises:
      ValueError: the goal's structure or a leaf's shape differs from `goal_fn`'s, or `key` or `done` has another shape; `goal`
        is given or missing, against what `init` was told.
      TypeError: a leaf's dtype differs, `key` is no key, or `done` is no bool.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.add(buffer, jnp.float32(3))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> sorted(set(herjax.sample(buffer, jax.random.key(1), 64).goal.tolist()))  # One was achieved, one was pursued.
      [3.0, 5.0]
    """
    config = config_of(state)
    check_goal(config, "end_episode", goal, given=not config.sample_running)
    key = checks.key(jax.random.key(0) if key is None and config.relabels_when_sampled else key)  # Not used then.
    state, goal = jax.lax.stop_gradient((state, goal))
    lengths = jnp.where(checks.flags("done", done, config.num_envs), state.pending, 0)
    head, held = row_at(config, jnp.int32(0), state.head + lengths), state.held + lengths

    def commit(ended: BufferState, turn: jax.Array, steps: Chunk, given: Pytree) -> BufferState:
        lengths, begins, held, observations, goals = given
        rows = row_at(config, steps.env, begins[steps.env] + steps.step)
        length = jnp.maximum(lengths[steps.env], 1)
        targets = jnp.where(steps.valid, rows, config.num_rows)
        ended = _placed(ended, targets, steps, length)
        ended, first = _all_observed(ended, held, observations, lengths, steps)
        stored = None
        if goals is not None:
            goals = only_where(lengths > 0, goals)
            visits = Visits(rows, steps.step, length, jnp.zeros_like(rows), goals[steps.env], steps.valid)
            stored = hindsight.stored(ended, jax.random.fold_in(key, turn), visits)
            stored = jnp.where(steps.valid[:, None, None], stored, jnp.uint32(0))
            stored = materialized(jnp.any(steps.valid), stored)
            copies = config.stored.write(ended.copies, targets * config.num_copies, stored)
            ended = prioritized.enter(dataclasses.replace(ended, copies=copies), targets)
        if first is None and stored is None:
            return ended
        columns = tuple(written_after(column, seen((first, stored))) for column in ended.columns)
        return dataclasses.replace(ended, columns=columns)

    ended = dataclasses.replace(state, head=head, held=held, pending=state.pending - lengths)
    goals = None if config.sample_running else jax.vmap(config.goal.pack)(batched(config, goal))
    given = (lengths, state.head, held, state.observations, goals)
    return for_each_step(lengths, config.max_episode_length, commit, ended, given)


@jax.jit
def discard(state: BufferState, done: jax.Array | bool = True) -> BufferState:
    """Drops the running episode, as if it had never begun: after a crash of the simulator, or a restart from a checkpoint.

    The old transitions whose place it took do not come back. With `sample_running`, indices drawn from it hold nothing then.

    Args:
      state: the buffer.
      done: bool [], whether to drop it; with `num_envs`, that or bool [num_envs].

    Returns:
      The next state. Where `done` is False, or no transition is pending, nothing changes.

    Raises:
      ValueError: `done` has another shape.
      TypeError: `done` is no bool.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.discard(herjax.add(buffer, jnp.float32(3)))
      >>> int(herjax.size(herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))))
      0
    """
    config = config_of(state)
    lengths = jnp.where(checks.flags("done", done, config.num_envs), state.pending, 0)

    def leave(state: BufferState, _: jax.Array, steps: Chunk, head: jax.Array) -> BufferState:
        rows = row_at(config, steps.env, head[steps.env] + steps.step)
        return prioritized.leave(state, jnp.where(steps.valid, rows, config.num_rows))

    if config.sample_running and state.tree is not None:
        state = for_each_step(lengths, config.max_episode_length, leave, state, state.head)
    return dataclasses.replace(state, pending=state.pending - lengths)


def _placed(state: BufferState, rows: jax.Array, steps: Chunk, length: jax.Array) -> BufferState:
    """Tells in each of `rows`, int32 [n], which step of an episode of which `length`, int32 [n], it has."""
    layout = state.config.place
    place = jnp.where(steps.valid[:, None], jnp.stack([steps.step, length], axis=1), 0)
    words = jax.vmap(layout.pack)(place.astype(layout.leaves[0].dtype))
    return dataclasses.replace(state, places=layout.write(state.places, rows, words[:, None]))


def _all_observed(
    ended: BufferState, held: jax.Array, observations: Observations | None, lengths: jax.Array, steps: Chunk
) -> tuple[BufferState, jax.Array | None]:
    """With `next_of`: makes room for the last observations of the episodes that end. Returns what was read, too.

    It finds the same in each turn, and writes it, but priorities go where an episode's first step is among a turn's.

    Args:
      ended: the state.
      held: int32 [n]; as before the first turn; the episodes' steps count already.
      observations: as before the first turn.
      lengths: int32 [n]; of the episodes that end; 0 where none does.
      steps: those of this turn.
    """
    if observations is None:
        return ended, None
    config = ended.config
    envs = jnp.arange(config.envs, dtype=jnp.int32)
    head = wrapped(config.observations_per_env, observations.head + lengths + jnp.sign(lengths))
    oldest = row_at(config, envs, ended.head - held)
    first = materialized(jnp.any(lengths > 0), observation_of(ended, oldest))
    used = 1 + wrapped(config.observations_per_env, observation_at(config, envs, head - 1) - first)
    gone = (lengths > 0) & (used > config.capacity_per_env)
    observations = Observations(head, jnp.where(lengths > 0, used - held, observations.episodes))
    ended = dataclasses.replace(ended, held=held - gone.astype(jnp.int32), observations=observations)
    leaving = steps.valid & (steps.step == 0) & gone[steps.env]
    return prioritized.leave(ended, jnp.where(leaving, oldest[steps.env], config.num_rows)), first
