"""The script of the paper's Figure 1: what it learns, and that an interrupted run goes on as if nothing had happened."""

import json
from functools import partial
from pathlib import Path

import experiment

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import figure1
from figure1 import Config

TINY = ["--bits", "6", "--num-goals", "4", "--seeds", "2", "--cycles", "60", "--eval-every", "10", "--eval-episodes", "50"]
TINY += ["--hidden", "32", "--capacity", "4000", "--solved", "2", "--checkpoint-seconds", "0", "--no-progress"]

pytestmark = pytest.mark.usefixtures("standard_promotion")


def figures_of(folder: Path) -> dict[str, object]:
    """The tiny point's figures, without how long it took."""
    point = json.loads((folder / "runs.json").read_text())[-1]
    return {name: figure for name, figure in point.items() if name != "seconds"}


class Interrupted(Exception):  # noqa: N818 - what happens to a run.
    """The run was killed."""


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while it trains, and run again, the script writes the same figures, bit for bit, and keeps no checkpoint."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    figure1.main([*TINY, "--out", str(whole)])
    over_seeds, calls = experiment.over_seeds, []

    def counted(*args: object, most: int) -> experiment.Training:
        training = over_seeds(*args)

        def advance(loop: figure1.Loop, number: int) -> tuple[figure1.Loop, object]:
            if len(calls) == most:
                raise Interrupted
            calls.append(number)
            return training.advance(loop, number)

        return training._replace(advance=advance)

    monkeypatch.setattr(experiment, "over_seeds", partial(counted, most=3))
    with pytest.raises(Interrupted):
        figure1.main([*TINY, "--out", str(cut)])
    (unfinished,) = (cut / "unfinished").iterdir()
    monkeypatch.setattr(experiment, "over_seeds", partial(counted, most=100))
    figure1.main([*TINY, "--discount", "0.5", "--cycles", "10", "--out", str(cut)])
    assert calls.pop() == 0, "another setting begins anew"
    assert list((cut / "unfinished").iterdir()) == [unfinished], "and leaves the first one's state as it is"
    figure1.main([*TINY, "--out", str(cut)])
    assert calls == [0, 1, 2, 3, 4, 5], "the first half was not trained again"
    assert figures_of(cut) == figures_of(whole)
    assert len(figures_of(whole)["eval_steps"]) == 6
    assert np.mean(np.asarray(figures_of(whole)["success_rate"])[:, -1]) > 0.9, "it learns"
    assert not unfinished.exists()
    assert (cut / "figure1.png").stat().st_size > 10_000


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained with another discount stays beside the new; what was trained with the same is not trained again."""
    trained = []

    def run_point(config: Config) -> dict[str, object]:
        trained.append((config.num_bits, config.discount))
        return {"success": [config.discount, 1.0], "updates": 1, "seconds": 1.0}

    monkeypatch.setattr(figure1, "run_point", run_point)
    for more in (["--discount", "0.5"], [], ["--bits", "5", "6"], ["--discount", "0.5"], ["--progress"]):
        figure1.main([*TINY, *more, "--out", str(tmp_path)])
    assert trained == [(6, 0.5), (6, 0.98), (5, 0.98)]
    records = json.loads((tmp_path / "runs.json").read_text())
    assert [(each["config"]["bits"], each["success"][0]) for each in records] == [([6], 0.5), ([6], 0.98), ([5], 0.98)]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--bits"], "--bits is (); give at least one number."),
        (["--num-goals", "-1"], "num_goals is -1"),
        (["--capacity", "10"], "give a capacity of at least 80"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_trained(
    options: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong is named in one line."""
    with pytest.raises(SystemExit):
        figure1.main(options)
    refusal = capsys.readouterr().err
    assert remedy in refusal
    assert refusal.count("\n") == 1


def test_episodes_go_on_past_their_goal() -> None:
    """Every episode has as many steps as bits, each flips one bit of the last, and a hit at any step is a success."""
    config = Config(bits=(3,), hidden=(8,))
    agent = figure1.start(config, jax.random.key(0)).agent
    episodes = figure1.play(config, agent, jax.random.key(1), episodes=200, epsilon=1.0)
    observation, action, following = (np.asarray(leaf) for leaf in episodes.transitions)
    assert following.shape == (3, 200, 3)
    np.testing.assert_array_equal(observation[1:], following[:-1])
    np.testing.assert_array_equal(observation ^ following, np.eye(3, dtype=np.uint8)[action])
    hits = np.all(following == np.asarray(episodes.goal), axis=-1)
    np.testing.assert_array_equal(episodes.success, hits.any(axis=0))
    assert np.any(hits[0]), "some hit their goal before the end"
    assert not np.all(episodes.success)


