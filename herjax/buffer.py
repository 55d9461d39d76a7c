"""How transitions get into a buffer: `init`, `add`, `end_episode`, `discard`."""

import dataclasses

import jax
import jax.numpy as jnp

from herjax import checks, hindsight, prioritized
from herjax.config import Config, settings_and_numbers
from herjax.faults import reported
from herjax.functions import Goal, GoalFn, RewardFn, TerminatedFn, Transition
from herjax.lanes import Steps, for_each_step, materialized, written_after
from herjax.reading import Visits
from herjax.rings import row_at
from herjax.rows import Layout, Pytree
from herjax.state import BufferState, after, config_of, count, empty, seen
from herjax.strategies import Mixture, StrategyFn, as_mixture


def init(
    transition: Transition,
    *,
    capacity: int,
    max_episode_length: int,
    goal_fn: GoalFn,
    reward_fn: RewardFn,
    terminated_fn: TerminatedFn | None = None,
    strategy: str | StrategyFn | Mixture = "future",
    num_goals: int = 4,
    relabel: str = "episode_end",
    num_steps: int = 1,
    discount: jax.Array | float | None = None,
    priority_exponent: jax.Array | float | None = None,
    priority_epsilon: jax.Array | float = 1e-6,
    num_envs: int | None = None,
) -> BufferState:
    """Makes an empty buffer, for hindsight experience replay (arXiv:1707.01495, algorithm 1).

    The functions are kept in the state and compare by identity: define them once, outside the training loop.

    Args:
      transition: an example of one transition, unbatched: a pytree of arrays or `jax.ShapeDtypeStruct`s.
      capacity: the most finished transitions held, over all environments. Their copies do not count.
      max_episode_length: the most transitions of one episode that are stored.
      goal_fn: `goal_fn(transition) -> goal`, the goal that the transition achieved, after its action; any pytree.
      reward_fn: `reward_fn(transition, goal) -> []`, the transition's reward had `goal` been desired.
      terminated_fn: `terminated_fn(transition, goal) -> bool []`, whether the transition ends the task under `goal`.
      strategy: "final", "future", "episode" or "random" (arXiv:1707.01495, section 4.5), or a function
        `(key, step, length) -> goal_step` of int32 scalars, such as `herjax.geometric(0.98)`, or a `herjax.mixture` of these.
      num_goals: hindsight goals per transition, k in the paper. 0: no hindsight. "final" has one at most.
      relabel: "episode_end": goals are drawn once, when their episode ends, and kept. "sample": goals are drawn afresh whenever
        a transition is sampled, its own with probability 1 / (num_goals + 1), and no copies are stored.
      num_steps: n of n-step returns: the most steps whose rewards a copy adds up. Its window ends early with the episode, and
        with a transition that `terminated_fn` calls the end under the copy's goal.
      discount: of the rewards in a window, and of what `Sample.discount` says; in [0, 1]. None: only with num_steps=1.
      priority_exponent: alpha of prioritised replay (arXiv:1511.05952, section 3.3); None: uniform replay.
      priority_epsilon: added to every priority, so that none is zero. This, `priority_exponent` and `discount` may also be one
        array, float [], traced or not: so a sweep over them is a `vmap` over `init`.
      num_envs: environments that fill the buffer: what `add` and `end_episode` are given then has a leading axis of that size.
        None: one environment, unbatched arguments.

    Returns:
      The state of an empty buffer.

    Raises:
      ValueError: an argument is out of range, or a function returns the wrong shape; the message says what to give.
      TypeError: an argument or a function's result is of the wrong type.

    Example:
      >>> import herjax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> int(herjax.size(buffer)), bool(herjax.can_sample(buffer))
      (0, False)
    """
    settings, numbers = settings_and_numbers(
        discount=discount, priority_exponent=priority_exponent, priority_epsilon=priority_epsilon
    )
    config = Config(
        transition=Layout.of("transition", transition),
        capacity=capacity,
        max_episode_length=max_episode_length,
        goal_fn=goal_fn,
        reward_fn=reward_fn,
        terminated_fn=terminated_fn,
        strategy=as_mixture(strategy),
        num_goals=num_goals,
        relabel=relabel,
        num_steps=num_steps,
        num_envs=num_envs,
        **settings,
    )
    return empty(config, numbers)


