"""JaxGCRL's replay on herjax returns what JaxGCRL's agent asks for. Only the last two tests need JaxGCRL itself."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxgcrl_crl

ENVS, LIMIT, UNROLL, STRETCHES, DISCOUNT = 3, 8, 5, 16, 0.8
LENGTHS = np.array([LIMIT, 6, 1])  # Of the episodes of each environment: the first one's are truncated, the others' terminated.
GOAL = np.array([3, 1])  # Where in a state the achieved goal is: step and episode.


class Transition(NamedTuple):
    """As JaxGCRL's."""

    observation: Any
    action: Any
    reward: Any
    discount: Any
    extras: Any


def experience(first: int, steps: int) -> Transition:
    """What the environments did from step `first` on; every field says in which environment, episode and step it was.

    A state is (environment, episode, 0.5, step), and the goal pursued in an episode is (-episode, -environment).
    """
    env, number = np.meshgrid(np.arange(ENVS), np.arange(first, first + steps))
    episode, step = np.divmod(number, LENGTHS)
    last = step == LENGTHS - 1
    observation = np.stack([env, episode, np.full_like(env, 0.5, float), step, -episode, -env], axis=-1)
    truncation = last & (env == 0)
    leaves = observation, (100 * episode + step)[..., None], env, 1 - last, {"truncation": truncation, "traj_id": episode}
    *fields, state_extras = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), leaves)
    return Transition(*fields, {"state_extras": state_extras})


def example() -> Transition:
    """As JaxGCRL makes it: Python's zeros for single numbers."""
    return Transition(jnp.zeros(6), jnp.zeros(1), 0.0, 0.0, {"state_extras": {"truncation": 0.0, "traj_id": 0.0}})


def filled(hindsight_ratio: float, size: int = 100) -> tuple[Any, Any]:
    """A queue, jitted where JaxGCRL's training jits it, and its state after all of the experience, in stretches."""
    options = {"discount": DISCOUNT, "goal_indices": GOAL, "hindsight_ratio": hindsight_ratio}
    queue = jaxgcrl_crl.HindsightQueue(size, example(), 256, ENVS, LIMIT, **options)
    queue.insert_internal, queue.sample_internal = jax.jit(queue.insert_internal), jax.jit(queue.sample_internal)
    state = jax.jit(queue.init)(jax.random.key(0))
    for stretch in range(STRETCHES):
        state = queue.insert_internal(state, experience(stretch * UNROLL, UNROLL))
    return queue, state


def draws(queue: Any, state: Any, times: int) -> Transition:
    """Transitions of so many calls of `sample`, one behind the other, as NumPy."""
    _, transitions = jax.jit(lambda state: jax.lax.scan(lambda state, _: queue.sample(state), state, length=times))(state)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[3:]), transitions)


@pytest.fixture(scope="module")
def relabelled() -> Transition:
    """21,000 transitions with hindsight goals."""
    return draws(*filled(1.0), 1000)


def test_samples_what_jaxgcrl_s_training_reshapes() -> None:
    """Leaves are [num_envs, episode_length - 1, ...], as of `flatten_batch` under `vmap`, and no two calls draw the same."""
    queue, state = filled(1.0)
    state, sample = queue.sample(state)
    shapes = jax.tree.map(lambda leaf: leaf.shape, sample)
    one = (ENVS, LIMIT - 1)
    extras = {"state_extras": {"truncation": one, "traj_id": one}}
    extras |= {"state": (*one, 4), "future_state": (*one, 4), "future_action": (*one, 1)}
    assert shapes == Transition((*one, 6), (*one, 1), one, one, extras)
    _, another = queue.sample(state)
    assert not np.array_equal(sample.observation, another.observation)


def test_every_field_is_of_one_step(relabelled: Transition) -> None:
    """Observation, action, reward, discount and extras are those that the environment gave at that step."""
    env, episode, _, step = relabelled.extras["state"].T.astype(int)
    whole = jax.tree.map(np.asarray, experience(0, UNROLL * STRETCHES))
    given = jax.tree.map(lambda leaf: leaf[episode * LENGTHS[env] + step, env], whole)
    np.testing.assert_array_equal(relabelled.observation[:, :4], given.observation[:, :4])
    for name in ("action", "reward", "discount"):
        np.testing.assert_array_equal(getattr(relabelled, name), getattr(given, name))
    for name, values in given.extras["state_extras"].items():
        np.testing.assert_array_equal(relabelled.extras["state_extras"][name], values)
    assert np.all(np.unique(env) == np.arange(ENVS)), "all environments are drawn from"


