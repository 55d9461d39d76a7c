"""Play data: files are read, goals mixed and losses computed as in OGBench's paper, and goals are reached."""

import ast
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
from scipy.stats import expectile

import offline
import play_data
from play_data import Transition

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = offline.Config(steps=2, eval_every=1, batch_size=16, hidden=(8,), subgoal_steps=3, progress=False)
SOURCES = [Path(offline.__file__), Path(play_data.__file__)]


def numbered(episodes: int = 4, steps: int = 50) -> tuple[Transition, np.ndarray]:
    """Episodes whose observations are (step, episode)."""
    places = np.stack(np.meshgrid(np.arange(steps + 1), np.arange(episodes)), axis=-1).astype(np.float32)
    return Transition(places[:, :-1], np.zeros((episodes, steps, 2), np.float32), places[:, 1:]), np.ones(
        (episodes, steps), bool
    )


def walks(episodes: int = 40, steps: int = 60) -> tuple[Transition, np.ndarray]:
    """A point in the square [0, 4]^2 that walks to one random place after the other, in noisy steps of 0.25 at most."""
    rng = np.random.default_rng(0)
    here, goal = rng.uniform(0, 4, (2, episodes, 2))
    rows = []
    for _ in range(steps):
        action = np.clip(
            (goal - here) / np.linalg.norm(goal - here, axis=-1, keepdims=True) + rng.normal(0, 0.5, here.shape), -1, 1
        )
        then = np.clip(here + 0.25 * action, 0, 4)
        rows.append(Transition(*map(np.float32, (here, action, then))))
        here = then
        arrived = np.linalg.norm(goal - here, axis=-1, keepdims=True) < 0.3
        goal = np.where(arrived, rng.uniform(0, 4, goal.shape), goal)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rows), np.ones((episodes, steps), bool)


def write(path: Path, data: tuple[Transition, np.ndarray]) -> None:
    """A file in OGBench's format."""
    transitions, _ = data
    observations = np.concatenate([transitions.observation, transitions.next_observation[:, -1:]], axis=1)
    actions = np.concatenate([transitions.action, transitions.action[:, -1:]], axis=1)
    terminals = np.zeros(actions.shape[:2], bool)
    terminals[:, -1] = True
    flat = {"observations": observations.reshape(-1, 2), "actions": actions.reshape(-1, 2), "terminals": terminals.ravel()}
    np.savez(path, **flat)


def loop_of(config: offline.Config, data: tuple[Transition, np.ndarray]) -> offline.Loop:
    """The state of training at its beginning, positions as they are."""
    loop = jax.jit(partial(offline.start, config, data))(jax.random.key(0))
    return loop._replace(agent=loop.agent.replace(center=jnp.zeros(2), spread=jnp.ones(2)))


def test_files_are_read_as_ogbench_means_them(tmp_path: Path) -> None:
    """Of episodes of 3 and 1 transitions each has its own next observation; no transition leads from one to the other."""
    places = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "data.npz", observations=places, actions=-places, terminals=np.array([0, 0, 0, 1, 0, 1], bool))
    transitions, mask = play_data.load(tmp_path / "data.npz")
    np.testing.assert_array_equal(mask, [[True] * 3, [True, False, False]])
    np.testing.assert_array_equal(transitions.observation[mask], places[[0, 1, 2, 4]])
    np.testing.assert_array_equal(transitions.action[mask], -places[[0, 1, 2, 4]])
    np.testing.assert_array_equal(transitions.next_observation[mask], places[[1, 2, 3, 5]])
    assert {leaf.dtype for leaf in transitions} == {np.dtype(np.float32)}
    buffer = offline.fill(TINY, *jax.tree.map(jnp.asarray, (transitions, mask)))
    assert int(offline.herjax.size(buffer)) == 4


