"""PlanarReach and PlanarPush: goal-conditioned gymnax environments whose physics is checked by its properties."""

from functools import cache, partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from scipy import stats

from any_jax import enable_x64
from herjax.envs import PlanarPush, PlanarReach
from herjax.envs.planar_push import EnvState

FALSE_ALARM_RATE = 1e-6
GOAL_ENV_KEYS = {"observation", "achieved_goal", "desired_goal"}
ROUNDING = 5e-6  # Of positions, after many float32 operations on numbers up to 1.

REACH, PUSH, COARSE = PlanarReach(), PlanarPush(), PlanarPush(num_substeps=1)
PARAMS = PUSH.default_params
TOUCHING = PARAMS.hand_radius + PARAMS.puck_radius
WALL = 1 - PARAMS.puck_radius
FRICTIONLESS = PARAMS.replace(friction=0.0, contact_friction=0.0)
both = pytest.mark.parametrize(("env", "size"), [(REACH, 2), (PUSH, 8)], ids=["reach", "push"])


def scene(hand, puck, velocity=(0.0, 0.0)) -> EnvState:
    """A scene from positions and a velocity [2], or a batch of them from [batch, 2]; the goal is at the centre."""
    hand, puck, velocity = np.broadcast_arrays(*(np.asarray(each, np.float32) for each in (hand, puck, velocity)))
    return EnvState(time=np.zeros(hand.shape[:-1], np.int32), hand=hand, puck=puck, velocity=velocity, goal=np.zeros_like(puck))


@partial(jax.jit, static_argnums=0)
def push_one(env, state, actions, params):
    def step(state, action):
        state = env.step_env(jax.random.key(0), state, action, params)[1]
        return state, state

    return jax.lax.scan(step, state, actions)[1]


push_each = jax.jit(jax.vmap(push_one, in_axes=(None, 0, 0, None)), static_argnums=0)


def push(env, state, actions, params) -> EnvState:
    """The states after each of the actions [time, 2], or of a batch: no end of an episode, no reset."""
    run = push_one if np.ndim(actions) == 2 else push_each
    return jax.tree.map(np.asarray, run(env, state, np.asarray(actions, np.float32), params))


def hold(action, num_steps: int) -> np.ndarray:
    return np.tile(np.array(action, np.float32), (num_steps, 1))


@cache
def play(env, *, able: bool) -> dict:
    """What happened in 101 steps of 500 agents that are able or act at random, [500, 101, ...]."""
    keys = jax.random.split(jax.random.key(0), (500, 102))
    drawn = np.random.default_rng(0).uniform(-1, 1, (500, 101, 2)).astype(np.float32)
    return jax.tree.map(np.asarray, play_each(env, able, keys[:, 0], keys[:, 1:], drawn))


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
def play_each(env, able, key, keys, drawn):
    policy = go_straight if env is REACH else go_behind_and_push

    def step(carry, inputs):
        observation, state = carry
        key, drawn = inputs
        action = jnp.where(able, policy(observation), drawn)
        after, state, reward, terminated, truncated, info = env.step(key, state, action, env.default_params)
        log = {"before": observation, "reached": info["final_observation"], "after": after}
        return (after, state), log | {"reward": reward, "terminated": terminated, "truncated": truncated}

    return jax.lax.scan(step, env.reset(key, env.default_params), (keys, drawn))[1]


def go_straight(observation) -> jax.Array:
    """At most full speed to the goal: solves PlanarReach."""
    return full_speed((observation["desired_goal"] - observation["achieved_goal"]) / REACH.default_params.max_speed)


def full_speed(action) -> jax.Array:
    return action / jnp.maximum(jnp.abs(action).max(), 1)


def go_behind_and_push(observation) -> jax.Array:
    """Around the puck to its side away from the goal, then through it to the goal: solves PlanarPush."""
    hand, puck, away = observation["observation"][:2], observation["achieved_goal"], observation["observation"][6:]
    way = observation["desired_goal"] - puck
    distance = jnp.linalg.norm(way)
    angle, wanted = jnp.arctan2(-away[1], -away[0]), jnp.arctan2(-way[1], -way[0])
    turn = jnp.mod(wanted - angle + jnp.pi, 2 * jnp.pi) - jnp.pi
    angle += jnp.clip(turn, -0.6, 0.6)
    around = puck + (TOUCHING + 0.05) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    behind = puck + way / distance * (jnp.minimum(distance / 2, PARAMS.max_speed) - TOUCHING)
    aim = jnp.where(jnp.abs(turn) < 0.3, behind, around)
    return jnp.where(distance < PARAMS.tolerance / 2, 0, full_speed((aim - hand) / PARAMS.max_speed))