def test_targets_are_those_of_q_learning() -> None:
    """Targets are r + gamma max Q'(s', g), without what follows a goal that was reached, and clipped to [-1/(1-gamma), 0]."""
    config = Config(bits=(3,), hidden=(8,), discount=0.5)
    loop = figure1.start(config, jax.random.key(0))
    loop = loop._replace(target_params=jax.tree.map(lambda leaf: 3 * leaf, loop.agent.params))
    episodes = figure1.play(config, loop.agent, jax.random.key(1), episodes=config.episodes, epsilon=1.0)
    buffer = loop.buffer
    for step in range(3):
        buffer = figure1.herjax.add(buffer, jax.tree.map(lambda leaf, t=step: leaf[t], episodes.transitions))
    buffer = figure1.herjax.end_episode(buffer, episodes.goal, jax.random.key(2))
    batch = figure1.herjax.sample(buffer, jax.random.key(3), 256)
    values = figure1.QNetwork((8,), shared=False).apply(loop.target_params, batch.transition.next_observation, batch.goal)
    following = np.where(batch.terminated, 0, np.max(values, axis=-1))
    expected = np.clip(np.asarray(batch.reward) + 0.5 * following, -2, 0)
    np.testing.assert_allclose(figure1.targets(config, loop, batch), expected, rtol=1e-5, atol=1e-6)
    assert np.any(batch.terminated)
    assert np.any((expected > -2) & (expected < 0))


def test_a_network_with_shared_weights_knows_no_order(key: jax.Array) -> None:
    """Bits in another order have their values in that order; what another bit is matters, too."""
    bits, goal = np.random.default_rng(0).integers(0, 2, (2, 20, 7), np.uint8)
    network = figure1.QNetwork((8, 8), shared=True)
    params = network.init(key, bits, goal)
    values, order = np.asarray(network.apply(params, bits, goal)), np.array([3, 0, 6, 1, 5, 2, 4])
    assert values.shape == (20, 7)
    np.testing.assert_allclose(network.apply(params, bits[:, order], goal[:, order]), values[:, order], atol=1e-5)
    other = bits.copy()
    other[:, 0] ^= 1
    assert (np.abs(np.asarray(network.apply(params, other, goal)) - values)[:, 1:].max(axis=1) > 1e-4).all()
    unordered = figure1.QNetwork((8, 8), shared=False)
    params = unordered.init(key, bits, goal)
    assert (
        np.abs(unordered.apply(params, bits[:, order], goal[:, order]) - unordered.apply(params, bits, goal)[:, order]).max()
        > 0.1
    )


def test_a_run_is_solved_when_every_seed_is_twice() -> None:
    """Two evaluations in a row of every seed must be good enough; the best of three is not."""
    config = Config(solved=0.9)
    assert not figure1.is_solved(config, {})
    assert not figure1.is_solved(config, {"success_rate": [[1.0], [1.0]]})
    assert not figure1.is_solved(config, {"success_rate": [[1.0, 0.8, 1.0], [1.0, 1.0, 1.0]]})
    assert figure1.is_solved(config, {"success_rate": [[0.0, 0.9, 1.0], [0.0, 1.0, 0.95]]})


@pytest.mark.slow
def test_only_hindsight_solves_15_bits(tmp_path: Path) -> None:
    """In the paper's setting three seeds solve 15 bits with HER, and none does without it in ten times as many updates."""
    figure1.main(["--bits", "15", "--cycles", "2400", "--out", str(tmp_path), "--no-progress"])
    with_her, without = json.loads((tmp_path / "runs.json").read_text())
    assert min(with_her["success"]) >= 0.98
    assert with_her["updates"] <= 600 * 40
    assert max(without["success"]) <= 0.05


def test_learning_rate_falls_in_the_second_half() -> None:
    """Adam's first step has the whole learning rate, its last one a tenth of it."""
    config = Config(cycles=10, updates=4)
    gradient = jnp.ones(())
    state = figure1.optimizer(config).init(gradient)
    sizes = []
    for _ in range(40):
        step, state = figure1.optimizer(config).update(gradient, state)
        sizes.append(-float(step))
    np.testing.assert_allclose([sizes[0], sizes[19], sizes[-1]], [1e-3, 1e-3, 1.45e-4], rtol=0.03)
