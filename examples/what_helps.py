"""What helps: each option alone beside the defaults, on bit-flipping with 20 bits and on PlanarPush, as one table.

python examples/what_helps.py                                  # run again, it trains what is not trained yet
python examples/what_helps.py --tasks push --options "" "num-steps 3" "relabel sample --hindsight-ratio 0.5"

Success of greedy episodes, mean and standard deviation of five seeds: after a third, half and two thirds of training, and at
its end; each over the last five evaluations. `-`: the program has no such option.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import experiment

import jax
import numpy as np
import tyro
from tqdm import tqdm

import bitflip
import ddpg
import flags

Task: TypeAlias = Literal["bits", "push"]


class Program(NamedTuple):
    """What trains a task, and how long."""

    module: Any
    flags: str
    title: str


PROGRAMS: dict[Task, Program] = {
    "bits": Program(bitflip, "--num-bits 20 --steps 60000 --eval-every 500 --no-progress", "20 bits"),
    "push": Program(ddpg, "--no-progress", "PlanarPush"),
}
OPTIONS = (
    "",
    *(f"num-goals {k}" for k in (0, 1, 2, 8)),
    *(f"strategy {name}" for name in ("episode", "final", "random", "future=0.8,random=0.2")),
    *(f"num-steps {n}{correction}" for correction in ("", " --correction largest") for n in (2, 3)),
    *(f"relabel sample --hindsight-ratio {share}" for share in ("0.5", "0.8", "1.0")),
    "no-prioritized",
)
SHARES = (1 / 3, 1 / 2, 2 / 3, 1)
"""Of the training: when success is looked at."""
MEAN_OF = 5
"""Evaluations in a row whose mean counts as success at the last of them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains with each option, and prints what came of it."""

    tasks: tuple[Task, ...] = ("bits", "push")  # What is trained.
    options: tuple[str, ...] = OPTIONS  # Flags of bitflip.py and ddpg.py, without the first "--"; "": none.
    also: str = ""  # Flags that all have, likewise, such as "seeds 2".
    out: Path = Path("results/what_helps")  # Folder for runs.json.


def command(config: Config, task: Task, option: str) -> list[str]:
    """The flags of the task's program."""
    return [*PROGRAMS[task].flags.split(), *(word for text in (config.also, option) if text for word in f"--{text}".split())]


def settings(config: Config, task: Task, option: str) -> Any:
    """What the task is trained with; None where its program has no such option."""
    program = PROGRAMS[task]
    if "prioritized" in option and not hasattr(program.module.Config, "prioritized"):
        return None
    chosen = tyro.cli(program.module.Config, args=command(config, task, option))
    flags.check(chosen)
    flags.require(chosen, "checkpoint", chosen.checkpoint is None, "none: each setting has its own")
    jax.eval_shape(partial(program.module.start, chosen), jax.random.key(0))
    if chosen.evaluations * SHARES[0] < MEAN_OF:
        raise ValueError(f"there are {chosen.evaluations} evaluations; give --also more steps, or more of them: 15 at least.")
    return chosen


def train(module: Any, chosen: Any) -> dict[str, Any]:
    """Success of each seed at each evaluation, [seeds][E], and the seconds of training."""
    training = experiment.over_seeds(chosen, partial(module.start, chosen), partial(module.advance, chosen))
    results = experiment.run(chosen, training)[1]
    return {name: results[name] for name in ("success_rate", "seconds", "device", "devices")}


def success(rates: Sequence[Sequence[float]]) -> str:
    """The mean and standard deviation of the seeds at each of `SHARES`."""
    averages = np.lib.stride_tricks.sliding_window_view(np.asarray(rates), MEAN_OF, axis=1).mean(axis=2)  # [seeds, E - 4]
    evaluations = [round(share * len(rates[0])) for share in SHARES]
    at = [averages[:, number - MEAN_OF] for number in evaluations]
    return " / ".join(f"{np.mean(each):.2f} ± {np.std(each):.2f}" for each in at)


def main(args: Sequence[str] | None = None) -> None:
    """Trains what is not in runs.json, and prints the table."""
    config = flags.parse(Config, lambda config: [settings(config, t, o) for t in config.tasks for o in config.options], args)
    found = {}
    for task, option in tqdm([(task, option) for task in config.tasks for option in config.options], unit="setting"):
        chosen = settings(config, task, option)
        if chosen is not None:
            rates = experiment.kept(config.out, chosen, partial(train, PROGRAMS[task].module))["success_rate"]
            found[task, option] = success(rates)
    print("| | " + " | ".join(PROGRAMS[task].title for task in config.tasks) + " |")
    print("|---" * (1 + len(config.tasks)) + "|")
    for option in config.options:
        cells = [found.get((task, option), "-") for task in config.tasks]
        print(f"| {f'`--{option}`' if option else 'none'} | " + " | ".join(cells) + " |")
    print(f"written {config.out}: runs.json")


if __name__ == "__main__":
    main()
