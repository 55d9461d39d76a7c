"""The example of Fetch: simulators in processes of their own. It forks them, so it is run as a program."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("gymnasium_robotics")


import fetch  # noqa: E402 - after what may be missing.
import planar  # noqa: E402

SCRIPT = str(Path(__file__).parents[2] / "examples" / "fetch.py")
TINY = ["--num-envs", "2", "--eval-every", "1", "--eval-episodes", "3", "--updates", "2", "--batch-size", "8", "--hidden", "8"]
TINY += ["--capacity", "1000", "--checkpoint-seconds", "0", "--no-progress"]
TINY += ["--num-steps", "3", "--strategy", "future=0.8,random=0.2", "--hindsight-ratio", "0.9"]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs the script to its end, where there are two devices: it takes one."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.run(
        [sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=600, check=False, env=environment
    )


def can_render() -> bool:
    """Whether MuJoCo finds a renderer where there is no display."""
    environment = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    program = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment).returncode == 0


def curve(folder: Path) -> dict[str, list[float]]:
    """The figures of a run, without how long it took."""
    results = json.loads((folder / "results.json").read_text())
    return {name: np.ravel(results[name]).tolist() for name in ("eval_steps", "success_rate", "critic_loss", "actor_loss")}


@pytest.fixture
def simulators_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulators in this process, which show what others show: no process of many threads is forked."""

    def make(config: fetch.Config) -> gymnasium.vector.SyncVectorEnv:
        return gymnasium.vector.SyncVectorEnv([partial(gymnasium.make, fetch.TASKS[config.task])] * config.num_envs)

    monkeypatch.setattr(fetch, "make_simulators", make)


@pytest.mark.usefixtures("standard_promotion", "simulators_here")
def test_a_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One cycle and then two more, from the checkpoint, are the three of the program, bit for bit; logs are written."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    program = run(*TINY, "--cycles", "3", "--out", str(whole))
    assert program.returncode == 0, program.stderr
    flags = [*TINY, "--checkpoint", str(tmp_path / "checkpoint"), "--log-dir", str(tmp_path / "logs"), "--out", str(cut)]
    fetch.main([*flags, "--cycles", "1"])
    assert curve(cut)["eval_steps"] == [100]
    fetch.main([*flags, "--cycles", "3"])
    assert curve(cut) == curve(whole)
    assert curve(cut)["eval_steps"] == [100, 200, 300]
    assert (cut / "success_rate.png").stat().st_size > 10_000
    assert len(list((tmp_path / "logs").glob("seed_0/events*"))) == 2
    with pytest.raises(SystemExit):
        fetch.main([*flags, "--cycles", "3", "--noise", "0.1"])
    assert "saved with noise 0.2, and noise 0.1 is asked for" in capsys.readouterr().err
    (cut / "results.json").unlink()
    fetch.main([*flags, "--cycles", "3"])
    assert curve(cut) == curve(whole), "where nothing is left to train, the results are written all the same"


@pytest.mark.usefixtures("standard_promotion", "simulators_here")
def test_what_was_learned_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a program, `--play` renders episodes of what was saved; where nothing was, it is refused."""
    flags = [*TINY, "--cycles", "1", "--out", str(tmp_path), "--checkpoint", str(tmp_path / "checkpoint")]
    with pytest.raises(SystemExit):
        fetch.main([*flags, "--play"])
    assert "checkpoint; give a folder that something was saved to" in capsys.readouterr().err
    if not can_render():
        pytest.skip("nothing here can render")
    fetch.main(flags)
    played = run(*flags, "--play")
    assert played.returncode == 0, played.stderr
    assert (tmp_path / "policy.gif").stat().st_size > 100_000


@pytest.mark.parametrize(("task", "name"), fetch.TASKS.items())
def test_rewards_and_shapes_are_the_simulators(task: str, name: str) -> None:
    """Under drawn goals, near and far, the reward is that of the environment's `compute_reward`; episodes have 50 steps."""
    env = gymnasium.make(name)
    assert env.spec.max_episode_steps == fetch.STEPS, task
    rng = np.random.default_rng(0)
    achieved = rng.uniform(0, 1, (200, 3))
    goals = achieved + rng.normal(0, 0.03, (200, 3))
    expected = env.unwrapped.compute_reward(achieved, goals, {})
    rewards = [
        fetch.reward(planar.Transition(jnp.zeros(0), jnp.zeros(0), jnp.zeros(0), jnp.float32(a)), jnp.float32(g))
        for a, g in zip(achieved, goals, strict=True)
    ]
    np.testing.assert_array_equal(rewards, expected)
    assert 20 < -np.sum(expected) < 180, "both rewards occur"
    env.close()


def test_episodes_hold_no_reset() -> None:
    """Simulators that reset themselves in the step after an episode's end, Gymnasium's default, show what others show."""
    config = fetch.Config(num_envs=2)
    make = partial(gymnasium.make, fetch.TASKS[config.task])
    never = gymnasium.vector.SyncVectorEnv([make] * 2, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
    simulators = fetch.make_simulators(config)
    assert simulators.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP

    def policy(_: None, seen: fetch.Seen, key: jax.Array, step: np.int32) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, step), (len(seen["observation"]), 4), minval=-1)

    for number in range(2):  # The second episodes are played by simulators whose first ones have ended.
        drawn = fetch.draw(config, 0, number)
        episodes, expected = (fetch.play(each, policy, None, *drawn) for each in (simulators, never))
        jax.tree.map(np.testing.assert_array_equal, episodes, expected)
    simulators.close()
    never.close()


def test_draws_differ_and_repeat() -> None:
    """Each kind and number of episodes has seeds and a key of its own, the same whenever it is asked for."""
    config = fetch.Config(num_envs=3)
    drawn = [fetch.draw(config, kind, number)[0] for kind in range(3) for number in range(20)]
    assert len(np.unique(drawn)) == 3 * 3 * 20
    again, key = fetch.draw(config, 1, 7)
    assert again == drawn[27]
    assert key == fetch.draw(config, 1, 7)[1]
    assert fetch.draw(fetch.Config(seed=1, num_envs=3), 1, 7)[0] != again


@pytest.mark.slow
def test_it_reaches_within_15_000_steps(tmp_path: Path) -> None:
    """The default run: 99 of 100 goals of FetchReach at the end."""
    assert run("--no-progress", "--out", str(tmp_path)).returncode == 0
    results = curve(tmp_path)
    assert results["eval_steps"][-1] == 15_000
    assert results["success_rate"][-1] >= 0.99


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--play"], "--checkpoint is None; give the folder that training saved to."),
        (["--seed", "-1"], "--seed is -1; give a number from 0 to 2^32 - 1."),
        (["--cycles", "7"], "--cycles is 7; give a multiple of --eval-every, 5."),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        fetch.main(flags)
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"
