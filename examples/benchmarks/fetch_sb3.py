"""Stable-Baselines3 on FetchPush: its DDPG with its HerReplayBuffer, at the settings of examples/fetch.py.

    python examples/benchmarks/fetch_sb3.py

A cycle is an episode in each of 16 simulators, then updates. The library has no option for three things that ddpg.py does.
Actions are wholly random in the first cycle alone; the squared actions are not penalised; targets are not clipped. Target
networks follow every update, and by a cycle's end as far. The achieved goal is an input, too. VecNormalize keeps statistics of
achieved and of desired goals apart, and stores an episode's last observation clipped.
"""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path

import gymnasium
import gymnasium_robotics
import numpy as np
import torch
import tyro
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

gymnasium.register_envs(gymnasium_robotics)

STEPS, TARGET_DECAY = 50, 0.8  # Of an episode; share of the target networks that stays in a cycle.


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains Stable-Baselines3's DDPG with hindsight."""

    seed: int = 0
    """Where all randomness starts."""
    cycles: int = 500
    """Cycles of an episode in each simulator, then updates; a multiple of eval-every."""
    num_envs: int = 16
    """Simulators, each in a process."""
    updates: int = 40
    """Updates of a cycle."""
    batch_size: int = 1024
    """Transitions in an update."""
    normalize: bool = True
    """Whether inputs are normalised."""
    eval_every: int = 25
    """Cycles between evaluations."""
    eval_episodes: int = 96
    """Greedy episodes of an evaluation, at least."""
    threads: int = 1
    """Of PyTorch."""
    out: Path = Path("results/fetch_sb3")
    """Folder for results.json, which is written after every evaluation."""


def make_simulators(config: Config) -> VecEnv:
    """The simulators, each in a process. Forked, they share what this process has imported."""
    return SubprocVecEnv([partial(gymnasium.make, "FetchPush-v4")] * config.num_envs, start_method="fork")


def make_model(config: Config, env: VecEnv) -> DDPG:
    """DDPG that has learned nothing."""
    return DDPG(
        "MultiInputPolicy",
        env,
        learning_rate=1e-3,
        buffer_size=1_000_000,
        learning_starts=config.num_envs * STEPS - 1,  # With the first cycle: only past this number of steps.
        batch_size=config.batch_size,
        tau=1 - TARGET_DECAY ** (1 / config.updates),
        gamma=0.98,
        train_freq=(STEPS, "step"),
        gradient_steps=config.updates,
        action_noise=NormalActionNoise(np.zeros(env.action_space.shape), 0.2 * np.ones(env.action_space.shape)),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        policy_kwargs={"net_arch": [256, 256, 256]},
        device="cpu",
        seed=config.seed,
    )


def evaluate(config: Config, model: DDPG, simulators: VecEnv) -> float:
    """The share of greedy episodes that end at their goal."""
    normalizer = model.get_vec_normalize_env()
    observed, successes = simulators.reset(), []
    for _ in range(-(-config.eval_episodes // config.num_envs)):  # An episode's end starts the next one.
        for _ in range(STEPS):
            inputs = observed if normalizer is None else normalizer.normalize_obs(observed)
            observed, _, _, infos = simulators.step(model.predict(inputs, deterministic=True)[0])
        successes += [info["is_success"] for info in infos]
    return float(np.mean(successes))


def main() -> None:
    """Trains, evaluates, writes JSON."""
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    simulators, eval_simulators = make_simulators(config), make_simulators(config)
    eval_simulators.seed(config.seed + 1_000_000)  # Far from those of training, which count on from the seed.
    if config.normalize:  # The floor of deviations and the clipping are those of ddpg.py.
        simulators = VecNormalize(simulators, norm_reward=False, clip_obs=5.0, epsilon=1e-4)
    model = make_model(config, simulators)
    results = {"config": vars(config), "eval_steps": [], "success_rate": [], "seconds": 0.0}
    config.out.mkdir(parents=True, exist_ok=True)
    for _ in range(config.cycles // config.eval_every):
        began = time.perf_counter()
        model.learn(config.eval_every * config.num_envs * STEPS, log_interval=None, reset_num_timesteps=False)
        results["seconds"] += time.perf_counter() - began  # Without evaluations.
        results["success_rate"].append(evaluate(config, model, eval_simulators))
        results["eval_steps"].append(model.num_timesteps)
        (config.out / "results.json").write_text(json.dumps(results, indent=1, default=str))
        last = f"success {results['success_rate'][-1]:.2f} after {results['seconds']:,.0f} s"
        print(f"{model.num_timesteps:>9,} steps: {last}", flush=True)
    simulators.close()
    eval_simulators.close()


if __name__ == "__main__":
    main()
