"""The bit-flipping script: it learns, it needs hindsight to, and it says what it did."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import experiment

import jax
import numpy as np
import pytest
from scipy import stats

import bitflip
import flags
import herjax

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = bitflip.Config(
    num_bits=8, steps=5000, seeds=2, eval_every=1000, capacity=20_000, max_episode_length=20, target_period=250, progress=False
)
STRATEGY_REMEDY = "give one of future, final, episode, random, or weights such as future=0.8,random=0.2."
RATIO_REMEDY = "give a number from 0 to 1, with --relabel sample and hindsight goals."


def last_success(config: bitflip.Config) -> np.ndarray:
    """The success rate of each seed at the end, [seeds]."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    return np.asarray(jax.jit(jax.vmap(partial(bitflip.train, config)))(keys)["success_rate"][:, -1])


def run(config: bitflip.Config) -> dict[str, Any]:
    """The results of all seeds, as the program gets them."""
    training = experiment.over_seeds(config, partial(bitflip.start, config), partial(bitflip.advance, config))
    return experiment.run(config, training)[1]


def test_learns_eight_bits() -> None:
    """With HER and prioritised replay, two seeds solve 8 bits."""
    assert np.all(last_success(SMALL) >= 0.9)


def test_does_not_learn_without_relabelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the learning test shows is relabelling's work: with rewards that ignore the hindsight goal it fails."""
    monkeypatch.setattr(bitflip, "reward", lambda _, goal: goal[0] * 0 - 1)
    monkeypatch.setattr(bitflip, "terminated", lambda _, goal: goal[0] < 0)
    assert np.all(last_success(SMALL) <= 0.5)


@pytest.mark.slow
def test_default_run_solves_ten_bits() -> None:
    """The default run ends with every seed at success 0.97 or more over its last ten evaluations."""
    results = run(dataclasses.replace(bitflip.Config(), progress=False))
    assert np.all(np.asarray(results["success_rate"])[:, -10:].mean(axis=1) >= 0.97)


@pytest.mark.slow
def test_default_curve_is_as_high_as_ever() -> None:
    """The default example's success rate, averaged over all its steps and 20 seeds, lies where 200 other seeds say it does.

    Their mean is 0.728, and the standard deviation of one seed 0.029, so that a mean of 20 leaves the band of 0.728 +- 0.033 by
    chance once in a million times. With half the hindsight goals, HER that is a little worse, it does leave it.
    """
    mean, deviation, number = 0.7283, 0.0286, 20
    half_width = stats.norm.isf(0.5e-6) * deviation * np.sqrt(1 / number + 1 / 200)
    keys = jax.random.split(jax.random.key(0), number)
    for num_goals, inside in ((4, True), (2, False)):
        config = dataclasses.replace(bitflip.Config(), eval_every=500, num_goals=num_goals)
        success_rate = jax.jit(jax.vmap(partial(bitflip.train, config)))(keys)["success_rate"]
        found = float(np.mean(success_rate))
        print(f"k = {num_goals}: {found:.4f}, band {mean - half_width:.4f} to {mean + half_width:.4f}")
        assert (abs(found - mean) < half_width) == inside
        assert np.mean(np.asarray(success_rate)[:, -5:]) > 0.99


@pytest.mark.slow
def test_fifteen_bits_need_hindsight() -> None:
    """In 30,000 steps 15 bits are learned with HER, and not at all without it."""
    config = dataclasses.replace(bitflip.Config(), num_bits=15, steps=30_000, eval_every=1000, seeds=2, progress=False)
    assert np.all(last_success(config) >= 0.9)
    assert np.all(last_success(dataclasses.replace(config, num_goals=0)) <= 0.1)


def test_returns_of_three_steps_from_a_mixture_learn_at_a_high_ratio_alone() -> None:
    """Three-step returns and goals of two sources solve 8 bits with 9 in 10 goals from hindsight, and not with none."""
    config = dataclasses.replace(SMALL, num_steps=3, strategy="future=0.8,random=0.2", relabel="sample", hindsight_ratio=0.9)
    assert np.all(last_success(config) >= 0.9)
    assert np.all(last_success(dataclasses.replace(config, hindsight_ratio=0.0)) <= 0.5)