def distance(first, second) -> np.ndarray:
    return np.linalg.norm(np.asarray(first) - np.asarray(second), axis=-1)


# Both: environments of gymnax.


@both
def test_is_a_gymnax_environment(env, size):
    """It is an `Environment` of gymnax with 2 components of an action, and truncates after 50 steps unless told."""
    del size
    assert isinstance(env, gymnax.environments.environment.Environment)
    assert env.num_actions == 2
    assert env.default_params.max_steps_in_episode == 50
    assert env.name == f"{type(env).__name__}-herjax"
    assert len(env.step(jax.random.key(0), env.reset(jax.random.key(1))[1], jnp.zeros(2))) == 6


@both
def test_observations_have_the_goal_env_keys(env, size):
    """Observations of reset, step, `final_observation` and `get_obs` are dicts of three float32 arrays."""
    observation, state = env.reset(jax.random.key(0), env.default_params)
    stepped, after, reward, terminated, truncated, info = env.step(jax.random.key(1), state, jnp.ones(2), env.default_params)
    for each in (observation, stepped, info["final_observation"]):
        assert {name: leaf.shape for name, leaf in each.items()} == dict.fromkeys(GOAL_ENV_KEYS, (2,)) | {
            "observation": (size,)
        }
        assert {leaf.dtype for leaf in each.values()} == {jnp.dtype(jnp.float32)}
    for scalar, dtype in ((reward, jnp.float32), (terminated, jnp.bool_), (truncated, jnp.bool_)):
        assert scalar.shape == ()
        assert scalar.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, env.get_obs(after), stepped)


@both
def test_spaces_describe_actions_observations_and_states(env, size):
    """The spaces have the names, shapes and dtypes of what is observed, and contain what a random agent sees."""
    del size
    actions, space = env.action_space(env.default_params), env.observation_space(env.default_params)
    assert isinstance(actions, spaces.Box)
    assert actions.shape == (2,)
    assert (actions.low, actions.high) == (-1, 1)
    log = play(env, able=False)
    assert set(space.spaces) == set(log["after"]) == GOAL_ENV_KEYS
    for name, leaf in log["after"].items():
        assert space.spaces[name].shape == leaf.shape[2:]
        assert space.spaces[name].dtype == leaf.dtype
        assert space.spaces[name].contains(leaf)
        assert not space.spaces[name].contains(leaf + jnp.float32(4))
    _, state = env.reset(jax.random.key(0), env.default_params)
    assert set(env.state_space(env.default_params).spaces) == set(vars(state))


@both
@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_compute_reward_is_zero_up_to_the_tolerance(env, size, leading):
    """The last axis is the position and the leading ones are batch: 0 up to `tolerance` apart, edge included, else -1."""
    del size
    params = env.default_params.replace(tolerance=0.125)
    desired = np.full((*leading, 2), 0.5, np.float32)
    for offset, expected in (((0.0, 0.0), 0), ((0.125, 0.0), 0), ((0.0, -0.125), 0), ((0.12501, 0.0), -1), ((0.1, 0.1), -1)):
        achieved = desired + np.array(offset, np.float32)
        for compute_reward in (env.compute_reward, jax.jit(env.compute_reward)):
            reward = compute_reward(achieved, desired, params)
            np.testing.assert_array_equal(reward, np.full(leading, expected))
            assert reward.dtype == jnp.float32


@both
def test_compute_reward_judges_each_row_of_a_batch_alone(env, size):
    """Of 3 goals the second alone is achieved: rewards -1, 0, -1, under `vmap` too; the tolerance is the default one."""
    del size
    apart = env.default_params.tolerance * jnp.array([1.01, 0.99, 2.0])
    achieved = jnp.stack([apart, jnp.zeros(3)], axis=-1)
    for compute_reward in (env.compute_reward, jax.vmap(env.compute_reward)):
        np.testing.assert_array_equal(compute_reward(achieved, jnp.zeros((3, 2))), [-1.0, 0.0, -1.0])


