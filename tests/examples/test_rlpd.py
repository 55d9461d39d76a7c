"""Old data and new: batches are half of each, old episodes get to their goals, and nothing is drawn from what is left out."""

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

import ddpg
import explore
import rlpd
from planar import Transition

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = rlpd.Config(
    layout="u", cycles=2, eval_every=1, prior_episodes=6, num_envs=3, rounds=2, updates=4, batch_size=16, capacity=600,
    hidden=(8,), eval_episodes=2, progress=False,
)  # fmt: skip


def marked(mark: float) -> rlpd.herjax.BufferState:
    """A buffer whose observations are all `mark`."""
    steps = explore.steps(TINY)
    example = Transition(*(jnp.zeros(2) for _ in Transition._fields))
    buffer = ddpg.make_buffer(TINY, example, explore.make_reward("u"), (TINY.num_envs, steps))
    transitions = Transition(*(jnp.full((steps, TINY.num_envs, 2), mark) for _ in Transition._fields))
    return ddpg.store(buffer, transitions, jnp.full((TINY.num_envs, 2), mark), jax.random.key(0))


def test_every_batch_is_half_of_each() -> None:
    """Of each update's 16 transitions 8 are from either buffer, goals and rewards with them."""
    sample = rlpd.mix(TINY, (marked(1.0), marked(2.0)), jax.random.key(0))
    marks = np.asarray(sample.transition.observation[:, 0]).reshape(TINY.updates, TINY.batch_size)
    np.testing.assert_array_equal(np.sort(marks, axis=1), np.tile([1.0] * 8 + [2.0] * 8, (TINY.updates, 1)))
    np.testing.assert_array_equal(sample.goal, sample.transition.observation)
    alone = rlpd.mix(TINY, (marked(2.0),), jax.random.key(0))
    np.testing.assert_array_equal(alone.transition.observation, np.full((TINY.updates * TINY.batch_size, 2), 2.0))


def test_the_next_cell_leads_there() -> None:
    """From every cell to every other, one goes from neighbour to neighbour and arrives."""
    free, following = explore.make_env("large")[0].free, rlpd.next_cells("large")
    here, there = (each.ravel() for each in np.meshgrid(np.arange(len(free)), np.arange(len(free))))
    for _ in range(len(free)):
        then = np.where(here == there, here, following[here, there])
        assert np.isin(np.abs(free[then] - free[here]).sum(axis=-1), [0, 1]).all()
        here = then
    np.testing.assert_array_equal(here, there)


def test_old_episodes_get_to_their_goals() -> None:
    """They begin in many cells, and nearly all are at their goals at the end."""
    config = dataclasses.replace(TINY, layout="medium", prior_episodes=50)
    transitions, goal = jax.jit(partial(rlpd.play_prior, config))(jax.random.key(0))
    assert len(np.unique(np.asarray(transitions.observation[0]).astype(int), axis=0)) > 10
    assert (np.linalg.norm(transitions.achieved_goal[-1] - goal, axis=-1) < 0.5).mean() > 0.9
    assert np.abs(transitions.action).max() <= 1


@pytest.mark.parametrize("data", ["both", "online", "prior"])
def test_what_is_left_out_stays_as_it_is(data: str) -> None:
    """Old episodes alone: none is played; whatever is drawn from, all losses are finite."""
    config = dataclasses.replace(TINY, data=data)
    begun = jax.jit(partial(rlpd.start, config))(jax.random.key(0))
    loop, loss = jax.jit(partial(rlpd.cycle, config))(begun, jax.random.key(1))
    assert np.isfinite(loss)
    assert int(rlpd.herjax.size(loop.buffer)) == (0 if data == "prior" else 3 * explore.steps(config))
    assert int(rlpd.herjax.size(loop.prior)) == 6 * explore.steps(config)


def test_no_key_is_used_twice() -> None:
    """From the first parameter to the evaluation the key-reuse checker finds nothing."""

    def run(key: jax.Array) -> jax.Array:
        key_start, key_run = jax.random.split(key)
        return rlpd.advance(TINY, rlpd.start(TINY, key_start), key_run)[1]

    with jax.debug_key_reuse(True):
        jax.block_until_ready(jax.jit(run)(jax.random.key(0)))


def test_the_script_writes_its_results_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is trained is not trained again, but drawn, with a curve for each kind of data."""
    args = ["--layout", "u", "--cycles", "2", "--eval-every", "1", "--num-envs", "3", "--updates", "2", "--batch-size", "8"]
    args += ["--hidden", "8", "--seeds", "2", "--eval-episodes", "4", "--capacity", "600", "--no-progress", "--rounds", "1"]
    args += ["--prior-episodes", "3", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        rlpd.main([*args, "--plot"])
    assert "holds no run with these flags; train first, without --plot." in capsys.readouterr().err
    rlpd.main(args)
    rlpd.main([*args, "--data", "prior"])
    assert np.asarray(json.loads((tmp_path / "results.json").read_text())["success_rate"]).shape == (2, 2)
    rlpd.main([*args, "--plot"])
    assert f"written {tmp_path / 'rlpd.png'}: both, prior" in capsys.readouterr().out
    with Image.open(tmp_path / "rlpd.png") as picture:
        assert picture.size[0] > 500
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run", lambda *_, **__: pytest.fail("it is trained again"))
        rlpd.main(args)


def test_an_odd_batch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with the remedy."""
    with pytest.raises(SystemExit):
        rlpd.main(["--batch-size", "9"])
    expected = "--batch-size is 9; give an even number, half of it for each buffer.\n"
    assert capsys.readouterr().err.partition(": ")[2] == expected
