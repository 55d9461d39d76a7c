"""PureJaxRL's DQN with HER: it needs hindsight to learn, is true to the environment, and copies no buffer."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import herjax

with jax.numpy_dtype_promotion("standard"):  # The environment, too, promotes as it is made.
    import gymnax

    import purejaxrl_dqn

    ENV, PARAMS = gymnax.make("FourRooms-misc")

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning"),  # gymnax 0.0.x asks for int64.
]


def train(num_goals: int) -> dict[str, Any]:
    """Two seeds of 8,000 steps; the metrics are summed over the last 2,000."""
    config = purejaxrl_dqn.CONFIG | {"NUM_GOALS": num_goals, "TOTAL_TIMESTEPS": 8000}
    outs = jax.jit(jax.vmap(purejaxrl_dqn.make_train(config)))(jax.random.split(jax.random.PRNGKey(0), 2))
    return outs | {"metrics": {name: np.sum(counts[:, -500:], axis=1) for name, counts in outs["metrics"].items()}}


@pytest.fixture(scope="module")
def outs() -> dict[str, Any]:
    """A short training with HER."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return train(num_goals=4)


def test_is_short() -> None:
    """The whole of it has no more than 150 lines."""
    assert len(Path(purejaxrl_dqn.__file__).read_text().splitlines()) <= 150


def test_needs_hindsight_to_learn(outs: dict[str, Any]) -> None:
    """After 8,000 steps each seed reaches more than half of its goals with HER, and less than a third without."""
    without = train(num_goals=0)
    assert np.all(outs["metrics"]["reached"] > outs["metrics"]["ended"] / 2)
    assert np.all(without["metrics"]["reached"] < without["metrics"]["ended"] / 3)


def test_learns_from_what_the_environment_did(outs: dict[str, Any]) -> None:
    """The next observation that is learned from is the one before the reset: where the environment itself goes by that action.

    It also agrees on termination, under the goal pursued and under others. No step of an episode starts at the goal pursued.
    """
    buffer = jax.tree.map(lambda leaf: leaf[0], outs["runner_state"][1])
    batch = herjax.sample(buffer, jax.random.key(0), 5000)

    def ask(position: jax.Array, goal: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, state = ENV.reset(jax.random.key(0), PARAMS)
        params = PARAMS.replace(fail_prob=0.0, max_steps_in_episode=30)
        _, state, _, ended, _ = ENV.step_env(jax.random.key(0), state.replace(pos=position, goal=goal), action, params)
        return state.pos, ended

    led_to, ended = jax.vmap(ask)(batch.transition.obs, batch.goal, batch.transition.action)
    np.testing.assert_array_equal(batch.transition.next_obs, led_to)
    np.testing.assert_array_equal(batch.terminated, ended)
    np.testing.assert_array_equal(batch.reward, ended.astype(np.float32) - 1)
    starts_at_goal = np.all(batch.transition.obs == batch.goal, axis=1)
    assert not np.any(starts_at_goal & ~batch.is_hindsight)
    for is_hindsight in (False, True):
        reached = batch.terminated[batch.is_hindsight == is_hindsight]
        assert 0 < np.sum(reached) < len(reached), "both are met, goals reached and goals missed"


def lower(config: dict[str, Any]) -> Any:
    """Two seeds vmapped, lowered."""
    make = purejaxrl_dqn.make_train(purejaxrl_dqn.CONFIG | config)
    return jax.jit(jax.vmap(make)).lower(jax.random.split(jax.random.PRNGKey(0), 2))


def test_copies_no_buffer() -> None:
    """The loop takes less memory than a hundredth of its buffers."""
    memory = lower({"BUFFER_SIZE": 1_000_000}).compile().memory_analysis()
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 100


def test_learns_only_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `cond` around the learning stays one. Were its condition each seed's own, there would be a select instead."""
    conditionals = lower({}).as_text().count("stablehlo.case")
    monkeypatch.setattr(herjax, "in_all_runs", lambda condition: condition)
    assert conditionals == lower({}).as_text().count("stablehlo.case") + 1