@both
def test_goals_reward_without_terminating_and_step_50_truncates(env, size):
    """In two episodes of an able agent: truncated at steps 50 and 100 alone, never terminated, rewarded at the goal."""
    del size
    log = play(env, able=True)
    assert not log["terminated"].any()
    np.testing.assert_array_equal(log["truncated"], np.broadcast_to(np.arange(1, 102) % 50 == 0, (500, 101)))
    reached = log["reached"]
    apart = distance(reached["achieved_goal"], reached["desired_goal"])
    clear = np.abs(apart - env.default_params.tolerance) > ROUNDING
    np.testing.assert_array_equal(log["reward"][clear], np.where(apart < env.default_params.tolerance, 0, -1)[clear])
    assert 0.5 < (log["reward"] == 0).mean() < 0.95

    for name in GOAL_ENV_KEYS:
        going_on = ~log["truncated"]
        np.testing.assert_array_equal(log["after"][name][going_on], reached[name][going_on])
        np.testing.assert_array_equal(log["before"][name][:, 1:], log["after"][name][:, :-1])
    for ended in (49, 99):
        np.testing.assert_array_equal(log["after"]["observation"][:, ended, :2], np.zeros((500, 2)))
        assert (distance(reached["observation"][:, ended, :2], np.zeros(2)) > 0.05).mean() > 0.95, "the hand had moved"
        assert (log["after"]["desired_goal"][:, ended] != reached["desired_goal"][:, ended]).all()


@both
def test_starts_are_drawn_in_rings_and_never_at_the_goal(env, size):
    """Distances and directions of 20,000 starts, and of those inside `step`, are uniform; all lie well on the table."""
    del size
    params = env.default_params

    def start(key):
        observation, state = env.reset(key, params)
        return observation, env.step(key, state, jnp.zeros(2), params.replace(max_steps_in_episode=1))[0]

    keys = jax.random.split(jax.random.key(0), 20_000)
    first, again = jax.tree.map(np.asarray, jax.jit(jax.vmap(start))(keys))
    for observation in (first, again):
        start, goal = observation["achieved_goal"], observation["desired_goal"]
        rings = [(goal - start, params.min_goal_distance, params.max_goal_distance)]
        if env is PUSH:
            rings += [(start, params.min_puck_distance, params.max_puck_distance)]
            np.testing.assert_array_equal(observation["observation"][:, 4:6], np.zeros((20_000, 2)))
        for offset, low, high in rings:
            radius = np.linalg.norm(offset, axis=-1)
            assert stats.kstest(radius, stats.uniform(low, high - low).cdf).pvalue > FALSE_ALARM_RATE
            angle = np.arctan2(offset[:, 1], offset[:, 0])
            assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > FALSE_ALARM_RATE
            cells = np.histogram2d(radius, angle, bins=(4, 4), range=((low, high), (-np.pi, np.pi)))[0]
            assert stats.chisquare(cells.ravel()).pvalue > FALSE_ALARM_RATE, "distance and direction are independent"
        assert (env.compute_reward(observation["achieved_goal"], observation["desired_goal"]) == -1).all()
        np.testing.assert_array_equal(observation["observation"][:, :2], np.zeros((20_000, 2)))
        assert np.abs(goal).max() <= WALL
    assert abs(np.corrcoef(first["desired_goal"][:, 0], again["desired_goal"][:, 0])[0, 1]) < 0.04


@both
def test_params_default_when_omitted(env, size):
    """`reset` and `step` without params do what they do with the default ones."""
    del size
    observation, state = env.reset(jax.random.key(0))
    given = env.reset(jax.random.key(0), env.default_params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=ROUNDING), (observation, state), given)
    stepped = env.step(jax.random.key(1), state, jnp.ones(2))
    given = env.step(jax.random.key(1), state, jnp.ones(2), env.default_params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=ROUNDING), stepped, given)


