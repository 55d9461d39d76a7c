"""Proposed goals: they are the rarest of what was achieved, and lead farther than HER alone."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import experiment

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import explore
import herjax
from ddpg import Loop
from planar import Transition

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = explore.Config(
    layout="u",
    cycles=2,
    eval_every=1,
    num_envs=3,
    rounds=2,
    updates=2,
    batch_size=8,
    capacity=600,
    hidden=(8,),
    candidates=4,
    neighbours=16,
    eval_episodes=2,
    progress=False,
)


def achieved(config: explore.Config, points: np.ndarray) -> Loop:
    """The state of training after episodes whose steps achieved points [T, num_envs, 2]."""
    loop = explore.start(config, jax.random.key(0))
    zeros = jnp.zeros(points.shape)
    transitions = Transition(zeros, zeros, zeros, jnp.asarray(points, jnp.float32))
    goal = jnp.zeros((config.num_envs, 2))
    buffer = explore.store(loop.buffer, transitions, goal, jax.random.key(1))
    return Loop(explore.see(loop.agent, transitions, goal), buffer)


def test_the_density_is_that_of_normal_kernels() -> None:
    """The logarithm of a sum of normal densities, less that of each one's factor, in SciPy's float64."""
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(3, 4, 2)), rng.normal(size=(50, 2))
    found = explore.log_density(jnp.asarray(points, jnp.float32), jnp.asarray(others, jnp.float32), 0.3)
    kernel = multivariate_normal(np.zeros(2), 0.3**2 * np.eye(2))
    expected = logsumexp(kernel.logpdf(points[..., None, :] - others), axis=-1) + np.log(2 * np.pi * 0.3**2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_rarest_of_the_candidates_is_tried(key: jax.Array) -> None:
    """Where one achieved goal in 24 is apart from a crowd, "rare" tries it, "achieved" as often as it was achieved."""
    crowd = 2 + 0.1 * np.random.default_rng(0).uniform(size=(24, 2, 2))
    crowd[7] = [(3.5, 3.5), (3.6, 3.4)]
    config = dataclasses.replace(TINY, num_envs=2, candidates=200, neighbours=500)
    desired = jnp.full((2, 2), 9.0)

    def shares(proposal: str) -> np.ndarray:
        """How often each environment tries a goal that is apart."""
        changed = dataclasses.replace(config, proposal=proposal)
        loop = achieved(changed, crowd)
        propose = jax.jit(jax.vmap(lambda key: explore.propose(changed, loop, desired, key)))
        return np.asarray(propose(jax.random.split(key, 300)) > 3).all(axis=-1).mean(axis=0)

    np.testing.assert_array_equal(shares("rare"), [1, 1])
    np.testing.assert_allclose(shares("achieved"), 1 / 24, atol=0.06)
    tried = explore.propose(dataclasses.replace(config, proposal="desired"), achieved(config, crowd), desired, key)
    np.testing.assert_array_equal(tried, desired)


def test_desired_goals_are_tried_before_any_was_achieved(key: jax.Array) -> None:
    """An empty buffer proposes nothing."""
    desired = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(explore.propose(TINY, explore.start(TINY, key), desired, key), desired)


def test_actions_are_random_once_the_goal_was_reached(key: jax.Array) -> None:
    """A policy that stands still acts by itself before the goal is reached, at random afterwards; never if not told to."""

    def stand(observation: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
        del goal, key
        return jnp.zeros_like(observation)

    for goal, wander, moves in ((2.5, True, False), (1.5, False, False), (1.5, True, True)):
        config = dataclasses.replace(TINY, wander=wander)
        loop = achieved(config, np.full((4, 3, 2), (goal, 3.5)))  # The start is at (1.5, 3.5).
        episodes = explore.play(config, stand, key, 3, loop)
        np.testing.assert_array_equal(episodes.goal, np.full((3, 2), (goal, 3.5), np.float32))
        np.testing.assert_array_equal(episodes.reached, goal == 1.5)
        random = (np.asarray(episodes.transitions.action) != 0).any(axis=-1)  # [T, E]
        assert not random[0].any()
        assert (random[1:] == moves).all()


def test_no_key_is_used_twice_in_the_whole_training() -> None:
    """From the first parameter to the last evaluation the key-reuse checker finds nothing."""
    with jax.debug_key_reuse(True):
        jax.block_until_ready(jax.jit(partial(explore.train, TINY))(jax.random.key(0)))


def test_proposed_goals_lead_farther_than_desired_ones() -> None:
    """In 30 cycles agents that try what was rarely achieved get into many more cells of the large maze than with HER alone.

    Machines round differently, so agents go elsewhere on each. Twice as many cells were seen; half as many again are asked.
    """
    config = dataclasses.replace(
        TINY, layout="large", cycles=30, eval_every=10, num_envs=8, updates=20, batch_size=128, hidden=(64, 64),
        capacity=100_000, candidates=64, neighbours=512,
    )  # fmt: skip

    def cells(config: explore.Config) -> list[int]:
        """How many cells each of four agents was in."""
        train = jax.jit(jax.vmap(lambda key: explore.train(config, key)[0].buffer))
        buffers = jax.device_get(train(jax.random.split(jax.random.key(0), 4)))
        played = [herjax.episodes(jax.tree.map(lambda leaf: leaf[seed], buffers)) for seed in range(4)]  # noqa: B023
        points = [np.concatenate([episode.transitions.achieved_goal for episode in episodes]) for episodes in played]
        return [len(np.unique(each.astype(int), axis=0)) for each in points]

    assert np.mean(cells(config)) > 1.5 * np.mean(cells(dataclasses.replace(config, proposal="desired")))


def test_the_script_writes_its_results_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of every evaluation and the goals that were tried; what is trained is not trained again, but drawn."""
    args = ["--layout", "u", "--cycles", "2", "--eval-every", "1", "--num-envs", "3", "--updates", "2", "--batch-size", "8"]
    args += ["--hidden", "8", "--seeds", "2", "--eval-episodes", "4", "--capacity", "600", "--no-progress"]
    args += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        explore.main([*args, "--plot"])
    assert "holds no run with these flags; train first, without --plot." in capsys.readouterr().err
    explore.main(args)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["eval_steps"] == [144, 288]
    assert np.asarray(results["success_rate"]).shape == (2, 2)
    assert np.asarray(results["goals"]).shape == (2, 2, 3, 2)
    explore.main([*args, "--plot"])
    assert f"written {tmp_path / 'explore.png'}: rare" in capsys.readouterr().out
    with Image.open(tmp_path / "explore.png") as picture:
        assert picture.size[0] > 800
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run", lambda *_, **__: pytest.fail("it is trained again"))
        explore.main(args)


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["--layout", "u", "--capacity", "9"], "--capacity is 9; give room for an episode in each environment, 768, at least."),
        (["--candidates", "0"], "--candidates is 0; give at least 1."),
        (["--bandwidth", "-1"], "--bandwidth is -1.0; give a finite number >= 0."),
    ],
)
def test_bad_flags_are_refused_in_one_line(args: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        explore.main(args)
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"