def test_goals_are_mixed_as_in_ogbench() -> None:
    """A fifth of the value's goals is the state itself, half is later, the rest anywhere; all the actor's are later."""
    config = dataclasses.replace(TINY, batch_size=20_000, discount=0.9)
    batch = jax.device_get(offline.draw(config, loop_of(config, numbered()), jax.random.key(1)))
    step, episode = batch.here.T
    ahead, same = batch.goal[:, 0] - step, batch.goal[:, 1] == episode
    early = step < 10  # Where the end of the episode, 40 steps off, matters to no share.
    np.testing.assert_allclose((~same).mean(), 0.3 * 3 / 4, atol=0.01)
    np.testing.assert_allclose((same & (ahead == 0))[early].mean(), 0.2 + 0.5 * 0.1 + 0.3 / 200, atol=0.015)
    np.testing.assert_allclose((same & (ahead == 5))[early].mean(), 0.5 * 0.1 * 0.9**5 + 0.3 / 200, atol=0.01)
    itself = same & (ahead == 0)
    np.testing.assert_array_equal(batch.reward, np.where(itself, 0, -1))
    np.testing.assert_array_equal(batch.discount, np.where(itself, 0, np.float32(0.9)))
    np.testing.assert_array_equal(batch.actor_goal[:, 1], episode)
    share = (batch.actor_goal[:, 0] - step) / (49 - step + 1e-6)
    assert share.min() >= 0
    np.testing.assert_allclose(share[early].mean(), 0.5, atol=0.02)


def test_subgoals_are_k_steps_ahead_or_the_goal() -> None:
    """A subgoal is three steps on, at the episode's end, or the actor's goal if it comes before."""
    config = dataclasses.replace(TINY, batch_size=2000)
    batch = jax.device_get(offline.draw(config, loop_of(config, numbered(steps=8)), jax.random.key(1)))
    np.testing.assert_array_equal(batch.then, batch.here + np.float32([1, 0]))
    np.testing.assert_array_equal(batch.ahead[:, 0], np.minimum(batch.here[:, 0] + 3, 7))
    np.testing.assert_array_equal(batch.subgoal[:, 0], np.minimum(batch.ahead[:, 0], batch.actor_goal[:, 0]))
    assert (batch.subgoal[:, 0] < batch.ahead[:, 0]).any()


@pytest.mark.parametrize("share", [0.1, 0.7, 0.9])
def test_expectiles_are_scipys(share: float) -> None:
    """The expectile loss of a sample is least at its expectile."""
    sample = np.random.default_rng(0).exponential(size=200)
    slope = jax.grad(lambda v: offline.expectile(jnp.float32(sample) - v, jnp.float32(sample) - v, share))
    assert abs(float(slope(jnp.float32(expectile(sample, share))))) < 1e-5


def pieces(agent: str) -> tuple[offline.Config, dict, dict, offline.Batch]:
    """A configuration, networks, other target networks, and a batch in which some goals are reached."""
    config = dataclasses.replace(TINY, agent=agent, temperature=2.0, batch_size=64)
    loop = loop_of(config, walks())
    leaves, tree = jax.tree.flatten((loop.agent.networks, loop.agent.targets))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [leaf + jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]  # Twins that disagree.
    return config, *jax.tree.unflatten(tree, leaves), offline.draw(config, loop, jax.random.key(3))


