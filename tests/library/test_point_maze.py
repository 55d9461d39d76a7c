"""PointMaze: a goal-conditioned gymnax environment whose walls hold whatever the action is."""

from functools import cache, partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from scipy import stats

from any_jax import enable_x64
from herjax.envs import PointMaze
from herjax.envs.point_maze import LAYOUTS

FALSE_ALARM_RATE = 1e-6
GOAL_ENV_KEYS = {"observation", "achieved_goal", "desired_goal"}
ROUNDING = 1e-5  # Of positions up to 12, after some float32 operations.

MAZES = {layout: PointMaze(layout) for layout in LAYOUTS}
U, LARGE = MAZES["u"], MAZES["large"]
each = pytest.mark.parametrize("layout", LAYOUTS)


def cells(layout: str) -> np.ndarray:
    """The characters of a layout, [x, y]: the row y = 0 is the lowest."""
    return np.array([list(row) for row in LAYOUTS[layout].split()])[::-1].T


def middle(layout: str, cell: str) -> np.ndarray:
    """The middle of the cell "S" or "G", [2]."""
    return np.argwhere(cells(layout) == cell)[0] + 0.5


def way(layout: str) -> list[tuple[int, int]]:
    """Cells (x, y) of a shortest way from "S" to "G", both included, by Dijkstra's algorithm of an array of distances."""
    free = cells(layout) != "#"
    away = np.where(cells(layout) == "G", 0, np.inf)
    for _ in range(free.size):
        nearest = np.minimum.reduce([np.roll(away, by, axis) for by in (-1, 1) for axis in (0, 1)])
        away = np.where(free, np.minimum(away, nearest + 1), np.inf)
    steps = [tuple(np.argwhere(cells(layout) == "S")[0])]
    while away[steps[-1]] > 0:
        x, y = steps[-1]
        steps.append(min([(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)], key=lambda cell: away[cell]))
    return steps


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, None))
def walk(env, start, actions, params):
    """Where the points are after each of the actions: [batch, 2] and [batch, time, 2] -> [batch, time, 2]."""

    def step(state, action):
        state = env.step_env(jax.random.key(0), state, action, params)[1]
        return state, state.hand

    state = env.reset_env(jax.random.key(0), params)[1].replace(hand=start)
    return jax.lax.scan(step, state, actions)[1]


def move(env, start, actions, **changes) -> np.ndarray:
    """As `walk`, for one start or several, with changed params."""
    actions = np.asarray(actions, np.float32)
    starts = np.broadcast_to(np.asarray(start, np.float32), (len(actions), 2))
    return np.asarray(walk(env, starts, actions, env.default_params.replace(**changes)))


