"""What the functions of the running episodes are given: checked, and with an axis for the environments."""

import jax
import jax.numpy as jnp

from herjax.config import Config
from herjax.functions import Goal
from herjax.rows import Pytree


def check_goal(config: Config, caller: str, goal: Goal | None, *, given: bool) -> None:
    """Raises unless a goal is given where it must be, and nowhere else, and is like `goal_fn`'s."""
    if (goal is not None) != given:
        here, remedy = ("missing", f"give it to {caller}") if given else ("given", f"pass None to {caller}")
        if given and config.sample_running:
            remedy += " as `goal=goal`; the third argument is `mask`"
        raise ValueError(
            f"goal is {here}: init had sample_running={config.sample_running}, where the goal is an argument of "
            f"{'add' if config.sample_running else 'end_episode'}; {remedy}."
        )
    if given:
        config.goal.check("goal", goal, config.num_envs)


def batched(config: Config, tree: Pytree) -> Pytree:
    """An argument with an axis for the environments."""
    return tree if config.num_envs is not None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def only_where(there: jax.Array, words: Pytree) -> Pytree:
    """Words, each array [n, ...], or zeros unless `there`, bool [n]."""
    return jax.tree.map(
        lambda each: jnp.where(there.reshape(-1, *(1,) * (each.ndim - 1)), each, jnp.zeros((), each.dtype)), words
    )
