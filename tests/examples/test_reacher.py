"""brax's Reacher as a planar task; without brax it is refused."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crl
import planar

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # What brax imports calls what is deprecated.
]


def test_it_is_refused_without_brax(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and what to install are named."""
    monkeypatch.setitem(sys.modules, "brax", None)
    monkeypatch.delitem(sys.modules, "reacher", raising=False)
    planar.make_env.cache_clear()
    with pytest.raises(SystemExit):
        crl.main(["--task", "reacher"])
    assert capsys.readouterr().err.partition(": ")[2] == '--task is reacher; it needs brax: pip install ".[brax]".\n'


def test_its_states_are_those_of_brax(key: jax.Array) -> None:
    """Played beside brax's own: the same arm, its tip and its goal in units of 0.2 m, and no goal in what is observed."""
    envs, base = pytest.importorskip("brax.envs"), pytest.importorskip("brax.base")
    with pytest.warns(UserWarning, match="Brax System"):
        theirs = envs.get_environment("reacher", backend="spring")
    env, params = planar.make_env("reacher")
    observed, state = jax.jit(env.reset_env)(key, params)
    other = jax.jit(theirs.reset)(key)
    step, other_step, at_first = jax.jit(env.step_env), jax.jit(theirs.step), observed["achieved_goal"]
    end_of_arm = base.Transform.create(pos=jnp.array([0.11, 0, 0]))
    for number in range(60):
        tip = other.pipeline_state.x.take(1).do(end_of_arm).pos[:2]
        np.testing.assert_allclose(observed["achieved_goal"], tip / 0.2, atol=1e-5)
        np.testing.assert_allclose(observed["desired_goal"], other.obs[4:6] / 0.2, atol=1e-5)
        np.testing.assert_allclose(observed["observation"], [*other.obs[:4], *other.obs[6:8], *(tip / 0.2)], atol=1e-5)
        action = jnp.array([1.0, -0.5]) * (-1) ** (number // 20)
        observed, state, reward, terminated, _ = step(key, state, 3 * action, params)
        other = other_step(other, jnp.clip(3 * action, -1, 1))
        assert reward == -float(jnp.linalg.norm(other.obs[8:10]) > 0.05)
        assert not terminated
    assert jnp.linalg.norm(observed["achieved_goal"] - at_first) > 0.5, "it moved"


def test_a_contrastive_agent_trains_on_it() -> None:
    """Whole episodes are played, stored and learned from; the figures are finite."""
    pytest.importorskip("brax")
    config = crl.Config(
        task="reacher", cycles=1, eval_every=1, num_envs=2, updates=1, batch_size=4, capacity=200, hidden=(8,), progress=False
    )
    metrics = jax.jit(partial(crl.train, config))(jax.random.key(0))
    assert np.isfinite(metrics["critic_loss"]).all()