@both
def test_params_may_be_arrays_and_environments_run_vmapped(env, size):
    """Environments with limits of 1, 2 and 9 steps and speeds of their own in one `vmap` do what each does alone."""
    del size
    speeds = np.array([0.05, 0.1, 0.2], np.float32)
    limits = np.array([1, 2, 9], np.int32)
    params = env.default_params.replace(max_steps_in_episode=limits, max_speed=speeds)
    axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, params)
    keys = jax.random.split(jax.random.key(3), 3)

    def run(key, params):
        def step(state, action):
            observation, state, *_, truncated, _ = env.step(key, state, action, params)
            return state, (truncated, observation)

        return jax.lax.scan(step, env.reset(key, params)[1], jnp.array([[1.0, -0.5], [0.5, 1.0]]))[1]

    together = jax.jit(jax.vmap(run, in_axes=(0, axes)))(keys, params)
    np.testing.assert_array_equal(together[0], [[True, True], [False, True], [False, False]])
    alone = jax.jit(run)
    for row in range(3):
        own = alone(keys[row], params.replace(max_steps_in_episode=limits[row], max_speed=speeds[row]))
        jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_[row], atol=ROUNDING), own, together)  # noqa: B023


@both
def test_an_action_moves_the_hand_and_walls_stop_it(env, size):
    """Each step moves the hand by `max_speed` times the action clipped to [-1, 1], up to a wall, where the rest slides."""
    del size
    params = env.default_params
    _, state = env.reset(jax.random.key(0), params)
    away = state.replace(puck=jnp.array([-0.8, -0.8])) if env is PUSH else state
    for action, moved in (((0.3, -0.7), (0.03, -0.07)), ((5.0, -1.0), (0.1, -0.1))):
        after = env.step_env(jax.random.key(0), away, jnp.array(action), params)[1]
        np.testing.assert_allclose(after.hand, moved, atol=ROUNDING)
    hands = push(env, away, hold((1.0, 0.5), 15), params).hand
    np.testing.assert_allclose(hands[-1], [1 - params.hand_radius, 0.75], atol=ROUNDING)
    assert np.abs(hands).max() <= 1 - params.hand_radius + ROUNDING


# PlanarReach.


def test_reach_is_solved_by_going_straight():
    """Straight to the goal at full speed solves every one of 500 starts and stays; random actions end there in under 5 %."""
    assert (play(REACH, able=True)["reward"][:, 20:50] == 0).all()
    assert (play(REACH, able=False)["reward"][:, 49] == 0).mean() < 0.05


# PlanarPush: the task.


def test_push_is_solved_by_going_behind_the_puck():
    """The script holds the puck at the goal at the end of at least 95 % of 500 episodes."""
    assert (play(PUSH, able=True)["reward"][:, 49] == 0).mean() >= 0.95


def test_push_is_not_solved_by_chance():
    """Of 1,000 episodes of random actions less than 2 % ever touch the goal, though a third move the puck."""
    log = play(PUSH, able=False)
    assert (log["reward"][:, :100].reshape(1_000, 50) == 0).any(axis=1).mean() < 0.02
    assert (distance(log["reached"]["achieved_goal"][:, 49], log["before"]["achieved_goal"][:, 0]) > 0.01).mean() > 0.33


def test_push_observes_hand_puck_velocity_and_offset():
    """The 8 numbers are hand, puck, puck's velocity and puck less hand; the achieved goal is the puck."""
    state = scene((0.1, 0.2), (0.5, -0.3), (0.01, -0.02)).replace(goal=jnp.array([0.6, 0.7]))
    observation = PUSH.get_obs(state)
    np.testing.assert_allclose(observation["observation"], [0.1, 0.2, 0.5, -0.3, 0.01, -0.02, 0.4, -0.5], rtol=1e-6)
    np.testing.assert_array_equal(observation["achieved_goal"], state.puck)
    np.testing.assert_array_equal(observation["desired_goal"], state.goal)


@pytest.mark.parametrize("num_substeps", [0, -3])
def test_num_substeps_must_be_a_positive_integer(num_substeps):
    """No substep or fewer raise, and the message names `num_substeps` and the value."""
    with pytest.raises(ValueError, match="num_substeps") as error:
        PlanarPush(num_substeps=num_substeps)
    assert str(num_substeps) in str(error.value)


# PlanarPush: the physics.


@partial(jax.jit, static_argnums=0)
def harass(env, params, state, chase, actions):
    """The states of an agent that adds `chase` [time] times the direction to the puck to its actions [time, 2]."""

    def step(state, inputs):
        chase, action = inputs
        offset = state.puck - state.hand
        action = full_speed(3 * (action + chase * offset / jnp.linalg.norm(offset)))
        state = env.step_env(jax.random.key(0), state, action, params)[1]
        return state, state

    return jax.lax.scan(step, state, (chase, actions))[1]


