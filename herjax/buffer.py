"""How a buffer begins: `init`."""

from collections.abc import Mapping
from typing import Any

import jax

from herjax.config import Config, settings_and_numbers
from herjax.functions import GoalFn, RewardFn, TerminatedFn, Transition
from herjax.rows import Layout
from herjax.state import BufferState, empty
from herjax.storage import next_pairs
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
    next_of: Mapping[Any, Any] | None = None,
    sample_running: bool = False,
) -> BufferState:
    """Makes an empty buffer, for hindsight experience replay (arXiv:1707.01495, algorithm 1).

    The functions are kept in the state and compare by identity: define them once, outside the training loop.

    Args:
      transition: an example of one transition, unbatched: a pytree of arrays or `jax.ShapeDtypeStruct`s.
      capacity: the most finished transitions held, over all environments. Their copies do not count. A multiple of `num_envs`,
        and at least `max_episode_length` for each environment.
      max_episode_length: the most transitions of one episode that are stored.
      goal_fn: `goal_fn(transition) -> goal`, the goal that the transition achieved, after its action; any pytree.
      reward_fn: `reward_fn(transition, goal) -> []`, the transition's reward had `goal` been desired.
      terminated_fn: `terminated_fn(transition, goal) -> bool []`, whether the transition ends the task under `goal`.
      strategy: where hindsight goals come from. "final", "future", "episode" and "random" are the paper's (section 4.5). A
        function `(key, step, length) -> goal_step` of int32 scalars names a step of the episode, as `herjax.geometric(0.98)`
        does. `herjax.mixture` combines several.
      num_goals: hindsight goals per transition, k in the paper. 0: no hindsight. "final" has one at most.
      relabel: "episode_end": goals are drawn once, when their episode ends, and kept. "sample": a goal is drawn whenever a
        transition is sampled, its own with probability 1 / (num_goals + 1). Then no copies are stored.
      num_steps: n of n-step returns: the most steps whose rewards a copy adds up. Its window ends early with the episode, and
        with a transition that `terminated_fn` calls the end under the copy's goal.
      discount: in [0, 1]. Weighs the rewards in a window, and gives `Sample.discount`. None: only with num_steps=1.
      priority_exponent: alpha of prioritised replay (arXiv:1511.05952, section 3.3); None: uniform replay.
      priority_epsilon: added to every priority, so that none is zero. It, `discount` and `priority_exponent` may also be an
        array, float [], traced or not. So a sweep over them is a `vmap` over `init`.
      num_envs: environments that fill the buffer. What `add` and `end_episode` are given then has a leading axis of that size;
        the example `transition` has none. None: one environment, unbatched arguments.
      next_of: `{"next_observation": "observation"}` says that each step's next observation is the observation of the next step.
        The two are then stored once. Fields are keys of a dict, or attributes; each may be a pytree. You read both fields as if
        both were stored. If they differ within an episode, the later one holds, and checkify names it. An episode takes room
        for one transition more than it has, in `capacity`, too.
      sample_running: whether `sample` draws from running episodes too, from the first `add` on. Their hindsight goals come from
        the steps so far. Needs relabel="sample". Each `add` is then given the goal pursued, as `goal=`, and `end_episode` None.

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
    layout = Layout.of("transition", transition)
    config = Config(
        transition=layout,
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
        next_of=next_pairs(layout, next_of),
        sample_running=sample_running,
        **settings,
    )
    return empty(config, numbers)