@jax.jit
def add(state: BufferState, transition: Transition, mask: jax.Array | bool = True) -> BufferState:
    """Appends a transition to the running episode. It is neither sampled nor a goal's source until the episode ends.

    Past `max_episode_length` the transition is not stored but counted in `num_dropped`, and named under checkify.

    Args:
      state: the buffer.
      transition: one transition, like `init`'s example; with `num_envs`, one of each environment along a leading axis.
      mask: bool [], whether there is a transition; with `num_envs`, that or bool [num_envs]. Where False, nothing changes.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's, or `mask` has another shape.
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
    mask = checks.flags("mask", mask, config.num_envs)
    state, transition = jax.lax.stop_gradient((state, transition))
    state = after(state, transition)  # For what `end_episode` writes: a transition may depend on a batch, by way of the policy.
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
    packed = jnp.where(stored[:, None], jax.vmap(config.transition.pack)(_with_axis(config, transition)), jnp.uint32(0))
    return dataclasses.replace(
        state,
        transitions=config.transition.write(state.transitions, rows, packed[:, None]),
        held=state.held - full.astype(jnp.int32),
        pending=state.pending + stored.astype(jnp.int32),
        num_dropped=count(num_dropped, jnp.sum(dropped)),
    )


@jax.jit
def end_episode(state: BufferState, goal: Goal, key: jax.Array, done: jax.Array | bool = True) -> BufferState:
    """Ends the running episode: hindsight goals are drawn, rewards recomputed, and its transitions can be sampled.

    With `relabel="sample"`, `sample` draws the goals and recomputes the rewards instead.

    Args:
      state: the buffer.
      goal: the goal that the ended episode pursued; structure, shapes and dtypes are those of `goal_fn`'s result. With
        `num_envs`, a goal of each environment along a leading axis.
      key: one key, also with `num_envs`: draws the hindsight goals; used up.
      done: bool [], whether the episode ended; with `num_envs`, that or bool [num_envs]. Where it is False, or no transition is
        pending, nothing changes.

    Returns:
      The next state. The oldest transitions have made room; the ended episode is held whole.

    Raises:
      ValueError: the goal's structure or a leaf's shape differs from `goal_fn`'s, or `key` or `done` has another shape.
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
    config.goal.check("goal", goal, config.num_envs)
    checks.key(key)
    state, goal = jax.lax.stop_gradient((state, goal))
    lengths = jnp.where(checks.flags("done", done, config.num_envs), state.pending, 0)
    goals = jnp.where(lengths[:, None] > 0, jax.vmap(config.goal.pack)(_with_axis(config, goal)), jnp.uint32(0))
    ended = dataclasses.replace(
        state,
        head=row_at(config, jnp.int32(0), state.head + lengths),
        held=state.held + lengths,
        pending=state.pending - lengths,
    )

    def commit(ended: BufferState, turn: jax.Array, steps: Steps) -> BufferState:
        env = steps.env
        row = row_at(config, env, state.head[env] + steps.step)
        length = jnp.maximum(lengths[env], 1)
        visits = Visits(row, steps.step, length, jnp.zeros_like(row), goals[env], steps.valid)
        stored = hindsight.stored(ended, jax.random.fold_in(key, turn), visits)
        stored = jnp.where(steps.valid[:, None, None], stored, jnp.uint32(0))
        stored = materialized(jnp.any(steps.valid), stored)
        row = jnp.where(steps.valid, row, config.num_rows)
        place = jnp.where(steps.valid[:, None], jnp.stack([steps.step, length], axis=1), 0)
        place = jax.vmap(config.place.pack)(place.astype(config.place.leaves[0].dtype))
        ended = dataclasses.replace(
            ended,
            transitions=written_after(ended.transitions, seen(stored)),
            places=config.place.write(ended.places, row, place[:, None]),
            copies=config.stored.write(ended.copies, row * config.num_copies, stored),
        )
        return prioritized.enter(ended, row)

    return for_each_step(lengths, config.max_episode_length, commit, ended)


@jax.jit
def discard(state: BufferState, done: jax.Array | bool = True) -> BufferState:
    """Drops the running episode, as if it had never begun: after a crash of the simulator, or a restart from a checkpoint.

    The old transitions whose place it took do not come back.

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
    dropped = checks.flags("done", done, config_of(state).num_envs)
    return dataclasses.replace(state, pending=jnp.where(dropped, 0, state.pending))


def _with_axis(config: Config, tree: Pytree) -> Pytree:
    """An argument with an axis for the environments, also where there is none: each leaf [n, ...]."""
    return tree if config.num_envs is not None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