@pytest.mark.parametrize("env", [PUSH, COARSE], ids=["10 substeps", "1 substep"])
def test_nothing_ever_overlaps_or_leaves_the_table(env):
    """In 200 steps of 300 hostile agents, small and large hands, rough and smooth: discs and walls stay clear of each other."""
    pairs = np.array([(0.06, 0.1), (0.1, 0.1), (0.1, 0.05)], np.float32)[np.arange(300) % 3]
    roughness = np.array([0.0, 0.5, 5.0, 0.5, 0.0], np.float32)[np.arange(300) % 5]
    params = PARAMS.replace(hand_radius=pairs[:, 0], puck_radius=pairs[:, 1], contact_friction=roughness)
    axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, params)
    rng = np.random.default_rng(0)
    moods = rng.uniform(-1, 1, (300, 10, 5)).repeat(20, axis=1)  # Each lasts 20 steps.
    chase, drive, jitter = (np.maximum(moods[..., i], 0) for i in range(3))
    actions = drive[..., None] * moods[..., 3:] + jitter[..., None] * rng.uniform(-1, 1, (300, 200, 2))
    start = scene(
        np.zeros((300, 2)), rng.choice([-1, 1], (300, 2)) * rng.uniform(0.2, 0.8, (300, 2)), rng.normal(0, 0.2, (300, 2))
    )
    inputs = (chase.astype(np.float32), actions.astype(np.float32))
    states = jax.tree.map(np.asarray, jax.vmap(harass, in_axes=(None, axes, 0, 0, 0))(env, params, start, *inputs))
    hand_radius, puck_radius = pairs[:, :1], pairs[:, 1:]
    gap = distance(states.hand, states.puck) - hand_radius - puck_radius
    to_wall = 1 - puck_radius - np.abs(states.puck).max(-1)
    assert gap.min() > -ROUNDING
    assert to_wall.min() > -ROUNDING
    assert (1 - hand_radius - np.abs(states.hand).max(-1)).min() > -ROUNDING
    touching, cornered = gap < 1e-4, (1 - puck_radius[..., None] - np.abs(states.puck) < 1e-4).all(-1)
    assert touching.mean() > 0.1, "the run must show contact"
    assert (touching & (to_wall < 1e-4)).mean() > 0.02, "the run must show contact at a wall"
    assert cornered.any(), "the run must show a cornered puck"


def test_a_puck_moves_only_when_touched():
    """A hand that passes at a thousandth of the table leaves the puck where it was; one that grazes it does not."""
    passing, grazing = scene((-0.5, TOUCHING + 0.001), (0.0, 0.0)), scene((-0.5, TOUCHING - 0.001), (0.0, 0.0))
    actions = hold((0.97, 0.0), 12)
    np.testing.assert_array_equal(push(PUSH, passing, actions, PARAMS).puck, np.zeros((12, 2)))
    assert np.abs(push(PUSH, grazing, actions, PARAMS).puck[-1]).max() > 1e-4


def test_friction_stops_a_sliding_puck():
    """It loses `friction` of its speed a step, keeps its direction, stops for good, v^2 / (2 friction) from its start."""
    direction, speed = np.array([0.8, -0.6]), 0.27
    states = push(PUSH, scene((-0.5, -0.5), (0.0, 0.0), speed * direction), hold((0.0, 0.0), 6), PARAMS)
    expected = np.maximum(speed - PARAMS.friction * np.arange(1, 7), 0)
    np.testing.assert_allclose(states.velocity, expected[:, None] * direction, atol=ROUNDING)
    np.testing.assert_array_equal(states.velocity[3:], np.zeros((3, 2)))
    np.testing.assert_array_equal(states.puck[3:], np.tile(states.puck[3], (3, 1)))
    np.testing.assert_allclose(states.puck[-1], direction * speed**2 / (2 * PARAMS.friction), atol=speed / 2 / 10)


