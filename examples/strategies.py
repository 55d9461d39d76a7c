"""Which goals to replay: success of each strategy against the number of hindsight goals (arXiv:1707.01495, section 4.5).

Trains bitflip.py or ddpg.py for each strategy and k, seeds vmapped and shared out among the devices, and draws the paper's
comparison: the highest success, and the success over the whole of training.

python examples/strategies.py                                     # bit-flipping; run again, it trains what is missing
python examples/strategies.py --task push                         # PlanarPush, with shaped rewards too (section 4.4)
python examples/strategies.py --flip.num-bits 20 --flip.steps 60000 --num-goals 1 4
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import experiment

import jax
import numpy as np
from tqdm import tqdm

import bitflip
import ddpg
import flags

LINES = ("--", ":", "-.")
"""Line styles of baselines."""
MEAN_OF = 5
"""Evaluations in a row whose mean counts as a success rate reached."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares strategies and numbers of hindsight goals."""

    task: Literal["flip", "push"] = "flip"  # What is trained.
    flip: bitflip.Config = dataclasses.field(
        default_factory=lambda: bitflip.Config(num_bits=15, steps=24_000, eval_every=500, eval_episodes=50, progress=False)
    )  # How bits are flipped; its strategy, num_goals and out are not used.
    push: ddpg.Config = dataclasses.field(
        default_factory=lambda: ddpg.Config(progress=False)
    )  # How a puck is pushed; its shaped and out are not used, its strategy and num_goals with shaped rewards alone.
    strategies: tuple[str, ...] = flags.STRATEGIES  # What is compared.
    num_goals: flags.Counts = (1, 2, 4, 8, 16)  # Hindsight goals per transition; final always has one, whatever their number.
    out: Path = Path("results/strategies")  # Folder for runs.json, strategies.json and strategies.png.

    @property
    def training(self) -> bitflip.Config | ddpg.Config:
        """How what is compared is trained."""
        return self.push if self.task == "push" else self.flip


class Cell(NamedTuple):
    """One cell of the comparison."""

    name: str
    changes: dict[str, Any]  # To the settings of training.
    num_goals: int  # Under which it is drawn; 0: a line across.


def cells(config: Config) -> list[Cell]:
    """What is compared: first what has no k to vary."""
    found = [Cell("no HER", {"num_goals": 0}, 0)]
    if config.task == "push":
        found.append(Cell("shaped", {"shaped": True, "num_goals": 0}, 0))
        found.append(Cell("shaped, HER", {"shaped": True}, 0))
    for strategy in config.strategies:
        # final has one goal, whatever k.
        found += [
            Cell(strategy, {"strategy": strategy, "num_goals": 1 if strategy == "final" else k}, k) for k in config.num_goals
        ]
    return found


def program(config: Config) -> Any:
    """What trains."""
    return ddpg if config.task == "push" else bitflip


def success_rates(config: Config, cell: Cell) -> np.ndarray:
    """The success of each seed at each evaluation, float [seeds, E]."""

    def train(training: Any) -> dict[str, Any]:
        start, advance = program(config).start, program(config).advance
        seeds = experiment.over_seeds(training, partial(start, training), partial(advance, training))
        results = experiment.run(training, seeds)[1]
        return {name: results[name] for name in ("success_rate", "seconds", "device", "devices")}

    return np.asarray(experiment.kept(config.out, dataclasses.replace(config.training, **cell.changes), train)["success_rate"])


def row(cell: Cell, rates: np.ndarray) -> dict[str, Any]:
    """Figures of one cell; each of them a list over seeds."""
    return {
        "strategy": cell.name,
        "num_goals": cell.num_goals,
        "highest": np.lib.stride_tricks.sliding_window_view(rates, MEAN_OF, axis=1).mean(axis=2).max(axis=1).tolist(),
        "over_training": rates.mean(axis=1).tolist(),
        "success_rate": rates.tolist(),
    }


def plot(config: Config, rows: list[dict[str, Any]], path: Path) -> None:
    """Draws both measures against k: the mean of the seeds, and their standard deviation."""
    titles = {"highest": "highest success", "over_training": "mean success over training"}
    with experiment.axes(path, panels=2, figsize=(9, 3.6)) as panels:
        for axes, (measure, title) in zip(panels, titles.items(), strict=True):
            for strategy in config.strategies:
                seeds = np.asarray([row[measure] for row in rows if row["strategy"] == strategy])  # [k, seeds]
                axes.errorbar(config.num_goals, seeds.mean(axis=1), seeds.std(axis=1), marker="o", capsize=3, label=strategy)
            for row, style in zip((row for row in rows if row["num_goals"] == 0), LINES, strict=False):
                axes.axhline(np.mean(row[measure]), color="gray", linestyle=style, label=row["strategy"])
            axes.set_xscale("log", base=2)
            axes.set(title=title, xlabel="hindsight goals per transition, k")
            axes.set_xticks(config.num_goals, map(str, config.num_goals))
        task = "PlanarPush" if config.task == "push" else f"{config.flip.num_bits} bits"
        panels[0].set_ylabel(f"success, {task}, {config.training.seeds} seeds")
        figure = panels[0].get_figure()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")


def check(config: Config) -> None:
    """Raises `ValueError` if something cannot be trained."""
    for cell in cells(config):
        training = dataclasses.replace(config.training, **cell.changes)
        flags.check(training)
        jax.eval_shape(partial(program(config).start, training), jax.random.key(0))
    if config.training.evaluations < MEAN_OF:
        raise ValueError(
            f"there are {config.training.evaluations} evaluations; train longer or evaluate more often: {MEAN_OF} at least."
        )
    if config.training.checkpoint is not None:
        raise ValueError(f"--{config.task}.checkpoint is for one setting; leave it out: each has its own.")


def main(args: Sequence[str] | None = None) -> None:
    """Trains everything, prints a line for each strategy and k, and draws them."""
    config = flags.parse(Config, check, args)
    rows: list[dict[str, Any]] = []
    print(f"{'strategy':>11} {'k':>3} {'highest':>15} {'over training':>15}")
    for cell in tqdm(cells(config), unit="setting"):
        rows.append(row(cell, success_rates(config, cell)))
        figures = (f"{np.mean(rows[-1][name]):8.2f} +- {np.std(rows[-1][name]):.2f}" for name in ("highest", "over_training"))
        tqdm.write(f"{cell.name:>11} {cell.num_goals or '-':>3} {' '.join(figures)}")
    (config.out / "strategies.json").write_text(json.dumps({"training": flags.plain(config.training), "rows": rows}, indent=1))
    plot(config, rows, config.out / "strategies.png")
    print(f"written {config.out / 'strategies.json'}, {config.out / 'strategies.png'}")


if __name__ == "__main__":
    main()
