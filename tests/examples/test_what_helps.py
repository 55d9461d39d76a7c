"""The script that compares options: what it trains, what it makes of the success rates, and what it refuses."""

from pathlib import Path
from typing import Any

import experiment

import numpy as np
import pytest

import bitflip
import what_helps

pytestmark = pytest.mark.usefixtures("standard_promotion")

LENGTH = ["--also", "cycles 15 --eval-every 1 --seeds 2"]


def test_each_option_is_trained_alone_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures are of the last five evaluations at each place; what has been trained is not trained again."""
    trained: list[Any] = []
    rates = np.array([np.arange(15) / 10, np.arange(15) / 10 + 0.2])

    def run(config: Any, _: experiment.Training) -> tuple[None, dict[str, Any]]:
        trained.append(config)
        return None, {
            "success_rate": (rates if config.num_steps == 1 else 0 * rates).tolist(),
            "seconds": 1.0,
            "device": "cpu",
            "devices": 1,
        }

    monkeypatch.setattr(experiment, "over_seeds", lambda *_: None)
    monkeypatch.setattr(experiment, "run", run)
    flags = [*LENGTH, "--tasks", "push", "--options", "", "num-steps 3", "no-prioritized", "--out", str(tmp_path)]
    what_helps.main(flags)
    assert [(config.num_steps, config.cycles, config.seeds) for config in trained] == [(1, 15, 2), (3, 15, 2)]
    printed = capsys.readouterr().out
    assert "| none | 0.30 ± 0.10 / 0.60 ± 0.10 / 0.80 ± 0.10 / 1.30 ± 0.10 |" in printed  # Up to evaluation 5, 8, 10 and 15.
    assert "| `--num-steps 3` | 0.00 ± 0.00 /" in printed
    assert "| `--no-prioritized` | - |" in printed
    what_helps.main([*flags, "--also", "seeds 1"])
    assert [config.seeds for config in trained] == [2, 2, 1, 1]
    what_helps.main(flags)
    assert len(trained) == 4


def test_what_is_there_by_default_can_be_trained() -> None:
    """Every option is one of the program's, but that DDPG has no priorities; the bits are those of the results."""
    config = what_helps.Config()
    chosen = {(task, option): what_helps.settings(config, task, option) for task in config.tasks for option in config.options}
    assert [name for name, each in chosen.items() if each is None] == [("push", "no-prioritized")]
    assert chosen["bits", ""] == bitflip.Config(num_bits=20, steps=60_000, eval_every=500, progress=False)
    assert len({str(each) for each in chosen.values()}) == len(chosen)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--options", "num-steps 0"], "--num-steps is 0; give at least 1."),
        (["--also", "checkpoint x"], "--checkpoint is x; give none: each setting has its own."),
        (["--also", "cycles 40"], "there are 4 evaluations; give --also more steps, or more of them: 15 at least."),
    ],
)
def test_bad_flags_are_refused_in_one_line(options: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        what_helps.main(["--tasks", "push", *options])
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"
