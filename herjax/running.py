"""The running episodes: `add`, `end_episode`, `discard`."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from herjax import checks, hindsight, prioritized
from herjax.config import Config
from herjax.faults import on_explicit_axes, reported
from herjax.functions import Goal, Transition
from herjax.lanes import Chunk, for_each_step, materialized, written_after
from herjax.reading import Visits, places
from herjax.rings import row_after, row_at, wrapped
from herjax.rows import Pytree
from herjax.state import BufferState, Observations, after, config_of, count, seen


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
    envs = jnp.arange(config.envs, dtype=jnp.int32)
    oldest = None
    if config.next_of is not None:  # Read once, or XLA could not tell that it is read before it is written.
        oldest = materialized(state.held[0] >= 0, places(state, row_at(config, envs, state.head - state.held)))
    # For what is written here and in `end_episode`: a transition may depend on a batch, by way of the policy.
    state = after(state, (transition, goal, oldest))
    dropped = mask & (state.pending >= config.max_episode_length)
    stored = mask & ~dropped
    num_dropped = reported(
        state.num_dropped,
        ~jnp.any(dropped),
        "add: the episode of environment {env} is longer than max_episode_length, which is "
        f"{config.max_episode_length}; the transition was dropped",
        env=jnp.argmax(dropped),
    )
    state = _room_made(state, stored, oldest)
    rows = jnp.where(stored, row_at(config, envs, state.head + state.pending), config.num_rows)
    if config.sample_running:
        goals = _where(stored, jax.vmap(config.goal.pack)(_batched(config, goal)))[0]
        state = dataclasses.replace(state, copies=config.stored.write(state.copies, rows, goals[:, None]))
        state = prioritized.enter(state, rows)
    state = _written(state, rows, _batched(config, transition), stored)
    return dataclasses.replace(
        state,
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
        observations=_one_more(state, lengths > 0),
    )
    goals = None if config.sample_running else _where(lengths > 0, jax.vmap(config.goal.pack)(_batched(config, goal)))[0]

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
            observations=_written_after(ended.observations, seen(stored)),
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


def _room_made(state: BufferState, stored: jax.Array, oldest: tuple[jax.Array, jax.Array] | None) -> BufferState:
    """Room for one more transition of the environments where `stored`, bool [n].

    Args:
      state: the buffer.
      stored: where there is one.
      oldest: with `next_of`, the step of each environment's oldest transition and the length of its episode, int32 [n].
    """
    config, observations = state.config, state.observations
    used = state.held + state.pending + 1
    most = 1
    if observations is not None and oldest is not None:
        used, most = used + observations.held + 1, 2  # The first step of an episode takes two observations.
        remaining = oldest[1] - oldest[0]
    gone = jnp.where(stored, jnp.maximum(used - config.capacity_per_env, 0), 0)
    if observations is not None and oldest is not None:
        gone = jnp.where(remaining == 1, jnp.minimum(gone, 1), gone)  # The last step of an episode leaves two.
        all_gone = (gone > 0) & (gone == remaining)
        observations = observations._replace(held=observations.held - all_gone.astype(jnp.int32))
    number = np.arange(most, dtype=np.int32)[None]
    rows = row_at(config, jnp.arange(config.envs, dtype=jnp.int32)[:, None], (state.head - state.held)[:, None] + number)
    state = prioritized.leave(state, jnp.where(number < gone[:, None], rows, config.num_rows).ravel())
    return dataclasses.replace(state, held=state.held - gone, observations=observations)


def _written(state: BufferState, rows: jax.Array, transition: Transition, stored: jax.Array) -> BufferState:
    """Each environment's transition, each leaf [n, ...], written to its row, int32 [n]; zeros unless `stored`, bool [n]."""
    config, observations, storage = state.config, state.observations, state.config.storage
    if observations is None or storage.observation is None:
        (packed,) = _where(stored, *jax.vmap(storage.pack)(transition, rows))
        return dataclasses.replace(state, transitions=storage.row.write(state.transitions, rows, packed[:, None]))
    envs = jnp.arange(config.envs, dtype=jnp.int32)
    now = row_at(config, envs, wrapped(config, state.head + observations.ended) + state.pending)
    packed, given, later = _where(stored, *jax.vmap(storage.pack)(transition, now))
    if not on_explicit_axes():  # Where JAX refuses to read what is not sharded by values that are.
        follows = ~stored | (state.pending == 0)
        packed = _reported_unless_follows(config, packed, follows, given, storage.observation.read(observations.rows, now))
    targets = jnp.where(stored, now, config.num_rows), jnp.where(stored, row_after(config, now), config.num_rows)
    both = jnp.concatenate([given, later])[:, None]
    rows_written = storage.observation.write(observations.rows, jnp.concatenate(targets), both)
    return dataclasses.replace(
        state,
        transitions=storage.row.write(state.transitions, rows, packed[:, None]),
        observations=observations._replace(rows=rows_written),
    )


def _reported_unless_follows(
    config: Config, packed: jax.Array, follows: jax.Array, now: jax.Array, before: jax.Array
) -> jax.Array:
    """`packed` as it is; under checkify, the fault where an observation is not the one that the step before was given.

    Args:
      config: the buffer's settings.
      packed: what the fault rides on.
      follows: bool [n]; where all is well in any case.
      now: uint32 [n, words]; each environment's observation.
      before: uint32 [n, words]; the one that the step before was given.
    """
    storage, shared = config.storage, () if config.storage.observation is None else config.storage.observation.leaves
    for leaf, *pair in zip(shared, storage.now, storage.later, strict=True):
        words = slice(leaf.start, leaf.start + leaf.words)
        alike = follows | jnp.all(before[:, words] == now[:, words], axis=1)
        field, later = (re.sub("[{}]", "", storage.transition.leaves[number].path) for number in pair)
        packed = reported(
            packed,
            jnp.all(alike),
            f"add: {field} of environment {{env}} is not {later} of the step before it (next_of); the one given last holds",
            env=jnp.argmin(alike),
        )
    return packed


def _one_more(state: BufferState, ended: jax.Array) -> Observations | None:
    """The observations where these environments', bool [n], episodes have ended."""
    observations, more = state.observations, ended.astype(jnp.int32)
    if observations is None:
        return None
    return observations._replace(ended=wrapped(state.config, observations.ended + more), held=observations.held + more)


def _written_after(observations: Observations | None, number: jax.Array) -> Observations | None:
    """`written_after` of their rows."""
    return None if observations is None else observations._replace(rows=written_after(observations.rows, number))


def _batched(config: Config, tree: Pytree) -> Pytree:
    """An argument with an axis for the environments."""
    return tree if config.num_envs is not None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def _where(there: jax.Array, *words: jax.Array) -> tuple[jax.Array, ...]:
    """Words, uint32 [n, ...], or zeros unless `there`, bool [n]."""
    return tuple(jnp.where(there.reshape(-1, *(1,) * (each.ndim - 1)), each, jnp.uint32(0)) for each in words)
