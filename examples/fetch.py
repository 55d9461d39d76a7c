"""Fetch, the robot arm of Gymnasium-Robotics (Plappert et al. 2018, arXiv:1802.09464), learned by DDPG with HER.

MuJoCo runs in processes of its own, a simulator in each, side by side. What they bring is stored, relabelled and learned from
in one jitted call a cycle, whose buffer is donated; the agent is that of ddpg.py.

pip install ".[examples,robotics]"
python examples/fetch.py                                # FetchReach: half a minute of training, a minute of evaluations
python examples/fetch.py --task push --num-envs 16 --batch-size 1024 --cycles 1200 --eval-every 50 --checkpoint results/push
python examples/fetch.py <the same flags> --play        # draws what was learned, without a display

A run with --checkpoint can be killed and started again: it goes on where it was. With smaller batches FetchPush is learned far
more slowly: the paper's eight workers of 128 transitions each make 1024.
"""

import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import experiment

import gymnasium
import gymnasium_robotics
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv
from PIL import Image

import flags
from ddpg import Agent, AgentConfig, Loop, act, check, explore, make_agent, make_buffer, store_and_learn
from flags import Count, Weight
from planar import Transition

gymnasium.register_envs(gymnasium_robotics)

TASKS = {"reach": "FetchReach-v4", "push": "FetchPush-v4", "pick_and_place": "FetchPickAndPlace-v4", "slide": "FetchSlide-v4"}
STEPS = 50
"""Of an episode, in every task of Fetch."""
THRESHOLD = 0.05
"""Metres from the goal within which it is reached, in every task of Fetch."""

Seen: TypeAlias = dict[str, np.ndarray]
"""What simulators show: "observation" [n, D], "achieved_goal" and "desired_goal" [n, G]."""
Policy: TypeAlias = Callable[[Agent, Seen, jax.Array, np.int32], jax.Array]
"""Gives actions [n, A], for a key of the episode and the number of the step."""


@dataclasses.dataclass(frozen=True)
class Config(AgentConfig):
    """Trains DDPG with Hindsight Experience Replay on a task of Fetch."""

    not_training: ClassVar[tuple[str, ...]] = (*AgentConfig.not_training, "cycles", "play")

    task: Literal["reach", "push", "pick_and_place", "slide"] = "reach"  # What to train on.
    cycles: flags.Stretches = 75  # Cycles of an episode in each simulator, then updates; a multiple of eval-every.
    num_envs: Count = 4  # Simulators, each in a process.
    hidden: flags.Units = (256, 256, 256)  # Units of the hidden layers of actor and critic.
    eval_every: Count = 5  # Cycles between evaluations.
    eval_episodes: Count = 100  # Greedy episodes of an evaluation, at least; a success is at its goal at the end.
    out: Path = Path("results/fetch")  # Folder for results.json, success_rate.png and, with --play, policy.gif.
    checkpoint_seconds: Weight = 60.0  # Time between checkpoints, at least. They are saved after an evaluation.
    play: bool = False  # Does not train, but draws greedy episodes of what --checkpoint holds.
    seeds: tyro.conf.Suppress[int] = 1


class Episodes(NamedTuple):
    """An episode of T steps of each of n simulators, NumPy's arrays."""

    transitions: Transition  # float32 leaves [T, n, ...]
    goal: np.ndarray  # float32 [n, G]
    success: np.ndarray  # bool [n]; whether the goal was achieved at the end.


def make_simulators(config: Config) -> AsyncVectorEnv:
    """The simulators, each in a process."""
    make = partial(gymnasium.make, TASKS[config.task])
    with warnings.catch_warnings():
        # JAX warns that a fork may find one of its locks held. These processes do not call JAX, and other ways to start them
        # import this file, and so JAX, in each.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        return AsyncVectorEnv([make] * config.num_envs, context="fork")


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """Fetch's: 0 near the goal, else -1."""
    return -(jnp.linalg.norm(transition.achieved_goal - goal) > THRESHOLD).astype(jnp.float32)


def start(config: Config, simulators: AsyncVectorEnv) -> Loop:
    """All that training goes on from, before the first cycle."""
    spaces = simulators.single_observation_space
    observation, goal = (jnp.zeros(spaces[name].shape) for name in ("observation", "achieved_goal"))
    example = Transition(observation, jnp.zeros(simulators.single_action_space.shape), observation, goal)
    buffer = make_buffer(config, example, reward, (config.num_envs, STEPS))
    return Loop(make_agent(config, example, jax.random.fold_in(jax.random.key(config.seed), 0)), buffer)


def draw(config: Config, kind: int, number: int) -> tuple[list[int], jax.Array]:
    """Seeds of the simulators, and a key, for some episodes; not from those before, so that a run can go on anywhere.

    Args:
      config: the settings.
      kind: 0 for training, 1 for evaluations, 2 for pictures.
      number: which episodes of that kind.
    """
    entropy = np.random.SeedSequence((config.seed, kind, number))
    *seeds, seed = entropy.generate_state(config.num_envs + 1).tolist()
    return seeds, jax.random.key(seed)