def test_goals_come_later_in_the_same_episode(relabelled: Transition) -> None:
    """State and action of the goal are one step's, of the same episode and later; an episode's last step has itself."""
    state, future = relabelled.extras["state"], relabelled.extras["future_state"]
    np.testing.assert_array_equal(future[:, :3], state[:, :3])
    np.testing.assert_array_equal(relabelled.extras["future_action"][:, 0], 100 * future[:, 1] + future[:, 3])
    np.testing.assert_array_equal(relabelled.observation, np.concatenate([state, future[:, GOAL]], axis=1))
    last = relabelled.discount == 0
    assert np.all(np.where(last, future[:, 3] == state[:, 3], future[:, 3] > state[:, 3]))


def test_goals_are_geometrically_far_ahead(relabelled: Transition) -> None:
    """From every step of the longest episodes, probabilities are as in `flatten_batch`: discount^j, j from 1 to the end."""
    state, future = relabelled.extras["state"], relabelled.extras["future_state"]
    for step in range(LIMIT - 2):
        of_step = (state[:, 0] == 0) & (state[:, 3] == step)
        found = np.bincount(future[of_step, 3].astype(int) - step - 1, minlength=LIMIT - 1 - step)
        expected = DISCOUNT ** np.arange(len(found))
        assert stats.chisquare(found, expected / expected.sum() * found.sum()).pvalue > 0.01


@pytest.mark.parametrize("hindsight_ratio", [0.0, 0.25])
def test_the_other_goals_are_those_pursued(hindsight_ratio: float) -> None:
    """They stand both in the observation and in the goal's state, for the losses read both. Their share is as asked for."""
    sample = draws(*filled(hindsight_ratio), 100)
    state, future, goal = sample.extras["state"], sample.extras["future_state"], sample.observation[:, 4:]
    np.testing.assert_array_equal(goal, future[:, GOAL])
    after_first = state[:, 1] > 0  # In these episodes a pursued goal begins with a negative number, an achieved one never.
    is_pursued = goal[after_first, 0] < 0
    np.testing.assert_array_equal(goal[after_first][is_pursued], -state[after_first][is_pursued][:, [1, 0]])
    assert abs(np.mean(is_pursued) - (1 - hindsight_ratio)) < 0.05


def test_the_newest_are_held() -> None:
    """Of more than it holds, the queue keeps the newest of each environment; `size` counts them, not those still running."""
    queue, state = filled(1.0, size=20)
    sample = draws(queue, state, 100)
    env, episode, _, step = sample.extras["state"].T.astype(int)
    assert np.min(episode * LENGTHS[env] + step) >= UNROLL * STRETCHES - 20
    assert 20 - LIMIT <= int(queue.size(state)) <= 20


@pytest.fixture
def installed() -> Iterator[None]:
    """For what needs JaxGCRL. Afterwards it is as if it, and what stands in for its loggers, had not been imported."""
    for name in ("brax", "jaxgcrl"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; see the top of examples/frameworks/jaxgcrl_crl.py")
    before = set(sys.modules)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    for name in set(sys.modules) - before:
        if name == "brax.v1" or name.startswith(("jaxgcrl.", "wandb")) or name == "jaxgcrl":
            del sys.modules[name]


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore")  # brax is not maintained, and says so.
def test_jaxgcrl_draws_the_same_goals(relabelled: Transition) -> None:
    """Given one whole episode, its own `flatten_batch` draws goals from the first step as far ahead as the queue does."""
    crl, _, _ = jaxgcrl_crl.load()
    episode = jax.tree.map(lambda leaf: leaf[:, 0], experience(0, LIMIT))
    config, keys = (DISCOUNT, 4, tuple(GOAL.tolist())), jax.random.split(jax.random.key(1), 3000)
    theirs = jax.vmap(crl.flatten_batch, (None, None, 0))(config, crl.Transition(*episode), keys)
    ours = relabelled.extras["future_state"][(relabelled.extras["state"][:, [0, 3]] == 0).all(axis=1)]
    both = theirs.extras["future_state"][:, 0, 3], ours[:, 3]
    found = [np.bincount(np.asarray(steps, int), minlength=LIMIT)[1:] for steps in both]
    assert stats.chi2_contingency(found).pvalue > 0.01
    assert set(theirs.extras) - set(relabelled.extras) == {"policy_extras"}, "which is empty"


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore")
def test_jaxgcrl_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own training runs from beginning to end, a few steps of it, and returns the figures that the script prints."""
    monkeypatch.setattr(jaxgcrl_crl, "RUN", {**jaxgcrl_crl.RUN, "total_env_steps": 64 * 170})
    metrics = jaxgcrl_crl.train(1.0, 0, str(tmp_path))
    assert 0 <= metrics["eval/episode_success_any"] <= 1
    assert 0 <= metrics["eval/episode_success"] <= jaxgcrl_crl.RUN["episode_length"]
    assert np.isfinite(metrics["training/critic_loss"])
