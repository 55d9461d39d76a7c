"""The planar tasks: whole episodes, which an agent plays side by side, and pictures of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from herjax.envs import PlanarPush, PlanarReach

Task: TypeAlias = Literal["push", "reach", "reacher"]
Policy: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Gives actions [E, A] in [-1, 1] for observations [E, D], goals [E, G] and a key."""


class Transition(NamedTuple):
    """One step of the environment."""

    observation: jax.Array  # float32 [D]
    action: jax.Array  # float32 [A]; in [-1, 1].
    next_observation: jax.Array  # float32 [D]
    achieved_goal: jax.Array  # float32 [G]; after the action.


class Episodes(NamedTuple):
    """E whole episodes of T steps, played side by side; steps come first."""

    states: Any  # Of the environment, after each step: leaves [T, E, ...].
    transitions: Transition  # Leaves [T, E, ...].
    goal: jax.Array  # float32 [E, G]
    success: jax.Array  # bool [E]; whether the goal was achieved at the end.


@cache
def make_env(task: Task) -> tuple[Any, Any]:
    """The environment and its parameters."""
    if task != "reacher":
        env: Any = PlanarPush() if task == "push" else PlanarReach()
    else:
        try:
            from reacher import Reacher  # noqa: PLC0415 - only where asked for.
        except ModuleNotFoundError as error:
            raise ValueError(f'--task is {task}; it needs {error.name}: pip install ".[brax]".') from error
        env = Reacher()
    return env, env.default_params


def steps(task: Task) -> int:
    """Of an episode."""
    return int(make_env(task)[1].max_steps_in_episode)


def example(task: Task) -> Transition:
    """A transition of zeros."""
    env, params = make_env(task)
    spaces = env.observation_space(params).spaces
    observation, goal = (jnp.zeros(spaces[name].shape) for name in ("observation", "achieved_goal"))
    return Transition(observation, jnp.zeros(env.action_space(params).shape), observation, goal)


@cache
def make_reward(task: Task, shaped: bool) -> Callable[[Transition, jax.Array], jax.Array]:
    """The reward of a transition under a goal: that of the environment, or minus the squared distance to the goal."""
    env, params = make_env(task)
    if shaped:
        return lambda transition, goal: -jnp.sum((transition.achieved_goal - goal) ** 2)
    return lambda transition, goal: env.compute_reward(transition.achieved_goal, goal, params)


def play(task: Task, policy: Policy, key: jax.Array, episodes: int) -> Episodes:
    """Plays whole episodes."""
    env, params = make_env(task)
    key_reset, key_steps = jax.random.split(key)
    observation, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, episodes), params)
    goal = observation["desired_goal"]

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Transition]]:
        observation, state = carry
        key_policy, key_env = jax.random.split(key)
        action = policy(observation["observation"], goal, key_policy)
        # No reset: what follows the last step is what is stored, and the next episodes start anew.
        keys = jax.random.split(key_env, episodes)
        then, state, _, _, _ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, action, params)
        transition = Transition(observation["observation"], action, then["observation"], then["achieved_goal"])
        return (then, state), (state, transition)

    _, (states, transitions) = jax.lax.scan(step, (observation, state), jax.random.split(key_steps, steps(task)))
    success = env.compute_reward(transitions.achieved_goal[-1], goal, params) == 0
    return Episodes(states, transitions, goal, success)


def draw(task: Task, states: Any, size: int = 160) -> np.ndarray:
    """The table from above, uint8 [T, E, size, size, 3]: the goal a ring in green, the puck blue, the hand red."""
    _, params = make_env(task)
    across = np.linspace(-1, 1, size)
    pixels = np.stack(np.meshgrid(across, -across), axis=-1)
    discs = [(states.hand, 0.0, params.hand_radius, (214, 39, 40))]
    if task == "push":
        discs.append((states.puck, 0.0, params.puck_radius, (31, 119, 180)))
    discs.append((states.goal, params.tolerance - 0.015, params.tolerance, (44, 160, 44)))
    pictures = np.full((*np.shape(states.hand)[:2], size, size, 3), 255.0)
    for centre, inner, outer, colour in discs:
        distance = np.linalg.norm(pixels - np.asarray(centre)[:, :, None, None], axis=-1)
        covered = np.clip([(outer - distance) * size / 2 + 0.5, (distance - inner) * size / 2 + 0.5], 0, 1).min(axis=0)
        pictures += covered[..., None] * (np.asarray(colour) - pictures)
    pictures[:, :, [0, -1]] = pictures[:, :, :, [0, -1]] = 128  # A frame.
    return pictures.round().astype(np.uint8)


def draw_policy(task: Task, policy: Policy, key: jax.Array, folder: Path, episodes: int = 4) -> None:
    """Episodes, side by side: a film, policy.gif, and every third step at first, a row for each, policy.png."""
    states = jax.device_get(jax.jit(lambda key: play(task, policy, key, episodes).states)(key))
    pictures = draw(task, states)  # [T, E, size, size, 3]
    film = [Image.fromarray(np.concatenate(step, axis=1)) for step in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    film[0].save(folder / "policy.gif", save_all=True, append_images=film[1:], duration=60, loop=0)
    rows = [np.concatenate(episode, axis=1) for episode in pictures[:24:3].swapaxes(0, 1)]
    Image.fromarray(np.concatenate(rows)).save(folder / "policy.png")