def in_walls(layout: str, begin: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Whether a straight way along x or y, from `begin` to `end`, [..., 2] each, comes nearer to a wall than `radius`."""
    low, high, found = np.minimum(begin, end), np.maximum(begin, end), np.zeros(begin.shape[:-1], bool)
    for corner in np.argwhere(cells(layout) == "#"):
        found |= ((high > corner - radius) & (low < corner + 1 + radius)).all(axis=-1)
    return found


@cache
def play(layout: str) -> dict:
    """What happened in `max_steps_in_episode + 1` steps of 200 agents, each action held for 8 steps: [200, T + 1, ...]."""
    env = MAZES[layout]
    num_steps = env.default_params.max_steps_in_episode + 1
    drawn = np.random.default_rng(0).uniform(-1.5, 1.5, (200, num_steps // 8 + 1, 2))

    def step(carry, inputs):
        observation, state = carry
        key, action = inputs
        after, state, reward, terminated, truncated, info = env.step(key, state, action, env.default_params)
        log = {"before": observation, "reached": info["final_observation"], "after": after}
        return (after, state), log | {"reward": reward, "terminated": terminated, "truncated": truncated}

    def run(key, actions):
        key_reset, key_steps = jax.random.split(key)
        seen = env.reset(key_reset, env.default_params)
        return jax.lax.scan(step, seen, (jax.random.split(key_steps, num_steps), actions))[1]

    actions = drawn.repeat(8, axis=1)[:, :num_steps].astype(np.float32)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 200), actions))


# An environment of gymnax.


def test_is_a_gymnax_environment():
    """It is an `Environment` of gymnax with 2 components of an action; `step` returns six values; the default is large."""
    assert isinstance(LARGE, gymnax.environments.environment.Environment)
    assert LARGE.num_actions == 2
    assert LARGE.name == "PointMaze-herjax"
    assert len(LARGE.step(jax.random.key(0), LARGE.reset(jax.random.key(1))[1], jnp.zeros(2))) == 6
    np.testing.assert_array_equal(PointMaze().walls, LARGE.walls)


def test_observations_have_the_goal_env_keys():
    """Observations of reset, step, `final_observation` and `get_obs` are dicts of three float32 arrays: point, point, goal."""
    observation, state = U.reset(jax.random.key(0), U.default_params)
    stepped, after, reward, terminated, truncated, info = U.step(jax.random.key(1), state, jnp.ones(2), U.default_params)
    for seen in (observation, stepped, info["final_observation"]):
        assert {name: (leaf.shape, str(leaf.dtype)) for name, leaf in seen.items()} == dict.fromkeys(
            GOAL_ENV_KEYS, ((2,), "float32")
        )
    for scalar, dtype in ((reward, jnp.float32), (terminated, jnp.bool_), (truncated, jnp.bool_)):
        assert scalar.shape == ()
        assert scalar.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, U.get_obs(after), stepped)
    for name, expected in (("observation", after.hand), ("achieved_goal", after.hand), ("desired_goal", after.goal)):
        np.testing.assert_array_equal(stepped[name], expected)


@each
def test_spaces_describe_actions_observations_and_states(layout):
    """The spaces have the names, shapes and dtypes of what is observed, contain what an agent sees, and end with the maze."""
    env = MAZES[layout]
    actions, space = env.action_space(env.default_params), env.observation_space(env.default_params)
    assert isinstance(actions, spaces.Box)
    assert (actions.shape, actions.low, actions.high) == ((2,), -1, 1)
    log = play(layout)
    assert set(space.spaces) == set(log["after"]) == GOAL_ENV_KEYS
    for name, leaf in log["after"].items():
        assert space.spaces[name].shape == leaf.shape[2:]
        assert space.spaces[name].dtype == leaf.dtype
        assert jax.vmap(space.spaces[name].contains)(leaf.reshape(-1, 2)).all()
        for outside in ((-0.1, 1.0), (1.0, -0.1), (env.size[0] + 0.1, 1.0), (1.0, env.size[1] + 0.1)):
            assert not space.spaces[name].contains(jnp.array(outside))
    _, state = env.reset(jax.random.key(0), env.default_params)
    assert set(env.state_space(env.default_params).spaces) == set(vars(state))


@each
def test_goals_reward_without_terminating_and_the_last_step_truncates(layout):
    """Truncated at the last step of an episode alone, never terminated, rewarded within the tolerance of the goal."""
    env, log = MAZES[layout], play(layout)
    last = env.default_params.max_steps_in_episode - 1
    assert not log["terminated"].any()
    np.testing.assert_array_equal(log["truncated"], np.broadcast_to(np.arange(last + 2) == last, log["truncated"].shape))
    reached = log["reached"]
    apart = np.linalg.norm(reached["achieved_goal"] - reached["desired_goal"], axis=-1)
    clear = np.abs(apart - env.default_params.tolerance) > ROUNDING
    np.testing.assert_array_equal(log["reward"][clear], np.where(apart < env.default_params.tolerance, 0, -1)[clear])
    for name in GOAL_ENV_KEYS:
        going_on = ~log["truncated"]
        np.testing.assert_array_equal(log["after"][name][going_on], reached[name][going_on])
    moved = np.linalg.norm(reached["observation"][:, last] - middle(layout, "S"), axis=-1)
    assert (moved > 0.5).mean() > 0.5, "points had moved"
    assert (np.abs(log["after"]["observation"][:, last] - middle(layout, "S")) <= 0.25).all(), "episodes start anew"


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_compute_reward_is_zero_up_to_the_tolerance(leading):
    """The last axis is the position and the leading ones are batch: 0 up to `tolerance` apart, edge included, else -1."""
    desired = np.full((*leading, 2), 2.5, np.float32)
    for offset, expected in (((0.0, 0.0), 0), ((0.5, 0.0), 0), ((0.0, -0.5), 0), ((0.5001, 0.0), -1), ((0.4, 0.4), -1)):
        for compute_reward in (U.compute_reward, jax.jit(U.compute_reward)):
            reward = compute_reward(desired + np.array(offset, np.float32), desired)
            np.testing.assert_array_equal(reward, np.full(leading, expected))
            assert reward.dtype == jnp.float32


def test_all_is_float32_where_64_bits_are_enabled():
    """Observations, states and rewards, whatever the action's dtype, so that a loop can carry them."""
    with enable_x64(True):
        key, params = jax.random.key(0), U.default_params
        seen = U.reset(key, params)
        for action in (jnp.zeros(2), jnp.zeros(2, jnp.float32), np.zeros(2)):
            after = U.step(key, seen[1], action, params)
            assert not [leaf.dtype for leaf in jax.tree.leaves((seen, after)) if leaf.dtype == jnp.float64]
            assert jax.tree.map(jnp.result_type, seen) == jax.tree.map(jnp.result_type, after[:2])


def test_params_may_be_arrays_and_environments_run_vmapped():
    """Environments whose speeds, limits and ways to start differ do in one `vmap` what each does alone."""
    speeds, limits = np.array([0.05, 0.25, 2.0], np.float32), np.array([1, 2, 9], np.int32)
    params = U.default_params.replace(max_steps_in_episode=limits, max_speed=speeds, random_start=np.array([False, True, True]))
    axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, params)
    keys = jax.random.split(jax.random.key(3), 3)

    def run(key, params):
        def step(state, action):
            observation, state, *_, truncated, _ = U.step(key, state, action, params)
            return state, (truncated, observation)

        return jax.lax.scan(step, U.reset(key, params)[1], jnp.array([[1.0, -0.5], [0.5, 1.0]]))[1]

    together = jax.jit(jax.vmap(run, in_axes=(0, axes)))(keys, params)
    np.testing.assert_array_equal(together[0], [[True, True], [False, True], [False, False]])
    alone = jax.jit(run)
    for row in range(3):
        own = alone(keys[row], jax.tree.map(lambda leaf: leaf[row] if np.ndim(leaf) else leaf, params))  # noqa: B023
        jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_[row], atol=ROUNDING), own, together)  # noqa: B023


