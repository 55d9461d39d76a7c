"""Which goals to replay: success of each strategy against the number of hindsight goals (arXiv:1707.01495, section 4.5).

Runs examples/bitflip.py for each strategy and k, seeds vmapped and shared out among the devices, and draws the paper's second
comparison for bit-flipping: the highest success, and the success over the whole of training.

python examples/strategies.py
python examples/strategies.py --training.num-bits 20 --training.steps 60000 --num-goals 1 4
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A device for each core that this process may use. JAX reads it when it is imported.
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(affinity(0))))

import numpy as np
import tyro
from tqdm import tqdm

import bitflip


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares strategies and numbers of hindsight goals."""

    training: bitflip.Config = dataclasses.field(
        default_factory=lambda: bitflip.Config(num_bits=15, steps=24_000, eval_every=500, eval_episodes=50, progress=False)
    )
    """What is trained; its strategy, num_goals and out are not used."""
    strategies: tuple[str, ...] = bitflip.STRATEGIES
    """What is compared."""
    num_goals: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Hindsight goals per transition; final always has one, whatever their number."""
    out: Path = Path("results/strategies")
    """Folder for strategies.json and strategies.png."""


def success_rates(config: Config, strategy: str, num_goals: int) -> np.ndarray:
    """The success of each seed at each evaluation, float [seeds, E]."""
    results = bitflip.run(dataclasses.replace(config.training, strategy=strategy, num_goals=num_goals))
    return np.asarray(results["success_rate"])


def row(strategy: str, num_goals: int, rates: np.ndarray) -> dict[str, Any]:
    """Figures of one strategy and k; each of them a list over seeds."""
    return {
        "strategy": strategy,
        "num_goals": num_goals,
        "highest": np.stack([rates[:, i : i + 5].mean(axis=1) for i in range(rates.shape[1] - 4)]).max(axis=0).tolist(),
        "over_training": rates.mean(axis=1).tolist(),
        "success_rate": rates.tolist(),
    }


def plot(config: Config, rows: list[dict[str, Any]], path: Path) -> None:
    """Draws both measures against k: the mean of the seeds, and their standard deviation."""
    import matplotlib  # noqa: PLC0415 - only the end of a run needs it.

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    titles = {"highest": "highest success", "over_training": "mean success over training"}
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for strategy in config.strategies:
            seeds = np.asarray([row[measure] for row in rows if row["strategy"] == strategy])  # [k, seeds]
            axes.errorbar(config.num_goals, seeds.mean(axis=1), seeds.std(axis=1), marker="o", capsize=3, label=strategy)
        without = np.asarray([row[measure] for row in rows if row["strategy"] == "no HER"]).mean()
        axes.axhline(without, color="gray", linestyle="--", label="no HER")
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="hindsight goals per transition, k", ylim=(-0.03, 1.03))
        axes.set_xticks(config.num_goals, map(str, config.num_goals))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"success, {config.training.num_bits} bits, {config.training.seeds} seeds")
    panels[1].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(args: Sequence[str] | None = None) -> None:
    """Trains everything, prints a line for each strategy and k, and draws them."""
    config = tyro.cli(Config, args=args)
    bitflip.check(config.training)
    cells = [("no HER", 0), *((strategy, k) for strategy in config.strategies for k in config.num_goals)]
    rows: list[dict[str, Any]] = []
    print(f"{'strategy':>9} {'k':>3} {'highest':>15} {'over training':>15}")
    for strategy, num_goals in tqdm(cells, unit="setting"):
        if strategy == "final" and rows[-1]["strategy"] == "final":
            rows.append(rows[-1] | {"num_goals": num_goals})  # It has one goal, whatever k.
            continue
        rates = success_rates(config, "future" if strategy == "no HER" else strategy, num_goals)
        rows.append(row(strategy, num_goals, rates))
        figures = (f"{np.mean(rows[-1][name]):8.2f} +- {np.std(rows[-1][name]):.2f}" for name in ("highest", "over_training"))
        tqdm.write(f"{strategy:>9} {num_goals:>3} {' '.join(figures)}")
    config.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config.training).items()}
    (config.out / "strategies.json").write_text(json.dumps({"training": settings, "rows": rows}, indent=1))
    plot(config, rows, config.out / "strategies.png")
    print(f"written {config.out / 'strategies.json'}, {config.out / 'strategies.png'}")


if __name__ == "__main__":
    main()
