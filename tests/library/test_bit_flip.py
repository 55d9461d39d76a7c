"""BitFlip: a goal-conditioned gymnax environment in which an action flips one bit, and only the goal ends the task."""

import os
import subprocess
import sys
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from scipy import stats

import herjax
from herjax.envs import BitFlip

FALSE_ALARM_RATE = 1e-6
GOAL_ENV_KEYS = {"observation", "achieved_goal", "desired_goal"}


def step_each(env, states, actions, params, seed: int = 1):
    """One step in each of a batch of environments, each with a key of its own."""
    keys = jax.random.split(jax.random.key(seed), actions.shape[0])
    return jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, states, actions, params)


def reset_each(env, num_envs: int, params, seed: int = 0):
    return jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(seed), num_envs), params)


def solving_action(observation) -> jax.Array:
    """The first bit that differs from the goal's; bit 0 where none does."""
    return jnp.argmax(observation["achieved_goal"] != observation["desired_goal"], axis=-1)


def numbers(bits) -> np.ndarray:
    """The bits [..., n] read as a binary number."""
    bits = np.asarray(bits).astype(np.int64)
    return bits @ (2 ** np.arange(bits.shape[-1]))


def assert_uniform(first: np.ndarray, second: np.ndarray, size: int) -> None:
    """The pairs fall into the size x size cells with equal probability: each is uniform, and they are independent."""
    counts = np.bincount(first * size + second, minlength=size**2)
    assert len(counts) == size**2
    assert stats.chisquare(counts).pvalue > FALSE_ALARM_RATE


def test_is_a_gymnax_environment():
    """BitFlip is an `Environment` of gymnax, has 10 bits unless told, and truncates after 100 steps unless told."""
    env = BitFlip()
    assert isinstance(env, gymnax.environments.environment.Environment)
    assert env.num_actions == 10
    assert env.default_params.max_steps_in_episode == 100
    assert len(env.step(jax.random.key(0), env.reset(jax.random.key(1))[1], jnp.int32(0))) == 6


@pytest.mark.parametrize("num_bits", [1, 3, 10])
def test_observations_have_the_goal_env_keys(num_bits):
    """Observations of reset, step and `final_observation` are dicts of three arrays of `num_bits` bits, all of one dtype."""
    env = BitFlip(num_bits=num_bits)
    observation, state = env.reset(jax.random.key(0), env.default_params)
    stepped, _, reward, terminated, truncated, info = env.step(jax.random.key(1), state, jnp.int32(0), env.default_params)
    for each in (observation, stepped, info["final_observation"]):
        assert set(each) == GOAL_ENV_KEYS
        assert all(leaf.shape == (num_bits,) for leaf in each.values())
        assert len({leaf.dtype for leaf in each.values()}) == 1
        assert all(set(np.unique(leaf)) <= {0, 1} for leaf in each.values())
        np.testing.assert_array_equal(each["achieved_goal"], each["observation"])
    for scalar, dtype in ((reward, jnp.float32), (terminated, jnp.bool_), (truncated, jnp.bool_)):
        assert scalar.shape == ()
        assert scalar.dtype == dtype


@pytest.mark.parametrize("num_bits", [1, 4])
def test_spaces_describe_actions_and_observations(num_bits):
    """There is an action for each bit, and the observation space has the keys, shapes and dtypes of the observations."""
    env = BitFlip(num_bits=num_bits)
    actions = env.action_space(env.default_params)
    assert isinstance(actions, spaces.Discrete)
    assert actions.n == env.num_actions == num_bits

    space = env.observation_space(env.default_params)
    observation, state = env.reset(jax.random.key(0), env.default_params)
    assert isinstance(space, spaces.Dict)
    assert set(space.spaces) == GOAL_ENV_KEYS
    for name, leaf in observation.items():
        assert space.spaces[name].shape == leaf.shape
        assert space.spaces[name].dtype == leaf.dtype
        assert space.spaces[name].contains(leaf)
        assert not space.spaces[name].contains(leaf + jnp.asarray(2, leaf.dtype))
    env.step(jax.random.key(2), state, actions.sample(jax.random.key(3)), env.default_params)


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_compute_reward_compares_the_last_axis(leading):
    """The last axis is the bits and the leading ones are batch: 0 where all bits agree, -1 elsewhere, float32."""
    env = BitFlip(num_bits=3)
    achieved = jax.random.bernoulli(jax.random.key(0), shape=(*leading, 3)).astype(jnp.int32)
    for flipped in range(3):
        other = achieved.at[..., flipped].set(1 - achieved[..., flipped])
        np.testing.assert_array_equal(env.compute_reward(achieved, other), np.full(leading, -1.0))
    reward = env.compute_reward(achieved, achieved)
    np.testing.assert_array_equal(reward, np.zeros(leading))
    assert reward.dtype == jnp.float32
    assert env.compute_reward(achieved, other).dtype == jnp.float32


