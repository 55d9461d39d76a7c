"""The script that compares strategies: what it trains, and what it makes of the success rates."""

import json
from pathlib import Path

import numpy as np
import pytest

import bitflip
import strategies

pytestmark = pytest.mark.usefixtures("standard_promotion")

FLAGS = ["--training.num-bits", "4", "--training.steps", "800", "--training.eval-every", "100", "--training.seeds", "2"]


def test_each_strategy_is_trained_with_each_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every strategy runs with every k, `final` once, and one run has no HER; both measures are those of the rates."""
    trained = []
    rates = np.array([[0.0, 0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])

    def run(config: bitflip.Config) -> dict[str, object]:
        trained.append((config.strategy, config.num_goals))
        return {"success_rate": (rates * (config.num_goals > 0)).tolist()}

    monkeypatch.setattr(bitflip, "run", run)
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


def test_one_strategy_learns(tmp_path: Path) -> None:
    """The script's own training, at its smallest, reaches more goals with hindsight than without."""
    strategies.main([*FLAGS, "--strategies", "future", "--num-goals", "4", "--out", str(tmp_path)])
    without, future = json.loads((tmp_path / "strategies.json").read_text())["rows"]
    assert np.mean(future["over_training"]) > np.mean(without["over_training"])