def test_weights_make_a_mixture() -> None:
    """A name alone is that strategy; weights need not add up to 1."""
    assert flags.parse_strategy("final") == herjax.mixture({"final": 1})
    assert flags.parse_strategy("future=4,random=1.0") == herjax.mixture({"future": 0.8, "random": 0.2})


def test_every_strategy_runs() -> None:
    """All four strategies together train, to finite losses."""
    strategy = ",".join(f"{name}=1" for name in flags.STRATEGIES)
    config = dataclasses.replace(
        SMALL, num_bits=3, steps=20, seeds=1, eval_every=20, capacity=50, hidden=(8,), strategy=strategy
    )
    assert np.all(np.isfinite(run(config)["loss"]))


def test_main_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints a table and writes results.json, a plot and TensorBoard scalars; the same key, the same figures."""
    options = ["--num-bits", "4", "--steps", "60", "--seeds", "2", "--eval-every", "20", "--capacity", "200", "--hidden", "8"]
    figures = []
    for out in (tmp_path / "first", tmp_path / "second"):
        bitflip.main([*options, "--no-progress", "--out", str(out), "--log-dir", str(out / "logs")])
        results = json.loads((out / "results.json").read_text())
        figures.append((results["success_rate"], results["loss"]))
        assert np.shape(results["success_rate"]) == np.shape(results["loss"]) == (2, 3)
        assert results["eval_steps"] == [20, 40, 60]
        assert results["config"]["num_bits"] == 4
        assert results["steps_per_second"] == pytest.approx(120 / results["seconds"])
        assert {"compile_seconds", "device"} <= results.keys()
        assert (out / "success_rate.png").stat().st_size > 1000
        assert len(list((out / "logs").glob("seed_*/events*"))) == 2
    assert figures[0] == figures[1]
    assert "steps per second" in capsys.readouterr().out


class Interrupted(Exception):  # noqa: N818 - what happens to a run.
    """The run was killed."""


def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off after its second checkpoint and started again, a run ends as one without any, bit for bit; once done it is kept.

    With other settings of training it is refused, and both values are named.
    """
    options = ["--num-bits", "4", "--steps", "80", "--seeds", "2", "--eval-every", "10", "--capacity", "200", "--hidden", "8"]
    options += ["--no-progress", "--checkpoint-seconds", "0"]
    kept = ["--checkpoint", str(tmp_path / "state")]
    save, saves = experiment.checkpoints.save, []

    def save_or_die(*args: object, **options: object) -> None:
        if len(saves) == 2:
            raise Interrupted
        saves.append(save(*args, **options))

    with monkeypatch.context() as patch:
        patch.setattr(experiment.checkpoints, "save", save_or_die)
        with pytest.raises(Interrupted):
            bitflip.main([*options, *kept, "--out", str(tmp_path / "cut")])
    for out, more in (("whole", []), ("cut", kept), ("again", kept)):
        resumed = []
        monkeypatch.setattr(experiment.checkpoints, "save", lambda *_, resumed=resumed, **o: resumed.append(save(*_, **o)))
        bitflip.main([*options, *more, "--out", str(tmp_path / out)])
        assert len(resumed) == {"whole": 0, "cut": 6, "again": 0}[out], "6 of 8 evaluations were left"
    whole, cut, again = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("whole", "cut", "again"))
    for name in ("success_rate", "loss"):
        assert np.shape(whole[name]) == (2, 8)
        assert whole[name] == cut[name] == again[name]
    assert again["seconds"] == cut["seconds"]
    with pytest.raises(SystemExit):
        bitflip.main([*options, *kept, "--learning-rate", "0.1"])
    assert "was saved with learning_rate 0.001, and learning_rate 0.1 is asked for; give" in capsys.readouterr().err


def test_no_key_is_used_twice_in_the_whole_training() -> None:
    """From the first parameter to the last evaluation the key-reuse checker finds nothing."""
    config = dataclasses.replace(SMALL, num_bits=3, steps=40, eval_every=20, capacity=50, hidden=(8,))
    with jax.debug_key_reuse(True):
        jax.block_until_ready(jax.jit(partial(bitflip.train, config))(jax.random.key(0)))