# Where episodes start.


def starts(env, **changes) -> tuple[np.ndarray, np.ndarray]:
    """Points and goals of 4,000 episodes, [4000, 2]."""
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    observation, _ = reset(jax.random.split(jax.random.key(0), 4_000), env.default_params.replace(**changes))
    return np.asarray(observation["achieved_goal"]), np.asarray(observation["desired_goal"])


@each
def test_episodes_start_in_their_cell_unless_told(layout):
    """Start and goal lie around the middles of their cells, uniformly within `noise` in each component, and independently."""
    found = starts(MAZES[layout])
    offsets = np.concatenate([points - middle(layout, cell) for points, cell in zip(found, "SG", strict=True)], axis=1)
    for component in offsets.T:
        assert stats.kstest(component, stats.uniform(-0.25, 0.5).cdf).pvalue > FALSE_ALARM_RATE
    assert np.abs(np.corrcoef(offsets.T) - np.eye(4)).max() < 0.1
    for points, cell in zip(starts(MAZES[layout], noise=0.0), "SG", strict=True):
        np.testing.assert_array_equal(points, np.tile(middle(layout, cell), (4_000, 1)))


@pytest.mark.parametrize(("random_start", "random_goal"), [(True, True), (True, False), (False, True)])
def test_starts_and_goals_may_be_in_any_free_cell(random_start, random_goal):
    """Where they are random, every free cell is as frequent as any other, none is a wall, and they are independent."""
    points, goals = starts(LARGE, random_start=random_start, random_goal=random_goal)
    free = [tuple(cell) for cell in np.argwhere(cells("large") != "#")]
    for found, is_random, cell in ((points, random_start, "S"), (goals, random_goal, "G")):
        if is_random:
            numbers = [free.index(tuple(each)) for each in found.astype(int)]  # A wall is not in the list.
            assert stats.chisquare(np.bincount(numbers, minlength=len(free))).pvalue > FALSE_ALARM_RATE
        else:
            assert np.abs(found - middle("large", cell)).max() <= 0.25
    assert np.abs(np.corrcoef(points.T, goals.T)[:2, 2:]).max() < 0.1


# Walls.


