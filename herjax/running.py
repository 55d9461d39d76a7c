"""The running episodes: `add`, `end_episode`, `discard`."""

import dataclasses

import jax
import jax.numpy as jnp

from herjax import checks, hindsight, prioritized
from herjax.config import Config
from herjax.faults import reported
from herjax.functions import Goal, Transition
from herjax.lanes import Chunk, for_each_step, materialized, written_after
from herjax.reading import Visits
from herjax.rings import row_at
from herjax.rows import Layout, Pytree
from herjax.state import BufferState, after, config_of, count, seen


@jax.jit
def add(state: BufferState, transition: Transition, mask: jax.Array | bool = True, *, goal: Goal | None = None) -> BufferState:
    """Appends a transition to the running episode.

    It is neither sampled nor a goal's source until the episode ends; with `sample_running`, it is both at once.

    Past `max_episode_length` the transition is not stored but counted in `num_dropped`, and named under checkify.

    Args:
      state: the buffer.
      transition: one transition, like `init`'s example; with `num_envs`, one of each environment along a leading axis.
      mask: bool [], whether there is a transition; with `num_envs`, that or bool [num_envs]. Where False, nothing changes.
      goal: with `sample_running` alone: the goal that this step pursues, as `end_episode` is given it elsewhere. It may change
        from step to step.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's, or `mask` has another shape; `goal`
        is given or missing, against what `init` was told.
      TypeError: a leaf's dtype differs, or `mask` is no bool.

    Example:
      >>> import herjax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=2, goal_fn=lambda t: t, reward_fn=reward)
      >>> for position in (1.0, 2.0, 3.0):
      ...     buffer = herjax.add(buffer, jnp.float32(position))
      >>> int(herjax.size(buffer)), int(buffer.num_dropped)  # The episode still runs; the third did not fit.
      (0, 1)
    """
    config = config_of(state)
    config.transition.check("transition", transition, config.num_envs)
    _check_goal(config, "add", goal, given=config.sample_running)
    mask = checks.flags("mask", mask, config.num_envs)
    state, transition, goal = jax.lax.stop_gradient((state, transition, goal))
    # For what is written here and in `end_episode`: a transition may depend on a batch, by way of the policy.
    state = after(state, (transition, goal))
    dropped = mask & (state.pending >= config.max_episode_length)
    stored = mask & ~dropped
    num_dropped = reported(
        state.num_dropped,
        ~jnp.any(dropped),
        "add: the episode of environment {env} is longer than max_episode_length, which is "
        f"{config.max_episode_length}; the transition was dropped",
        env=jnp.argmax(dropped),
    )
    envs = jnp.arange(config.envs, dtype=jnp.int32)
    full = stored & (state.held + state.pending >= config.capacity_per_env)
    state = prioritized.leave(state, jnp.where(full, row_at(config, envs, state.head - state.held), config.num_rows))
    rows = jnp.where(stored, row_at(config, envs, state.head + state.pending), config.num_rows)
    if config.sample_running:
        goals = _packed(config, config.goal, goal, stored)
        state = dataclasses.replace(state, copies=config.stored.write(state.copies, rows, goals[:, None]))
        state = prioritized.enter(state, rows)
    packed = _packed(config, config.transition, transition, stored)
    return dataclasses.replace(
        state,
        transitions=config.transition.write(state.transitions, rows, packed[:, None]),
        held=state.held - full.astype(jnp.int32),
        pending=state.pending + stored.astype(jnp.int32),
        num_dropped=count(num_dropped, jnp.sum(dropped)),
    )


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
    _check_goal(config, "end_episode", goal, given=not config.sample_running)
    key = checks.key(jax.random.key(0) if key is None and config.relabels_when_sampled else key)  # Not used then.
    state, goal = jax.lax.stop_gradient((state, goal))
    lengths = jnp.where(checks.flags("done", done, config.num_envs), state.pending, 0)
    ended = dataclasses.replace(
        state,
        head=row_at(config, jnp.int32(0), state.head + lengths),
        held=state.held + lengths,
        pending=state.pending - lengths,
    )
    goals = None if config.sample_running else _packed(config, config.goal, goal, lengths > 0)

    def commit(ended: BufferState, turn: jax.Array, steps: Chunk) -> BufferState:
        rows = row_at(config, steps.env, state.head[steps.env] + steps.step)
        length = jnp.maximum(lengths[steps.env], 1)
        place = jnp.where(steps.valid[:, None], jnp.stack([steps.step, length], axis=1), 0)
        place = jax.vmap(config.place.pack)(place.astype(config.place.leaves[0].dtype))
        targets = jnp.where(steps.valid, rows, config.num_rows)
        ended = dataclasses.replace(ended, places=config.place.write(ended.places, targets, place[:, None]))
        if goals is None:
            return ended
        visits = Visits(rows, steps.step, length, jnp.zeros_like(rows), goals[steps.env], steps.valid)
        stored = hindsight.stored(ended, jax.random.fold_in(key, turn), visits)
        stored = jnp.where(steps.valid[:, None, None], stored, jnp.uint32(0))
        stored = materialized(jnp.any(steps.valid), stored)
        ended = dataclasses.replace(
            ended,
            transitions=written_after(ended.transitions, seen(stored)),
            copies=config.stored.write(ended.copies, targets * config.num_copies, stored),
        )
        return prioritized.enter(ended, targets)

    return for_each_step(lengths, config.max_episode_length, commit, ended)


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

    def leave(state: BufferState, _: jax.Array, steps: Chunk) -> BufferState:
        rows = row_at(config, steps.env, state.head[steps.env] + steps.step)
        return prioritized.leave(state, jnp.where(steps.valid, rows, config.num_rows))

    if config.sample_running and state.tree is not None:
        state = for_each_step(lengths, config.max_episode_length, leave, state)
    return dataclasses.replace(state, pending=state.pending - lengths)


def _check_goal(config: Config, caller: str, goal: Goal | None, *, given: bool) -> None:
    """Raises unless a goal is given where it must be, and nowhere else, and is like `goal_fn`'s."""
    if (goal is not None) != given:
        here, other = ("missing", "give it to") if given else ("given", "pass None to")
        raise ValueError(
            f"goal is {here}: init had sample_running={config.sample_running}, where the goal is an argument of "
            f"{'add' if config.sample_running else 'end_episode'}; {other} {caller}."
        )
    if given:
        config.goal.check("goal", goal, config.num_envs)


def _packed(config: Config, layout: Layout, tree: Pytree, there: jax.Array) -> jax.Array:
    """An argument as rows of the environments, uint32 [n, words], zeros unless `there`, bool [n]."""
    if config.num_envs is None:
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
    return jnp.where(there[:, None], jax.vmap(layout.pack)(tree), jnp.uint32(0))