def test_compute_reward_judges_each_row_of_a_batch_alone():
    """Of 3 goals the second alone is achieved: rewards -1, 0, -1; it is the same under `vmap` and `jit`."""
    env = BitFlip(num_bits=2)
    observation, _ = env.reset(jax.random.key(0), env.default_params)
    dtype = observation["achieved_goal"].dtype
    achieved, desired = jnp.array([[0, 1], [0, 1], [0, 1]], dtype), jnp.array([[1, 0], [0, 1], [1, 1]], dtype)
    for compute_reward in (env.compute_reward, jax.jit(env.compute_reward), jax.vmap(env.compute_reward)):
        np.testing.assert_array_equal(compute_reward(achieved, desired), [-1.0, 0.0, -1.0])


def test_an_action_flips_its_bit_and_no_other():
    """Action i changes bit i of the observation, leaves the other bits and the goal, and twice the action changes nothing."""
    env = BitFlip(num_bits=5)
    actions = jnp.tile(jnp.arange(5), 8)
    observation, states = reset_each(env, 40, env.default_params)
    _, states, _, terminated, _, info = step_each(env, states, actions, env.default_params)
    after = info["final_observation"]
    changed = np.asarray(after["observation"] != observation["observation"])
    np.testing.assert_array_equal(changed, np.eye(5, dtype=bool)[np.asarray(actions)])
    np.testing.assert_array_equal(after["desired_goal"], observation["desired_goal"])

    info = step_each(env, states, actions, env.default_params)[-1]
    going_on = ~np.asarray(terminated)
    assert going_on.sum() > 20
    np.testing.assert_array_equal(info["final_observation"]["observation"][going_on], observation["observation"][going_on])


def test_reaching_the_goal_terminates_and_time_truncates():
    """`terminated` says that the state reached is the goal, `truncated` that it was not in time; rewards say the same.

    In 200 steps of 200 environments of 3 bits with 4 steps an episode. A goal reached in step 4 is a termination: whether
    it is a truncation too is left open. Each step's observation follows from the one before, or from a reset.
    """
    env = BitFlip(num_bits=3)
    params = env.default_params.replace(max_steps_in_episode=4)

    def step(carry, key):
        observation, state, time = carry
        action = jax.random.randint(key, (), 0, 3)
        after, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        done = terminated | truncated
        return (after, state, jnp.where(done, 0, time + 1)), {
            "before": observation,
            "action": action,
            "reached": info["final_observation"],
            "after": after,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "steps": time + 1,
        }

    def run(key):
        observation, state = env.reset(key, params)
        return jax.lax.scan(step, (observation, state, jnp.int32(0)), jax.random.split(key, 200))[1]

    log = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 200)))
    flipped = np.eye(3, dtype=bool)[log["action"]]
    np.testing.assert_array_equal(log["reached"]["observation"] != log["before"]["observation"], flipped)
    np.testing.assert_array_equal(log["reached"]["desired_goal"], log["before"]["desired_goal"])

    success = (log["reached"]["achieved_goal"] == log["reached"]["desired_goal"]).all(-1)
    np.testing.assert_array_equal(log["terminated"], success)
    np.testing.assert_array_equal(log["reward"], np.where(success, 0.0, -1.0))
    assert log["steps"].max() == 4
    np.testing.assert_array_equal(log["truncated"][~success], log["steps"][~success] == 4)
    assert not log["truncated"][log["steps"] < 4].any()
    for outcome in (success, ~success & (log["steps"] == 4)):
        assert outcome.mean() > 0.02, "the run must show terminations and truncations"

    done = log["terminated"] | log["truncated"]
    for name in GOAL_ENV_KEYS:
        np.testing.assert_array_equal(log["after"][name][~done], log["reached"][name][~done])
        assert (log["after"][name][done] != log["reached"][name][done]).any(-1).mean() > 0.8, "7 of 8 resets move each"


def test_truncates_at_step_100_by_default():
    """An agent that flips bit 0 of 10 to and fro is truncated at its 100th step, not before, and never terminated."""
    env = BitFlip()
    observation, state = env.reset(jax.random.key(0), env.default_params)
    assert (observation["observation"] != observation["desired_goal"])[1:].any(), "the start must need another bit"

    def step(state, key):
        _, state, _, terminated, truncated, _ = env.step(key, state, jnp.int32(0), env.default_params)
        return state, (terminated, truncated)

    _, (terminated, truncated) = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 100))
    np.testing.assert_array_equal(truncated, np.arange(1, 101) == 100)
    assert not terminated.any()