def test_the_loss_of_gciql_is_that_of_the_formulas() -> None:
    """V is the expectile of the lesser target Q, both Q have V's one-step target, and the actor climbs the lesser Q."""
    config, networks, targets, batch = pieces("gciql")
    found = offline.gciql_loss(config, networks, targets, batch)
    q = np.min(offline.twins(config, targets, batch.here, batch.goal, batch.action), axis=0)
    v, then = (np.asarray(offline.value(config, networks["value"], each, batch.goal)) for each in (batch.here, batch.then))
    expected = np.mean(np.where(q > v, 0.9, 0.1) * (q - v) ** 2)
    target = np.asarray(batch.reward) + np.where(batch.reward == 0, 0, 0.99) * then
    first, second = np.asarray(offline.twins(config, networks["twins"], batch.here, batch.goal, batch.action))
    expected += np.mean((first - target) ** 2 + (second - target) ** 2)
    action = jnp.tanh(offline.actor(config, networks["actor"], batch.here, batch.actor_goal))
    q = np.min(offline.twins(config, networks["twins"], batch.here, batch.actor_goal, action), axis=0)
    expected += -np.mean(q) / np.mean(abs(q)) + 0.003 * np.mean(np.sum((batch.action - action) ** 2, axis=-1) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_loss_of_hiql_is_that_of_the_formulas() -> None:
    """V's two networks have expectiles of their own targets; both actors imitate what brought V up, in its own measure."""
    config, networks, targets, batch = pieces("hiql")
    found = offline.hiql_loss(config, networks, targets, batch)
    now, then = (np.asarray(offline.twins(config, targets, each, batch.goal)) for each in (batch.here, batch.then))
    v = np.asarray(offline.twins(config, networks["twins"], batch.here, batch.goal))
    gamma = np.where(batch.reward == 0, 0, 0.99)
    weight = np.where(batch.reward + gamma * then.min(axis=0) >= now.mean(axis=0), 0.7, 0.3)
    expected = sum(np.mean(weight * (batch.reward + gamma * then[i] - v[i]) ** 2) for i in range(2))
    for name, place, goal, did, towards in (
        ("high", batch.subgoal, batch.actor_goal, batch.subgoal - batch.here, batch.actor_goal),
        ("low", batch.then, batch.ahead, batch.action, batch.ahead - batch.here),
    ):
        up = [np.mean(offline.twins(config, networks["twins"], each, goal), axis=0) for each in (place, batch.here)]
        error = np.sum((did - offline.actor(config, networks[name], batch.here, towards)) ** 2, axis=-1) / 2
        expected += np.mean(np.minimum(np.exp(2 * (up[0] - up[1])), 100) * error)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("agent", ["gciql", "hiql"])
def test_actors_teach_no_value(agent: str) -> None:
    """With other goals for the actor the gradients of the value's networks are the same; those of the actors are not."""
    config, networks, targets, batch = pieces(agent)
    loss = partial(offline.gciql_loss if agent == "gciql" else offline.hiql_loss, config)
    other = batch._replace(actor_goal=batch.here, ahead=batch.then, subgoal=batch.then)
    first, second = (jax.grad(loss)(networks, targets, each) for each in (batch, other))
    for name, gradient in first.items():
        same = [np.allclose(a, b, atol=1e-6) for a, b in zip(*map(jax.tree.leaves, (gradient, second[name])), strict=True)]
        assert all(same) == (name in ("twins", "value")), name


@pytest.mark.parametrize("agent", ["gciql", "hiql"])
def test_goals_are_reached_from_play_data_alone(agent: str) -> None:
    """In an empty square a policy of 600 updates gets to nine of ten goals, one that has learned nothing to few."""
    config = offline.Config(
        agent=agent, eval_every=600, batch_size=128, hidden=(64, 64), subgoal_steps=8, discount=0.95, bc_weight=0.1
    )  # fmt: skip
    begun = jax.jit(partial(offline.start, config, walks()))(jax.random.key(0))
    loop, _ = jax.jit(partial(offline.advance, config))(begun, jax.random.key(1))
    starts, goals = np.float32(np.random.default_rng(1).uniform(0.5, 3.5, (2, 200, 2)))

    def success(agent: offline.Agent) -> float:
        """The share of goals that are nearer than 0.5 after 30 steps."""
        here = jnp.asarray(starts)
        for _ in range(30):
            here = jnp.clip(here + 0.25 * offline.act(config, agent, here, goals), 0, 4)
        return float(np.mean(np.linalg.norm(here - goals, axis=-1) < 0.5))

    assert success(begun.agent) < 0.3
    assert success(loop.agent) > 0.9


def test_the_script_writes_its_results_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of each evaluation and task; what is trained is not trained again; both algorithms are in the picture."""
    write(tmp_path / "walks.npz", walks(episodes=4, steps=20))

    def evaluate(maze: str, policy: object, seeds: int, episodes: int, seed: int) -> np.ndarray:
        del maze, episodes, seed
        actions = policy(np.zeros((seeds, 5, 2), np.float32), np.ones((seeds, 5, 2), np.float32))
        assert actions.shape == (seeds, 5, 2)
        return np.tile(np.arange(5) / 4, (seeds, 1))

    monkeypatch.setattr(play_data, "evaluate", evaluate)
    args = ["--data", str(tmp_path / "walks.npz"), "--steps", "4", "--eval-every", "2", "--batch-size", "8", "--hidden", "8"]
    args += ["--seeds", "2", "--no-progress", "--out", str(tmp_path / "out")]
    offline.main(args)
    offline.main([*args, "--agent", "hiql"])
    assert "tasks 1 to 5 at the end           0.00 0.25 0.50 0.75 1.00" in capsys.readouterr().out
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [run["config"]["agent"] for run in runs] == ["gciql", "hiql"]
    assert np.asarray(runs[0]["tasks"]).shape == (2, 2, 5)
    with Image.open(tmp_path / "out" / "offline.png") as picture:
        assert picture.size[0] > 800
    monkeypatch.setattr(experiment, "run", lambda *_, **__: pytest.fail("it is trained again"))
    offline.main(args)


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        offline.main(["--data", str(tmp_path / "none.npz")])
    said = f"--data is {tmp_path / 'none.npz'}; give a file in OGBench's format, or none to play.\n"
    assert capsys.readouterr().err.partition(": ")[2] == said


def test_junctions_are_no_corridors() -> None:
    """In a cross, all but the pieces of its arms: the middle and the four ends."""
    walls = np.ones((7, 7), int)
    walls[3, 1:6] = walls[1:6, 3] = 0
    assert {tuple(cell) for cell in play_data.junctions(walls)} == {(3, 3), (3, 1), (3, 5), (1, 3), (5, 3)}


def test_play_and_evaluation_in_ogbenchs_maze(tmp_path: Path) -> None:
    """Played episodes move by 0.2 a step towards their goals; the oracle's own policy solves every task."""
    pytest.importorskip("ogbench")
    path = play_data.find(None, tmp_path, "medium", episodes=1, seed=0)
    transitions, mask = play_data.load(path)
    assert mask.shape == (1, 1000)
    assert mask.all()
    moved = np.linalg.norm(transitions.next_observation - transitions.observation, axis=-1)
    assert 0.1 < moved.mean() < 0.3
    maze = play_data.make_env("medium", 0, plays=False).unwrapped

    def oracle(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Towards the next cell on the way, and in the goal's cell to the goal itself."""
        pairs = list(zip(observations[0], goals[0], strict=True))
        cells = [maze.get_oracle_subgoal(here, goal)[0] for here, goal in pairs]
        there = [
            goal if maze.xy_to_ij(here) == maze.xy_to_ij(goal) else cell
            for cell, (here, goal) in zip(cells, pairs, strict=True)
        ]
        way = np.asarray(there) - observations[0]
        return (way / np.linalg.norm(way, axis=-1, keepdims=True))[None]

    np.testing.assert_array_equal(play_data.evaluate("medium", oracle, seeds=1, episodes=1, seed=0), np.ones((1, 5)))
    stand = play_data.evaluate("medium", lambda observations, _: 0 * observations, seeds=1, episodes=1, seed=0)
    np.testing.assert_array_equal(stand, np.zeros((1, 5)))


def test_it_is_short() -> None:
    """At most 300 lines a file, and 45 a function."""
    for source in SOURCES:
        text = source.read_text()
        assert len(text.splitlines()) <= 300
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 45