def test_an_action_moves_the_point_and_is_clipped():
    """In the open each step moves the point by `max_speed` times the action clipped to [-1, 1]."""
    start = np.array([2.5, 1.5])
    for action, moved in (((0.2, -0.1), (0.05, -0.025)), ((-1.0, 0.0), (-0.25, 0.0)), ((7.0, 1.0), (0.25, 0.25))):
        np.testing.assert_allclose(move(U, start, [[action]])[0, 0], start + moved, atol=ROUNDING)


@pytest.mark.parametrize("into", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
def test_walls_stop_the_point_and_it_slides(into):
    """At each wall of a room the point stays `hand_radius` away, goes on along it at full speed, and leaves it when told."""
    into, centre = np.array(into), np.array([2.5, 2.5])
    along = into[::-1]
    way = [into] * 8 + [into + along] * 8 + [into - along] * 8 + [-into]
    path = move(PointMaze("##### #S..# #...# #..G# #####"), centre, [way])[0]
    for step, expected in (
        (7, 1.4 * into),
        (11, 1.4 * into + along),
        (15, 1.4 * (into + along)),
        (24, 1.15 * into - 0.6 * along),
    ):
        np.testing.assert_allclose(path[step] - centre, expected, atol=ROUNDING)


@each
@pytest.mark.parametrize("speed", [0.25, 1.0, 30.0])
def test_no_action_leads_into_a_wall_or_through_one(layout, speed):
    """Points with any action and speed are never in a wall, and what they crossed, along x and then y, is free."""
    env, rng = MAZES[layout], np.random.default_rng(0)
    middles = np.argwhere(cells(layout) != "#") + 0.5
    begin = middles[rng.integers(len(middles), size=300)] + rng.uniform(-0.4, 0.4, (300, 2))
    size = rng.choice([0.1, 1.0, 50.0], (300, 60, 1))
    corner = rng.choice([-1.0, 0.0, 1.0], (300, 60, 2))  # Straight and diagonal: corners are met exactly.
    actions = np.where(rng.random((300, 60, 1)) < 0.5, corner, size * rng.uniform(-1, 1, (300, 60, 2)))
    path = np.concatenate([begin[:, None], move(env, begin, actions, max_speed=speed)], axis=1)
    radius = env.default_params.hand_radius - ROUNDING
    bend = np.stack([path[:, 1:, 0], path[:, :-1, 1]], axis=-1)
    assert not in_walls(layout, path[:, :-1], bend, radius).any()
    assert not in_walls(layout, bend, path[:, 1:], radius).any()
    assert (path[:, 1:] == path[:, :-1]).any(axis=-1).mean() > 0.1, "the run must show walls"


@each
def test_a_shortest_way_is_passable(layout):
    """`distance` is that of a shortest way by cells; a point that goes from middle to middle is there in half an episode."""
    env, steps = MAZES[layout], way(layout)
    assert env.distance == len(steps) - 1
    assert env.default_params.max_steps_in_episode == 8 * env.distance
    actions = np.repeat(np.diff(np.array(steps), axis=0), 4, axis=0)
    path = move(env, middle(layout, "S"), actions[None])[0]
    np.testing.assert_allclose(path[3::4], np.array(steps[1:]) + 0.5, atol=ROUNDING)
    np.testing.assert_allclose(path[-1], middle(layout, "G"), atol=ROUNDING)


@each
def test_walls_are_those_of_the_drawing(layout):
    """The middle of a cell is in one rectangle if the cell is a wall, and in none if it is free."""
    env = MAZES[layout]
    assert env.size == cells(layout).shape
    middles = np.argwhere(np.ones(env.size)) + 0.5
    inside = ((env.walls[:, None, 0] < middles) & (middles < env.walls[:, None, 1])).all(axis=-1)
    np.testing.assert_array_equal(inside.sum(axis=0), (cells(layout) == "#").ravel())


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("tiny", "tiny"),
        ("#### #SG# ###", "walled in"),
        ("#### #SG. ####", "walled in"),
        ("##### #S.S# #####", "one"),
        ("#### #SG# #ab# ####", "rows"),
        ("##### #S#G# #####", "no way"),
    ],
)
def test_layouts_that_are_no_mazes_are_refused(layout, part):
    """An unknown name, ragged rows, an open edge, two starts, other characters and a goal cut off raise, with the layout."""
    with pytest.raises(ValueError, match=part) as error:
        PointMaze(layout)
    assert repr(layout) in str(error.value)
