"""The example of continuous control: DDPG with HER on the planar tasks."""

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import experiment

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpg
import herjax
import planar
import returns
from networks import Statistics

pytestmark = pytest.mark.usefixtures("standard_promotion")

REACH = ddpg.Config(task="reach", seeds=2, cycles=40, eval_every=40, capacity=40_000, progress=False)
TINY = dataclasses.replace(
    REACH, task="push", cycles=4, eval_every=2, num_envs=3, updates=2, batch_size=8, hidden=(8,), eval_episodes=4, capacity=600
)


def success_rates(config: ddpg.Config) -> np.ndarray:
    """Of each seed at each evaluation."""
    training = experiment.over_seeds(config, partial(ddpg.start, config), partial(ddpg.advance, config))
    return np.asarray(experiment.run(config, training)[1]["success_rate"])


def test_it_reaches_with_hindsight_and_not_without() -> None:
    """32,000 steps: nine goals in ten are reached by each seed, and without HER hardly any."""
    assert success_rates(REACH)[:, -1].min() > 0.89  # 45 of 50 are, as a float32, less than 0.9.
    assert success_rates(dataclasses.replace(REACH, num_goals=0))[:, -1].max() <= 0.3


@pytest.mark.slow
def test_it_pushes_with_hindsight_and_not_without() -> None:
    """The default run: nine pucks in ten end at their goal for each of five seeds, and at most two in ten without HER."""
    config = ddpg.Config(progress=False)
    assert success_rates(config)[:, -10:].mean(axis=1).min() >= 0.9
    assert success_rates(dataclasses.replace(config, num_goals=0))[:, -10:].mean(axis=1).max() <= 0.2