@pytest.mark.parametrize("num_bits", [1, 6])
def test_flipping_the_bits_that_differ_reaches_the_goal(num_bits):
    """From n differing bits, the n-th right flip terminates with reward 0, and none before; 1 bit may need 2 flips."""
    env = BitFlip(num_bits=num_bits)
    observation, states = reset_each(env, 50, env.default_params)
    distance = np.asarray((observation["observation"] != observation["desired_goal"]).sum(-1))
    steps_needed = np.where(distance == 0, 2, distance)
    finished = np.zeros(50, dtype=bool)
    for step in range(1, num_bits + 2):
        actions = solving_action(observation)
        observation, states, reward, terminated, _, _ = step_each(env, states, actions, env.default_params, step)
        running = ~finished
        np.testing.assert_array_equal(np.asarray(terminated)[running], (steps_needed == step)[running])
        np.testing.assert_array_equal(np.asarray(reward)[running], np.where(steps_needed == step, 0.0, -1.0)[running])
        finished |= np.asarray(terminated)
    assert finished.all()


def test_start_and_goal_of_a_reset_are_independent_and_uniform():
    """The 8 x 8 pairs of a start and a goal of 3 bits are equally frequent over 20,000 resets, equal pairs included."""
    env = BitFlip(num_bits=3)
    observation, _ = reset_each(env, 20_000, env.default_params)
    assert_uniform(numbers(observation["observation"]), numbers(observation["desired_goal"]), 8)


def test_start_and_goal_are_drawn_anew_after_each_episode():
    """The reset inside `step` draws as `reset` does, independently of the state and the goal of the episode before."""
    env = BitFlip(num_bits=3)
    params = env.default_params.replace(max_steps_in_episode=1)
    _, states = reset_each(env, 20_000, params)
    after, _, _, terminated, truncated, info = step_each(env, states, jnp.zeros(20_000, jnp.int32), params)
    assert (terminated | truncated).all()
    last = info["final_observation"]
    assert_uniform(numbers(after["observation"]), numbers(after["desired_goal"]), 8)
    for name in ("observation", "desired_goal"):
        for other in ("observation", "desired_goal"):
            assert_uniform(numbers(last[name]), numbers(after[other]), 8)


def test_params_default_when_omitted():
    """`reset` and `step` without params do what they do with the default ones."""
    env = BitFlip(num_bits=3)
    observation, state = env.reset(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, (observation, state), env.reset(jax.random.key(0), env.default_params))
    stepped = env.step(jax.random.key(1), state, jnp.int32(2))
    jax.tree.map(np.testing.assert_array_equal, stepped, env.step(jax.random.key(1), state, jnp.int32(2), env.default_params))


def test_max_steps_in_episode_may_be_an_array():
    """Two environments with limits of 1 and 2 in one `vmap` are truncated after 1 and 2 steps."""
    env = BitFlip(num_bits=20)
    params = env.default_params.replace(max_steps_in_episode=jnp.array([1, 2]))
    keys = jax.random.split(jax.random.key(0), 2)
    _, state = jax.vmap(env.reset)(keys, params)
    step = jax.vmap(env.step)
    _, state, _, _, truncated, _ = step(keys, state, jnp.array([0, 0]), params)
    np.testing.assert_array_equal(truncated, [True, False])
    np.testing.assert_array_equal(step(keys, state, jnp.array([0, 0]), params)[4], [True, True])


@pytest.mark.parametrize("num_bits", [0, -3])
def test_num_bits_must_be_a_positive_integer(num_bits):
    """No bit or fewer raise, and the message names `num_bits` and the value."""
    with pytest.raises(ValueError, match="num_bits") as error:
        BitFlip(num_bits=num_bits)
    assert str(num_bits) in str(error.value)


def test_import_herjax_stays_light():
    """`import herjax` imports neither gymnax nor matplotlib nor flax."""
    heavy = ("gymnax", "matplotlib", "flax")
    script = f"import sys, herjax; print([name for name in {heavy} if name in sys.modules])"
    root = str(Path(herjax.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_gymnax_asks_of_a_state_agrees_with_its_steps():
    """A state's observation and termination are those that the step to it returned, and each field is in the state space."""
    env = BitFlip(2)
    params = env.default_params
    state = env.reset_env(jax.random.key(0), params)[1]
    ends = set()
    for action in (0, 1, 0, 1):
        observation, state, _, terminated, _ = env.step_env(jax.random.key(0), state, action, params)
        jax.tree.map(np.testing.assert_array_equal, observation, env.get_obs(state))
        assert bool(env.is_terminated(state, params)) == bool(terminated)
        ends.add(bool(terminated))
        fields = env.state_space(params).spaces
        assert all(fields[name].contains(getattr(state, name)) for name in ("time", "bits", "goal"))
    assert ends == {True, False}, "four flips of two bits pass through every state"
    assert env.name == "BitFlip-herjax"