def test_a_vmapped_seed_is_the_run_alone() -> None:
    """Seed i of several trains as it does alone, while every seed has a run of its own.

    Not bit for bit: XLA multiplies a batch of matrices in another order than one. The losses of 200 steps agree within 1e-3.
    """
    config = dataclasses.replace(SMALL, num_bits=4, steps=200, eval_every=20, capacity=500, hidden=(16,))
    train = partial(bitflip.train, config)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(train))(keys)
    assert len(np.unique(np.asarray(together["loss"])[:, 0])) == 2
    train_alone = jax.jit(train)
    for seed, key in enumerate(keys):
        alone = train_alone(key)
        print(np.max(np.abs(np.asarray(together["loss"])[seed] / np.asarray(alone["loss"]) - 1)))
        np.testing.assert_allclose(together["loss"][seed], alone["loss"], rtol=1e-3)
        np.testing.assert_array_equal(together["success_rate"][seed], alone["success_rate"])


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ("--seeds 0", "--seeds is 0; give at least 1."),
        ("--steps -100", "--steps is -100; give at least 1."),
        ("--strategy fate", f"--strategy is fate; {STRATEGY_REMEDY}"),
        ("--strategy future=1,fate=2", f"--strategy is future=1,fate=2; {STRATEGY_REMEDY}"),
        ("--strategy future=1,future=2", f"--strategy is future=1,future=2; {STRATEGY_REMEDY}"),
        ("--strategy future=1,final", f"--strategy is future=1,final; {STRATEGY_REMEDY}"),
        ("--strategy future=-1", f"--strategy is future=-1; {STRATEGY_REMEDY}"),
        ("--hindsight-ratio 0.5", f"--hindsight-ratio is 0.5; {RATIO_REMEDY}"),
        ("--hindsight-ratio 2 --relabel sample", f"--hindsight-ratio is 2.0; {RATIO_REMEDY}"),
        ("--hindsight-ratio 1 --relabel sample --num-goals 0", f"--hindsight-ratio is 1.0; {RATIO_REMEDY}"),
        ("--num-steps 0", "--num-steps is 0; give at least 1."),
        ("--correction largest", "--correction is largest; give none, or --num-steps of 2 or more."),
        (
            "--capacity 50",
            "capacity is 50, less than one episode; give a capacity of at least 100: max_episode_length is 100.",
        ),
        ("--hidden 64 0", "--hidden is (64, 0); give at least 1 unit in each layer."),
        ("--checkpoint README.md", "--checkpoint is README.md; give a folder, not a file."),
        ("--num-goals -1", "--num-goals is -1; give 0 for no HER, or a number of hindsight goals per transition."),
        ("--steps 150", "--steps is 150; give a multiple of --eval-every, 100."),
        ("--epsilon 2", "--epsilon is 2.0; give a number from 0 to 1."),
    ],
)
def test_bad_flags_get_one_line_and_status_2(options: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that cannot work is refused in one line that says what to give instead."""
    with pytest.raises(SystemExit) as exit_info:
        bitflip.main(options.split())
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"


def test_script_shares_seeds_out_among_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a program on two devices, one of which gets fewer seeds, it finds what one device does, and counts every step once."""
    options = ["--num-bits", "3", "--steps", "40", "--seeds", "3", "--eval-every", "20", "--max-episode-length", "5", "--out"]
    bitflip.main([*options, str(tmp_path / "1")])
    program = subprocess.run(
        [sys.executable, bitflip.__file__, *options, str(tmp_path / "2")],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    for out, err in (capsys.readouterr(), (program.stdout, program.stderr)):
        assert "120/120" in err
        assert "success" in err
        assert "last ten evaluations" in out
    one, two = (json.loads((tmp_path / devices / "results.json").read_text()) for devices in "12")
    assert (one["devices"], two["devices"]) == (1, 2)
    assert np.shape(one["loss"]) == np.shape(two["loss"]) == (3, 2)
    assert len({tuple(losses) for losses in two["loss"]}) == 3, "each seed has its own run"
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-3)


def after_200_steps(config: bitflip.Config) -> bitflip.Loop:
    """A run's state after 200 steps."""
    keys = jax.random.split(jax.random.key(1), (200, 4))
    return jax.jit(
        lambda: jax.lax.scan(partial(bitflip.train_step, config), bitflip.start(config, jax.random.key(0)), keys)[0]
    )()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_errors_are_those_of_double_q_learning(num_steps: int) -> None:
    """Targets go on after the window, also where an episode was truncated, and not where the goal was reached.

    A window of m rewards of -1 and no other returns -(1 - discount^m) / (1 - discount), which tells discount^m.
    """
    config = dataclasses.replace(SMALL, num_bits=3, max_episode_length=5, discount=0.5, hidden=(8,), num_steps=num_steps)
    loop = after_200_steps(config)
    params, target_params = loop.agent.params, jax.tree.map(lambda leaf: 3 * leaf, loop.agent.params)
    agent = loop.agent.replace(target_params=target_params)
    batch = herjax.sample(loop.buffer, jax.random.key(2), 500)
    network, each = bitflip.make_network(config), np.arange(500)
    chosen = np.argmax(network.apply(params, batch.last.next_observation, batch.goal), axis=1)
    following = network.apply(target_params, batch.last.next_observation, batch.goal)[each, chosen]
    reward = np.asarray(batch.reward)
    target = reward + np.where(batch.terminated, 0, (1 + reward * 0.5) * following)
    value = network.apply(params, batch.transition.observation, batch.goal)[each, batch.transition.action]
    errors = jax.vmap(partial(bitflip.td_error, config, agent, params))(batch, None)
    np.testing.assert_allclose(errors, target - value, rtol=1e-4, atol=1e-5)
    assert len(np.unique(reward[~np.asarray(batch.terminated)])) == num_steps, "windows of each length"
    assert np.any(batch.terminated)


def test_corrected_errors_are_those_of_the_largest_return() -> None:
    """Each sample's target is the largest of three, in a plain loop that stops with the episode and at the goal."""
    config = dataclasses.replace(
        SMALL, num_bits=3, max_episode_length=5, discount=0.5, hidden=(8,), num_steps=3, correction="largest"
    )
    loop = after_200_steps(config)
    agent = loop.agent.replace(target_params=jax.tree.map(lambda leaf: 3 * leaf, loop.agent.params))
    batch = herjax.sample(loop.buffer, jax.random.key(2), 300)
    around = herjax.steps(loop.buffer, batch, range(3))
    errors = jax.vmap(partial(bitflip.td_error, config, agent, agent.params))(batch, around)
    seen, goal = around.transition.next_observation, np.repeat(batch.goal[:, None], 3, axis=1)
    network = bitflip.make_network(config)
    chosen = np.argmax(network.apply(agent.params, seen, goal), axis=2)
    values = np.take_along_axis(np.asarray(network.apply(agent.target_params, seen, goal)), chosen[:, :, None], axis=2)[:, :, 0]
    taken = np.asarray(network.apply(agent.params, batch.transition.observation, batch.goal))
    wins = []
    for each in range(300):
        found, so_far = [], 0.0
        for step in range(3):
            if not around.mask[each, step]:
                break
            so_far += 0.5**step * around.reward[each, step].item()
            found.append(so_far + (not around.terminated[each, step]) * 0.5 ** (step + 1) * values[each, step])
            if around.terminated[each, step]:
                break
        wins.append(int(np.argmax(found)))
        assert errors[each] == pytest.approx(max(found) - taken[each, batch.transition.action[each]], abs=1e-4)
    assert set(wins) == {0, 1, 2}, "windows of each length win"


def test_corrected_returns_of_three_steps_learn() -> None:
    """Two seeds solve 8 bits from the largest return of each window."""
    assert np.all(last_success(dataclasses.replace(SMALL, num_steps=3, correction="largest")) >= 0.9)


def test_transitions_hold_what_the_action_led_to() -> None:
    """Across resets, each stored transition differs in exactly the bit that its action flipped."""
    loop = after_200_steps(dataclasses.replace(SMALL, num_bits=3, max_episode_length=5))
    batch = herjax.sample(loop.buffer, jax.random.key(2), 500)
    flipped = np.asarray(batch.transition.observation != batch.transition.next_observation)
    np.testing.assert_array_equal(flipped, np.eye(3, dtype=bool)[batch.transition.action])