def behave(config: Config, agent: Agent, seen: Seen, key: jax.Array, step: jax.Array) -> jax.Array:
    """Actions [n, A] at a step of an episode, for what each simulator shows, with the noise of exploration."""
    return explore(config, act(config, agent, seen["observation"], seen["desired_goal"]), jax.random.fold_in(key, step))


def behave_greedily(config: Config, agent: Agent, seen: Seen, key: jax.Array, step: jax.Array) -> jax.Array:
    """The same without noise."""
    del key, step
    return act(config, agent, seen["observation"], seen["desired_goal"])


def play(simulators: AsyncVectorEnv, policy: Policy, agent: Agent, seeds: list[int], key: jax.Array) -> Episodes:
    """Plays a whole episode in each simulator."""
    seen = as_float32(simulators.reset(seed=seeds)[0])
    steps, info = [], {}
    for step in range(STEPS):
        action = np.asarray(policy(agent, seen, key, np.int32(step)))
        # All end with the last step, and would reset themselves in the one after it; the next episode's `reset` comes first.
        observed, _, _, _, info = simulators.step(action)
        then = as_float32(observed)
        steps.append(Transition(seen["observation"], action, then["observation"], then["achieved_goal"]))
        seen = then
    return Episodes(jax.tree.map(lambda *leaves: np.stack(leaves), *steps), seen["desired_goal"], info["is_success"] > 0)


def as_float32(observed: Seen) -> Seen:
    """What the simulators show, which compute with 64 bits."""
    return {name: values.astype(np.float32) for name, values in observed.items()}


def evaluate(config: Config, simulators: AsyncVectorEnv, policy: Policy, agent: Agent, number: int) -> float:
    """The share of greedy episodes that end at their goal."""
    rounds = -(-config.eval_episodes // config.num_envs)
    draws = [draw(config, 1, number * rounds + i) for i in range(rounds)]
    return float(np.mean([play(simulators, policy, agent, *drawn).success for drawn in draws]))


def make_training(config: Config, simulators: AsyncVectorEnv) -> experiment.Training:
    """Some cycles and an evaluation, again and again: the simulators play, and one jitted call stores and learns."""
    policy, greedy = (jax.jit(partial(function, config)) for function in (behave, behave_greedily))
    learn = jax.jit(partial(store_and_learn, config), donate_argnums=0)

    def advance(loop: Loop, number: int) -> tuple[Loop, dict[str, np.ndarray]]:
        began, losses = time.perf_counter(), []
        for cycle in range(number * config.eval_every, (number + 1) * config.eval_every):
            seeds, key = draw(config, 0, cycle)
            key_play, key_learn = jax.random.split(key)
            episodes = play(simulators, policy, loop.agent, seeds, key_play)
            loop, cycle_losses = learn(loop, episodes.transitions, episodes.goal, key_learn)
            losses.append(cycle_losses)
        figures = jax.tree.map(lambda *values: float(np.mean(values)), *losses)  # Waits for the last update.
        trained = time.perf_counter()
        figures["success_rate"] = evaluate(config, simulators, greedy, loop.agent, number)
        figures |= {"training_seconds": trained - began, "evaluation_seconds": time.perf_counter() - trained}
        return loop, {name: np.asarray([value]) for name, value in figures.items()}

    began = time.perf_counter()
    loop = start(config, simulators)
    facts = experiment.describe(loop.buffer, 1) | {"compile_seconds": time.perf_counter() - began}
    return experiment.Training(loop, advance, facts)


def draw_policy(config: Config, agent: Agent, path: Path, episodes: int = 6) -> None:
    """Renders greedy episodes to a GIF."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # Renders without a display; set here, as only rendering needs it.
    env = gymnasium.make(TASKS[config.task], render_mode="rgb_array", width=240, height=240)
    policy = jax.jit(partial(behave_greedily, config))
    pictures = []
    for episode in range(episodes):
        seeds, key = draw(config, 2, episode)
        seen, _ = env.reset(seed=seeds[0])
        for step in range(STEPS):
            action = policy(agent, as_float32(seen), key, np.int32(step))
            seen = env.step(np.asarray(action))[0]
            pictures.append(Image.fromarray(env.render()))
    env.close()
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, loop=0)


def try_out(config: Config) -> None:
    """Raises `ValueError` if these flags do not fit together."""
    check(config, STEPS)
    flags.require(config, "checkpoint", config.checkpoint is not None or not config.play, "the folder that training saved to")


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, and trains, or draws what was learned."""
    config = flags.parse(Config, try_out, args)
    simulators = make_simulators(config)
    training = make_training(config, simulators)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.play:
        simulators.close()
        loop, figures = experiment.restore(config, training)
        if not figures["eval_steps"]:
            flags.refuse(f"--checkpoint is {config.checkpoint}; give a folder that something was saved to, to be played.")
        draw_policy(config, loop.agent, config.out / "policy.gif")
        print(f"written {config.out / 'policy.gif'}")
        return
    steps = config.eval_every * config.num_envs * STEPS
    _, results = experiment.run(config, training, steps=steps)
    simulators.close()
    experiment.show(config, results, f"{TASKS[config.task]}: DDPG, {flags.describe_goals(config)}")
    print(f"of that time, evaluations         {np.sum(results['evaluation_seconds']):.1f} s")


if __name__ == "__main__":
    main()
