"""The script that compares strategies: what it trains, and what it makes of the success rates."""

import json
from pathlib import Path

import experiment

import numpy as np
import pytest

import ddpg
import flags
import strategies

pytestmark = pytest.mark.usefixtures("standard_promotion")

FACTS = {"seconds": 1.0, "device": "cpu", "devices": 1}
FLAGS = ["--flip.num-bits", "4", "--flip.steps", "800", "--flip.eval-every", "100", "--flip.seeds", "2"]


def test_each_strategy_is_trained_with_each_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every strategy runs with every k, `final` once, and one run has no HER; both measures are those of the rates."""
    trained = []
    rates = np.array([[0.0, 0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])

    def run(config: flags.HindsightFlags, _: experiment.Training) -> tuple[None, dict[str, object]]:
        trained.append((config.strategy, config.num_goals))
        return None, {"success_rate": (rates * (config.num_goals > 0)).tolist(), **FACTS}

    monkeypatch.setattr(experiment, "over_seeds", lambda *_: None)
    monkeypatch.setattr(experiment, "run", run)
    strategies.main([*FLAGS, "--num-goals", "1", "4", "--out", str(tmp_path)])
    assert trained == [
        ("future", 0),
        ("future", 1),
        ("future", 4),
        ("final", 1),
        ("episode", 1),
        ("episode", 4),
        ("random", 1),
        ("random", 4),
    ]
    rows = json.loads((tmp_path / "strategies.json").read_text())["rows"]
    assert [(row["strategy"], row["num_goals"]) for row in rows[3:5]] == [("final", 1), ("final", 4)]
    np.testing.assert_allclose(rows[1]["highest"], [0.6, 0.5])  # The best five evaluations in a row.
    np.testing.assert_allclose(rows[1]["over_training"], rates.mean(axis=1))
    assert rows[0]["highest"] == [0.0, 0.0]
    assert (tmp_path / "strategies.png").stat().st_size > 10_000
    assert "0.55 +- 0.05" in capsys.readouterr().out
    number = len(trained)
    strategies.main([*FLAGS, "--num-goals", "1", "4", "8", "--out", str(tmp_path)])
    assert trained[number:] == [("future", 8), ("episode", 8), ("random", 8)], "what was trained is not trained again"
    strategies.main([*FLAGS[:-1], "3", "--strategies", "final", "--num-goals", "1", "--out", str(tmp_path)])
    assert trained[number + 3 :] == [("future", 0), ("final", 1)], "but of other seeds it is"


def test_another_programs_file_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that holds something else is refused, and stays as it is."""
    (tmp_path / "runs.json").write_text('{"seconds": 1}')
    with pytest.raises(SystemExit):
        strategies.main([*FLAGS, "--out", str(tmp_path)])
    assert "runs.json is of another program; give another --out." in capsys.readouterr().err
    assert (tmp_path / "runs.json").read_text() == '{"seconds": 1}'


def test_what_two_processes_train_is_kept(tmp_path: Path) -> None:
    """What another process adds while one trains is still there afterwards."""
    first, second = ddpg.Config(seeds=1), ddpg.Config(seeds=2)

    def train(_: ddpg.Config) -> dict[str, object]:
        experiment.kept(tmp_path, second, lambda _: {"success_rate": [2]})
        return {"success_rate": [1]}

    experiment.kept(tmp_path, first, train)
    assert [each["success_rate"] for each in json.loads((tmp_path / "runs.json").read_text())] == [[2], [1]]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (
            ["--strategies", "past"],
            "--strategy is past; give one of future, final, episode, random, or weights such as future=0.8,random=0.2.",
        ),
        (["--num-goals", "0", "4"], "--num-goals is (0, 4); give numbers >= 1."),
        (
            ["--flip.capacity", "5"],
            "capacity is 5, less than one episode; give a capacity of at least 100: max_episode_length is 100.",
        ),
        (
            ["--task", "push", "--push.cycles", "40"],
            "there are 4 evaluations; train longer or evaluate more often: 5 at least.",
        ),
        (["--task", "push", "--push.cycles", "7"], "--cycles is 7; give a multiple of --eval-every, 10."),
    ],
)
def test_bad_flags_are_refused_in_one_line(options: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        strategies.main(options)
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"


def test_one_strategy_learns(tmp_path: Path) -> None:
    """The script's own training, at its smallest, reaches more goals with hindsight than without."""
    strategies.main([*FLAGS, "--strategies", "future", "--num-goals", "4", "--out", str(tmp_path)])
    without, future = json.loads((tmp_path / "strategies.json").read_text())["rows"]
    assert np.mean(future["over_training"]) > np.mean(without["over_training"])
