"""JaxGCRL's contrastive agent (Bortkiewicz et al. 2024, arXiv:2408.11052) in its own Reacher, with herjax as its replay.

JaxGCRL samples in two steps. Its queue returns a window of each environment's past. `flatten_batch` then draws a goal for each
transition, from later in the same episode. Here `HindsightQueue` does both: it has the methods of JaxGCRL's queue, and returns
transitions that have their goals. Networks, losses, training loop and environment are JaxGCRL's own, imported.

brax resets by itself: after an episode's last action it returns the first observation of the next episode. So JaxGCRL stores
no next observation. A goal is what was observed at a later step, before that step's action. Here it is the same.

pip install ".[brax]" && pip install --no-deps jaxgcrl==0.2.8  # Without its dependencies: it asks for a JAX of 2024.
python examples/frameworks/jaxgcrl_crl.py  # success of each seed, with hindsight goals and with the goals pursued
"""

import importlib
import sys
import tempfile
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np

import herjax

SEEDS, DISCOUNT = 3, 0.95
RUN = {"num_envs": 64, "episode_length": 51, "total_env_steps": 316_800, "num_evals": 1}
AGENT = {"batch_size": 128, "max_replay_size": 1000, "min_replay_size": 150, "unroll_length": 10, "h_dim": 128, "repr_dim": 32}
AGENT |= {"policy_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-2, "contrastive_loss_fn": "sym_infonce"}


class Future(NamedTuple):
    """A goal, as JaxGCRL's losses read it: a state, of which `goal_indices` are the goal, and the action taken there."""

    state: jax.Array  # float32 [state_size]
    action: jax.Array  # float32 [action_size]


class QueueState(NamedTuple):
    """What a `HindsightQueue` holds."""

    buffer: herjax.BufferState
    key: jax.Array


class HindsightQueue:
    """JaxGCRL's `TrajectoryUniformSamplingQueue`, on herjax, with goals.

    An observation is a state, then the goal that was pursued. A share `hindsight_ratio` of the transitions get a later state of
    their episode as goal: the one j steps later, with probability proportional to discount^j. The others keep the goal pursued.
    """

    def __init__(
        self,
        max_replay_size: int,  # Steps of each environment.
        dummy_data_sample: Any,  # JaxGCRL's `Transition`.
        sample_batch_size: int,  # Not used: JaxGCRL itself cuts what `sample` returns into batches.
        num_envs: int,
        episode_length: int,
        *,
        discount: float,
        goal_indices: np.ndarray,  # Where in a state the achieved goal is.
        hindsight_ratio: float = 1.0,
    ) -> None:
        del sample_batch_size
        self.shape, self.hindsight_ratio = (num_envs, episode_length - 1), hindsight_ratio
        self.goal_indices, self.state_size = goal_indices, len(dummy_data_sample.observation) - len(goal_indices)
        ahead = herjax.geometric(discount)
        self.empty = partial(
            herjax.init,
            jax.tree.map(jnp.asarray, dummy_data_sample),
            capacity=max_replay_size * num_envs,
            max_episode_length=episode_length,
            goal_fn=lambda t: Future(t.observation[: self.state_size], t.action),
            reward_fn=lambda *_: jnp.float32(0),  # A contrastive agent needs none.
            # From the next step on, as in JaxGCRL: `geometric` alone would begin with the transition's own step.
            strategy=lambda key, step, length: ahead(key, jnp.minimum(step + 1, length - 1), length),
            num_goals=1,
            relabel="sample",
            num_envs=num_envs,
        )

    def pursued(self, transition: Any) -> Future:
        """The goal that was pursued, put into the state in place of the achieved one."""
        state, goal = jnp.split(transition.observation, [self.state_size])
        return Future(state.at[self.goal_indices].set(goal), transition.action)

    def init(self, key: jax.Array) -> QueueState:
        """An empty queue."""
        return QueueState(self.empty(), key)

    def insert_internal(self, queue: QueueState, samples: Any) -> QueueState:
        """Appends steps, leaves [steps, num_envs, ...]. `discount` is 0 where an episode ends, terminated or truncated."""
        key, key_goals = jax.random.split(queue.key)

        def append(buffer: herjax.BufferState, step: Any) -> tuple[herjax.BufferState, None]:
            goal = jax.vmap(self.pursued)(step)
            return herjax.end_episode(herjax.add(buffer, step), goal, key_goals, done=step.discount == 0), None

        return QueueState(jax.lax.scan(append, queue.buffer, samples)[0], key)

    def sample_internal(self, queue: QueueState) -> tuple[QueueState, Any]:
        """As many transitions as JaxGCRL samples at a time, with their goals: leaves [num_envs, episode_length - 1, ...]."""
        key, key_sample = jax.random.split(queue.key)
        batch = herjax.sample(queue.buffer, key_sample, self.shape[0] * self.shape[1], hindsight_ratio=self.hindsight_ratio)
        state = batch.transition.observation[:, : self.state_size]
        observation = jnp.concatenate([state, batch.goal.state[:, self.goal_indices]], axis=1)
        futures = {"state": state, "future_state": batch.goal.state, "future_action": batch.goal.action}
        transitions = batch.transition._replace(observation=observation, extras={**batch.transition.extras, **futures})
        transitions = jax.tree.map(lambda leaf: leaf.reshape(*self.shape, *leaf.shape[1:]), transitions)
        return QueueState(queue.buffer, key), transitions

    insert, sample = insert_internal, sample_internal  # JaxGCRL calls these, and jits the others.

    def size(self, queue: QueueState) -> jax.Array:
        """Steps of each environment held, int32 []; those of running episodes are not counted."""
        return herjax.size(queue.buffer) // self.shape[0]


def load() -> tuple[ModuleType, Any, Any]:
    """JaxGCRL's `crl.py`, settings and Reacher, without what they import and this script does not use."""
    sys.modules |= {name: MagicMock() for name in ("brax.v1", "wandb", "wandb_osh", "wandb_osh.hooks")}
    names = ("agents.crl.crl", "utils.config", "envs.reacher")
    crl, config, reacher = (importlib.import_module(f"jaxgcrl.{name}") for name in names)
    return crl, config.RunConfig, reacher.Reacher


def train(hindsight_ratio: float, seed: int, folder: str) -> dict[str, float]:
    """Trains JaxGCRL's agent, which writes a checkpoint into `folder`; returns the metrics of 256 greedy episodes."""
    crl, RunConfig, Reacher = load()  # noqa: N806 - classes.
    env = Reacher(backend="spring")
    reset, more = env.reset, ("success_easy", "distance_from_origin")  # JaxGCRL's evaluator asks every environment for these.
    env.reset = lambda key: (state := reset(key)).replace(metrics={**state.metrics, **dict.fromkeys(more, jnp.zeros(()))})
    options = {"discount": DISCOUNT, "goal_indices": np.array(env.goal_indices), "hindsight_ratio": hindsight_ratio}
    crl.TrajectoryUniformSamplingQueue = partial(HindsightQueue, **options)  # These two lines are all that herjax changes.
    crl.flatten_batch = lambda _config, transitions, _key: transitions
    run = RunConfig(env="reacher", seed=seed, checkpoint_logdir=folder, **RUN)
    return crl.CRL(discounting=DISCOUNT, **AGENT).train_fn(run, env, env, progress_fn=lambda *_, **__: None)[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)  # JaxGCRL compiles the same programs anew for each seed.
        print("Of each seed's greedy episodes: the share that reach the goal / the share of all steps spent there")
        for hindsight_ratio in (1.0, 0.0):
            runs = [train(hindsight_ratio, seed, folder) for seed in range(SEEDS)]
            shares = [(run["eval/episode_success_any"], run["eval/episode_success"] / RUN["episode_length"]) for run in runs]
            print(f"hindsight_ratio={hindsight_ratio}:", *(f"{reached:.2f}/{there:.2f}" for reached, there in shares))
