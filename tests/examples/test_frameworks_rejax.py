"""The script for rejax's SAC: it changes little, learns from what happened, and needs hindsight to learn."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

rejax = pytest.importorskip("rejax")

with jax.numpy_dtype_promotion("standard"):
    import rejax_sac

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Windy(rejax_sac.Reach):
    """Its steps are random: two with the same key are the same."""

    def step_env(self, key: jax.Array, state: rejax_sac.Point, action: jax.Array, params: Any) -> tuple[Any, ...]:
        """Moves with wind."""
        return super().step_env(key, state, action + jax.random.normal(key, (3,)), params)


def test_keeps_the_final_observation(key: jax.Array) -> None:
    """The state has what the step led to. Where that ends the episode, what is seen is the start of a new one."""
    env = Windy()
    params = env.default_params
    observation, state = env.reset(key, params)
    np.testing.assert_array_equal(state[1], observation)
    key_step, key_reset = jax.random.split(key)
    for time in (0, rejax_sac.LIMIT - 1):
        before = state[0]._replace(time=jnp.int32(time))
        action = jnp.array([1.0, -1.0, 0.0])
        led_to, *_ = env.step_env(key_step, before, action, params)
        seen, (inner, final), _, done, _ = env.step(key, (before, observation), action, params)
        np.testing.assert_array_equal(final, led_to)
        np.testing.assert_array_equal(seen, env.reset_env(key_reset, params)[0] if done else led_to)
        np.testing.assert_array_equal(jnp.concatenate([inner.position, inner.goal]), seen)
        assert bool(done) == (time > 0)
        assert int(inner.time) == (0 if done else time + 1)


@pytest.mark.parametrize("num_goals", [0, 4])
def test_learns_from_what_the_environment_did(num_goals: int, key: jax.Array) -> None:
    """A batch says what the environment says of that position, action and goal. Hindsight goals are reached more often."""
    settings = {"total_timesteps": 1200, "eval_freq": 1200, "fill_buffer": 2000, "buffer_size": 1200, "num_envs": 3}
    sac = rejax_sac.HindsightSAC.create(env=rejax_sac.Reach(), num_goals=num_goals, skip_initial_evaluation=True, **settings)
    trained, _ = sac.train(key)
    batch = jax.jit(lambda buffer, key: buffer.sample(2000, key))(trained.replay_buffer, key)
    (position, goal), (next_position, next_goal) = (jnp.split(obs, 2, axis=1) for obs in (batch.obs, batch.next_obs))
    np.testing.assert_allclose(next_position, jnp.clip(position + 0.1 * batch.action, -1, 1), atol=1e-6)
    np.testing.assert_array_equal(next_goal, goal)
    near = np.linalg.norm(next_position - goal, axis=1) < 0.1
    np.testing.assert_array_equal(batch.done, near)
    np.testing.assert_array_equal(batch.reward, near - 1.0)
    assert np.mean(near) < 0.02 if num_goals == 0 else np.mean(near) > 0.05


def test_needs_hindsight_to_learn(monkeypatch: pytest.MonkeyPatch, key: jax.Array) -> None:
    """After 5,000 steps it reaches most goals with HER, and hardly any without."""
    monkeypatch.setattr(rejax_sac, "STEPS", 5000)
    with_her, without = (float(jax.jit(rejax_sac.train, static_argnums=0)(num_goals, key)) for num_goals in (4, 0))
    assert with_her > 0.5
    assert without < 0.1


def test_changes_little_of_rejax() -> None:
    """Of SAC's methods two are overridden: the one that makes the buffer, and the one that collects. The script is short."""
    methods = {name for name in vars(rejax_sac.HindsightSAC) if name in dir(rejax.SAC) and not name.startswith("__")}
    assert methods & {name for name in dir(rejax.SAC) if callable(getattr(rejax.SAC, name))} == {
        "initialize_replay_buffer",
        "collect_transitions",
        "replace",  # flax gives each dataclass one.
    }
    assert len(Path(rejax_sac.__file__).read_text().splitlines()) <= 150