def test_a_resting_hand_adds_no_energy():
    """With the hand at rest the puck's speed never grows, whatever it hits: 500 pucks of random place and velocity."""
    rng = np.random.default_rng(0)
    hands, pucks = rng.uniform(-0.9, 0.9, (2, 500, 2))
    hands, pucks = hands[distance(hands, pucks) > TOUCHING], pucks[distance(hands, pucks) > TOUCHING]
    velocities = rng.uniform(-0.6, 0.6, pucks.shape)
    params = PARAMS.replace(friction=0.02)
    states = push(PUSH, scene(hands, pucks, velocities), np.zeros((len(pucks), 20, 2)), params)
    speed = np.linalg.norm(np.concatenate([velocities[:, None], states.velocity], axis=1), axis=-1)
    assert np.diff(speed, axis=1).max() < ROUNDING
    np.testing.assert_allclose(states.hand, np.broadcast_to(hands[:, None], states.hand.shape), atol=ROUNDING)
    assert (np.diff(speed, axis=1) < -0.05).any(axis=1).mean() > 0.3, "the run must show collisions"


@pytest.mark.parametrize("direction", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
def test_a_push_moves_the_puck_ahead_of_the_hand(direction):
    """A hand that pushes from the left moves the puck to the right, touching it, at its own speed; so for each direction."""
    ahead = np.array(direction)
    states = push(PUSH, scene((0.0, 0.0), 0.25 * ahead), hold(direction, 5), PARAMS)
    np.testing.assert_allclose(states.hand[-1], 0.5 * ahead, atol=ROUNDING)
    np.testing.assert_allclose(states.puck[-1], (0.5 + TOUCHING) * ahead, atol=ROUNDING)
    np.testing.assert_allclose(states.velocity[-1], PARAMS.max_speed * ahead, atol=ROUNDING)


def test_a_frictionless_push_is_along_the_contact_normal():
    """A resting puck touched at any angle moves off along the line of centres with the hand's speed along it, or not at all."""
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    normal = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    start = scene(np.zeros((100, 2)), (TOUCHING + 1e-6) * normal, np.zeros((100, 2)))
    states = push(COARSE, start, np.broadcast_to((0.9, 0.0), (100, 1, 2)), FRICTIONLESS)
    along = np.maximum(0.9 * PARAMS.max_speed * normal[:, :1], 0)
    np.testing.assert_allclose(states.velocity[:, 0], along * normal, atol=ROUNDING)


def test_contact_friction_carries_within_its_cone_and_drags_outside():
    """A push within atan(coefficient) of the normal gives the puck the hand's velocity, one outside leans it by that angle."""
    params = FRICTIONLESS.replace(contact_friction=0.5)
    angle = np.linspace(-1.4, 1.4, 100)
    normal = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    start = scene(np.zeros((100, 2)), (TOUCHING + 1e-6) * normal, np.zeros((100, 2)))
    states = push(COARSE, start, np.broadcast_to((0.9, 0.0), (100, 1, 2)), params)
    velocity = states.velocity[:, 0]
    carried = np.abs(angle) < np.arctan(0.5)
    np.testing.assert_allclose(velocity[carried], np.tile([0.09, 0.0], (carried.sum(), 1)), atol=ROUNDING)
    lean = angle - np.arctan2(velocity[:, 1], velocity[:, 0])
    np.testing.assert_allclose(lean[~carried], (np.sign(angle) * np.arctan(0.5))[~carried], atol=1e-3)


def test_a_wall_stops_the_puck_and_the_puck_the_hand():
    """Pushed head-on into a wall the puck rests at it, the hand rests at the puck, and goes back at full speed when told."""
    states = push(PUSH, scene((0.0, 0.0), (0.3, 0.0)), np.concatenate([hold((1.0, 0.0), 15), hold((-1.0, 0.0), 1)]), PARAMS)
    np.testing.assert_allclose(states.puck[-2], [WALL, 0.0], atol=ROUNDING)
    np.testing.assert_allclose(states.hand[-2], [WALL - TOUCHING, 0.0], atol=ROUNDING)
    np.testing.assert_array_equal(states.velocity[-2], [0.0, 0.0])
    np.testing.assert_allclose(states.hand[-1], [WALL - TOUCHING - PARAMS.max_speed, 0.0], atol=ROUNDING)


def test_a_puck_pushed_aslant_slides_along_a_wall():
    """At the right wall a push up and to the right moves the puck up, at the wall all the way, and the hand with it."""
    states = push(PUSH, scene((WALL - 0.12, -0.6), (WALL, -0.45)), hold((0.2, 1.0), 10), PARAMS)
    np.testing.assert_allclose(states.puck[:, 0], np.full(10, WALL), atol=ROUNDING)
    assert (np.diff(states.puck[:, 1]) > 0.05).all()


def test_mirrored_and_turned_scenes_do_the_same():
    """The 8 symmetries of the table turn a trajectory of random pushes and bumps into walls into that of the turned scene."""
    rng = np.random.default_rng(1)
    pucks = rng.uniform(-0.8, 0.8, (100, 2))
    hands = np.clip(pucks + 0.2 * rng.choice([-1, 1], (100, 2)), -0.9, 0.9)
    hands, pucks = hands[distance(hands, pucks) > TOUCHING], pucks[distance(hands, pucks) > TOUCHING]
    velocities, actions = rng.uniform(-0.1, 0.1, pucks.shape), rng.uniform(-1, 1, (len(pucks), 15, 2))
    actions = np.clip(actions + 2 * (pucks - hands)[:, None], -1, 1)

    def run(turn):
        start = scene(hands @ turn, pucks @ turn, velocities @ turn)
        return push(PUSH, start, actions @ turn, PARAMS)

    plain = run(np.eye(2))
    assert (distance(plain.puck[:, -1], pucks) > 0.2).mean() > 0.5, "the run must show pushes"
    assert (np.abs(plain.puck).max((1, 2)) > WALL - 1e-4).mean() > 0.1, "the run must show walls"
    for turn in (
        np.diag(signs) @ swap for swap in (np.eye(2), np.eye(2)[::-1]) for signs in ((1, 1), (-1, 1), (1, -1), (-1, -1))
    ):
        turned = run(turn)
        for name in ("hand", "puck", "velocity"):
            np.testing.assert_allclose(getattr(turned, name), getattr(plain, name) @ turn, atol=1e-3)


def test_away_from_walls_no_direction_is_special():
    """A scene turned by any angle gives the turned trajectory, as long as no wall is met."""
    angle = np.linspace(0, 2 * np.pi, 60)
    turns = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], 1)
    hands = np.einsum("i,nij->nj", [-0.2, 0.03], turns)
    velocities = np.einsum("i,nij->nj", [-0.02, 0.01], turns)
    actions = np.einsum("ti,nij->ntj", [(0.7, 0.0), (0.7, 0.05), (0.6, 0.1), (0.7, -0.1), (0.5, 0.0), (0.0, 0.0)], turns)
    states = push(PUSH, scene(hands, np.zeros((60, 2)), velocities), actions, PARAMS)
    for name in ("hand", "puck", "velocity"):
        expected = np.einsum("ti,nij->ntj", getattr(states, name)[0], turns)
        np.testing.assert_allclose(getattr(states, name), expected, atol=1e-4)
    assert np.linalg.norm(states.puck[0, -1]) > 0.15