def test_statistics_are_those_of_all_vectors() -> None:
    """Merged batch by batch, mean and variance are NumPy's of the whole, also far from zero; inputs are clipped to 5."""
    batches = [np.random.default_rng(i).normal(100, 1 + i, (7 * i + 1, 3)).astype(np.float32) for i in range(5)]
    statistics = Statistics(jnp.float32(0), jnp.zeros(3), jnp.zeros(3))
    for batch in batches:
        statistics = statistics.merged(Statistics.of(jnp.asarray(batch)))
    whole = np.concatenate(batches)
    assert statistics.count == len(whole)
    np.testing.assert_allclose(statistics.mean, whole.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.variance, whole.var(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        statistics.normalize(jnp.asarray(whole[:4])), (whole[:4] - whole.mean(axis=0)) / whole.std(axis=0), atol=1e-3
    )
    np.testing.assert_array_equal(statistics.normalize(jnp.array([1e6, -1e6, 1e6])), [5, -5, 5])


def mlp(params: Any, *inputs: np.ndarray) -> np.ndarray:
    """A plain NumPy network with one hidden layer."""
    layers = params["params"]
    hidden = np.maximum(np.concatenate(inputs, axis=-1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return np.asarray(hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"])


@cache
def filled(config: ddpg.Config) -> tuple[ddpg.Loop, planar.Episodes]:
    """A loop that has stored some episodes, and has statistics of them; made once."""
    key = jax.random.key(0)
    loop = ddpg.start(config, key)
    episodes = planar.play(config.task, ddpg.behave(config, loop.agent, greedy=False), key, config.num_envs)
    agent = ddpg.see(loop.agent, episodes.transitions, episodes.goal)
    return ddpg.Loop(agent, ddpg.store(loop.buffer, episodes.transitions, episodes.goal, key)), episodes


@pytest.mark.parametrize(("bias", "num_steps"), [(0.0, 1), (100.0, 1), (-100.0, 1), (0.0, 3)])
def test_targets_are_the_papers(bias: float, num_steps: int, key: jax.Array) -> None:
    """Reward + discount * Q'(s', pi'(s'), g) by the target networks, between -1 / (1 - discount) and 0; also after 3 steps."""
    config = dataclasses.replace(TINY, discount=0.9, num_steps=num_steps)
    loop, episodes = filled(config)
    critic = jax.tree.map(lambda leaf: leaf + (bias if leaf.shape == (1,) else 0.1), loop.agent.networks.critic)
    actor = jax.tree.map(lambda leaf: leaf + 0.1, loop.agent.networks.actor)
    agent = loop.agent.replace(targets=ddpg.Networks(actor, critic))
    sample = herjax.sample(loop.buffer, key, 64)
    played = jax.tree.map(np.asarray, episodes.transitions)
    fields = zip(played[:2], sample.transition[:2], strict=True)  # Together, observation and action tell all steps apart.
    same = np.all([(all_steps == np.asarray(drawn)[:, None, None]).all(axis=-1) for all_steps, drawn in fields], axis=0)
    step, env = np.nonzero(same)[1:]
    last = np.minimum(step + num_steps, len(played.observation)) - 1
    observation, goal = (
        np.clip((leaf - statistics.mean) / np.maximum(np.sqrt(statistics.variance), 0.01), -5, 5)
        for statistics, leaf in ((agent.observations, played.next_observation[last, env]), (agent.goals, sample.goal))
    )
    value = mlp(critic, observation, goal, np.tanh(mlp(agent.targets.actor, observation, goal)))[:, 0]
    expected = np.clip(np.asarray(sample.reward) + 0.9 ** (last - step + 1) * value, -10, 0)
    np.testing.assert_allclose(ddpg.targets(config, agent, sample, None), expected, atol=1e-4)
    assert (expected == {100.0: 0, -100.0: -10}.get(bias, expected)).all()


def test_corrected_targets_are_the_largest_of_one_to_three_steps(key: jax.Array) -> None:
    """Each is the largest of the targets of 1, 2 and 3 steps, of which all win now and then; windows end with the episode."""
    config = dataclasses.replace(TINY, discount=0.9, num_steps=3, correction="largest")
    loop, _ = filled(config)
    critic = jax.tree.map(lambda leaf: leaf - 5 if leaf.shape == (1,) else 4 * leaf, loop.agent.networks.critic)
    agent = loop.agent.replace(targets=loop.agent.targets._replace(critic=critic))  # Its values differ from step to step.
    sample = herjax.sample(loop.buffer, key, 2000)
    window = returns.window(config, loop.buffer, sample)
    assert window is not None
    found = []
    for steps in (1, 2, 3):
        last, held = jax.tree.map(lambda leaf, step=steps - 1: leaf[:, step], (window.transition, window.mask))
        reward = np.asarray(window.reward)[:, :steps] @ 0.9 ** np.arange(steps)
        longer = sample._replace(reward=reward, last=last, discount=jnp.full(2000, 0.9**steps))
        found.append(np.where(held, ddpg.targets(config, agent, longer, None), -np.inf))
    np.testing.assert_allclose(ddpg.targets(config, agent, sample, window), np.max(found, axis=0), atol=1e-4)
    assert set(np.argmax(found, axis=0)) == {0, 1, 2}
    assert not np.all(window.mask)


def test_an_update_follows_both_gradients(key: jax.Array) -> None:
    """Learning moves the critic towards the targets and the actor to higher values, and the targets a share of the way."""
    config = dataclasses.replace(TINY, updates=200, batch_size=64, target_decay=0.75, action_penalty=0.0)
    loop, _ = filled(config)
    sample = herjax.sample(loop.buffer, key, config.updates * config.batch_size)
    agent, _ = ddpg.learn(config, loop.agent, sample)
    observation, goal = (
        statistics.normalize(leaf)
        for statistics, leaf in ((agent.observations, sample.transition.observation), (agent.goals, sample.goal))
    )

    def critic_error(agent: ddpg.Agent) -> jax.Array:
        value = ddpg.value(config, agent.networks, observation, goal, sample.transition.action)
        return jnp.mean((value - ddpg.targets(config, loop.agent, sample, None)) ** 2)

    def chosen_value(actor: ddpg.Agent) -> jax.Array:
        action = ddpg.policy(config, actor, actor.networks, observation, goal)
        return jnp.mean(ddpg.value(config, agent.networks, observation, goal, action))

    assert critic_error(agent) < 0.5 * critic_error(loop.agent)
    assert chosen_value(agent) > chosen_value(loop.agent)
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, loop.agent.targets, agent.networks)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), moved, agent.targets)


def test_the_critic_learns_nothing_from_the_actors_loss(key: jax.Array) -> None:
    """Where the critic's error is zero by construction, its parameters stay, however the actor moves."""
    config = dataclasses.replace(TINY, updates=1, batch_size=16, discount=0.0)
    loop, _ = filled(config)
    zeros = jax.tree.map(jnp.zeros_like, loop.agent.networks.critic)
    layers = zeros["params"] | {"Dense_1": loop.agent.networks.critic["params"]["Dense_1"]}  # Its output: the bias, 0.
    agent = loop.agent.replace(networks=loop.agent.networks._replace(critic={"params": layers}))
    sample = herjax.sample(loop.buffer, key, 16)
    learned, losses = ddpg.learn(config, agent, sample._replace(reward=jnp.zeros(16)))
    assert losses["critic_loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, learned.networks.critic, agent.networks.critic)


def test_a_ratio_of_0_is_no_hindsight(key: jax.Array) -> None:
    """With three-step returns and a mixture, a cycle learns at ratio 0 what it learns without HER, and at 1 something else."""
    mixed = dataclasses.replace(TINY, num_steps=3, strategy="future=0.8,random=0.2", hindsight_ratio=0.0)
    losses = []
    for changes in ({}, {"num_goals": 0, "hindsight_ratio": None}, {"hindsight_ratio": 1.0}):
        config = dataclasses.replace(mixed, **changes)
        losses.append(jax.jit(partial(ddpg.cycle, config))(ddpg.start(config, key), key)[1]["critic_loss"].item())
    assert np.all(np.isfinite(losses))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-2)


@pytest.mark.parametrize(("task", "achieved"), [("push", slice(2, 4)), ("reach", slice(0, 2))])
def test_episodes_are_what_the_environments_played(task: str, achieved: slice, key: jax.Array) -> None:
    """Each step goes on from the last, under one goal; success is that of the last step; greedy episodes have no noise."""
    config = dataclasses.replace(TINY, task=task)
    agent = ddpg.start(config, key).agent
    episodes = planar.play(config.task, ddpg.behave(config, agent, greedy=True), key, 3)
    t = episodes.transitions
    assert t.action.shape == (50, 3, 2)
    np.testing.assert_array_equal(t.observation[1:], t.next_observation[:-1])
    np.testing.assert_array_equal(t.achieved_goal, t.next_observation[..., achieved])  # After the action: the disc moves.
    np.testing.assert_array_equal(episodes.states.goal, np.broadcast_to(episodes.goal, (50, 3, 2)))
    reached = np.linalg.norm(t.achieved_goal[-1] - episodes.goal, axis=-1) < 0.05
    np.testing.assert_array_equal(episodes.success, reached)
    np.testing.assert_allclose(t.action, ddpg.act(config, agent, t.observation, episodes.goal[None].repeat(50, 0)), atol=1e-6)
    noisy = planar.play(config.task, ddpg.behave(config, agent, greedy=False), key, 3).transitions
    assert (np.abs(noisy.action) <= 1).all()
    assert not np.allclose(noisy.action, t.action)


def test_exploration_is_random_as_often_as_asked(key: jax.Array) -> None:
    """Of 20,000 actions of 0 a share of epsilon is uniform in both components, the others are normal: their moments tell."""
    config = dataclasses.replace(TINY, epsilon=0.3, noise=0.2)
    actions = np.asarray(ddpg.explore(config, jnp.zeros((20_000, 2)), key))
    variance = 0.3 / 3 + 0.7 * 0.2**2
    assert abs(actions.mean()) < 5 * np.sqrt(variance / 40_000)
    fourth = 0.3 / 5 + 0.7 * 3 * 0.2**4
    assert abs((actions**2).mean() - variance) < 5 * np.sqrt((fourth - variance**2) / 40_000) * np.sqrt(2)
    # Beyond 0.9 are only random actions, as normal ones are at 4.5 deviations: both components with probability 0.1 * 0.1.
    far = (np.abs(actions) > 0.9).all(axis=1).mean()
    assert abs(far - 0.3 * 0.01) < 5 * np.sqrt(0.003 / 20_000)
    assert ddpg.explore(dataclasses.replace(config, epsilon=0.0, noise=0.0), jnp.full((5, 2), 0.25), key) == pytest.approx(0.25)


def test_rewards_are_the_environments_or_shaped() -> None:
    """Sparse: -1, and 0 within the tolerance of 0.05; shaped: minus the squared distance."""
    transition = planar.Transition(jnp.zeros(8), jnp.zeros(2), jnp.zeros(8), jnp.array([0.3, 0.0]))
    for goal, sparse, shaped in (((0.3, 0.04), 0.0, -0.0016), ((0.3, 0.4), -1.0, -0.16)):
        assert planar.make_reward("push", shaped=False)(transition, jnp.array(goal)) == sparse
        reward = planar.make_reward("push", shaped=True)
        assert reward(transition, jnp.array(goal)) == pytest.approx(shaped)


def test_no_key_is_used_twice_in_the_whole_training() -> None:
    """From the first parameter to the last evaluation the key-reuse checker finds nothing."""
    with jax.debug_key_reuse(True):
        jax.block_until_ready(jax.jit(partial(ddpg.train, TINY))(jax.random.key(0)))


def test_the_script_writes_its_results_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of every evaluation, a plot, a film of 50 pictures, and a strip in which hand, puck and goal show."""
    flags = ["--cycles", "4", "--eval-every", "2", "--num-envs", "3", "--updates", "2", "--batch-size", "8", "--hidden", "8"]
    ddpg.main([*flags, "--seeds", "1", "--eval-episodes", "4", "--capacity", "600", "--no-progress", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["eval_steps"] == [300, 600]
    assert np.asarray(results["success_rate"]).shape == (1, 2)
    assert (tmp_path / "success_rate.png").stat().st_size > 10_000
    with Image.open(tmp_path / "policy.gif") as film:
        assert film.n_frames > 1  # Pictures that do not differ are one.
        assert film.size == (4 * 160, 160)
    with Image.open(tmp_path / "policy.png") as strip:
        assert strip.size == (8 * 160, 4 * 160)
        colours = {colour for _, colour in strip.getcolors(2**20)}
    assert {(214, 39, 40), (31, 119, 180), (255, 255, 255)} <= colours
    assert "steps per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--cycles", "15"], "--cycles is 15; give a multiple of --eval-every, 10."),
        (["--discount", "1"], "--discount is 1.0; give a number from 0 to 1, but not 1."),
        (["--num-envs", "0"], "--num-envs is 0; give at least 1."),
        (
            ["--strategy", "past=1"],
            "--strategy is past=1; give one of future, final, episode, random, or weights such as future=0.8,random=0.2.",
        ),
        (
            ["--hindsight-ratio", "1.5"],
            "--hindsight-ratio is 1.5; give a number from 0 to 1, with --relabel sample and hindsight goals.",
        ),
        (["--capacity", "799"], "--capacity is 799; give room for an episode in each environment, 800, at least."),
        (["--seeds", "0"], "--seeds is 0; give at least 1."),
        (["--seed", str(2**32)], "--seed is 4294967296; give a number from 0 to 2^32 - 1."),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        ddpg.main(flags)
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"