def test_finer_substeps_converge():
    """The puck's place after slanted pushes and slides: 10 substeps are within 0.02 of 160, 40 at least twice as near."""
    rng = np.random.default_rng(2)
    hands = np.stack([np.full(100, -0.22), rng.uniform(-0.12, 0.12, 100)], axis=-1)
    start = scene(hands, np.zeros((100, 2)), np.zeros((100, 2)))
    actions = np.concatenate([np.broadcast_to((0.8, 0.1), (100, 4, 2)), np.zeros((100, 3, 2))], axis=1)
    pucks = {n: push(PlanarPush(num_substeps=n), start, actions, PARAMS).puck for n in (10, 40, 160)}
    error = {n: distance(pucks[n], pucks[160]).max() for n in (10, 40)}
    assert error[10] < 0.02
    assert error[40] < error[10] / 2


@pytest.mark.parametrize("env", [PlanarReach(), PlanarPush()], ids=lambda env: env.name)
def test_all_is_float32_where_64_bits_are_enabled(env):
    """Observations, states and rewards, whatever the action's dtype, so that a loop can carry them."""
    with enable_x64(True):
        key, params = jax.random.key(0), env.default_params
        seen = env.reset(key, params)
        for action in (jnp.zeros(2), jnp.zeros(2, jnp.float32), np.zeros(2)):
            after = env.step(key, seen[1], action, params)
            leaves = jax.tree.leaves((seen, after))
            assert not [leaf.dtype for leaf in leaves if leaf.dtype == jnp.float64]
            assert jax.tree.map(jnp.result_type, seen) == jax.tree.map(jnp.result_type, after[:2])
