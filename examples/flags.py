"""Flags that several programs have, what they may be, and how a bad one is refused: in one line, with what to give instead."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, get_type_hints

import tyro

import herjax

STRATEGIES = ("future", "final", "episode", "random")

# What a value must be, given all flags, and what the refusal asks for; of a flag with several values, each.
Count = Annotated[int, (lambda value, _: value >= 1, "at least 1")]
Several = Annotated[int, (lambda value, _: value >= 2, "at least 2")]
Counts = Annotated[tuple[int, ...], (lambda value, _: value >= 1, "numbers >= 1")]
Stretches = Annotated[
    Count, (lambda value, flags: value % max(flags.eval_every, 1) == 0, "a multiple of --eval-every, {eval_every}")
]
Units = Annotated[tuple[int, ...], (lambda value, _: value >= 1, "at least 1 unit in each layer")]
Goals = Annotated[int, (lambda value, _: value >= 0, "0 for no HER, or a number of hindsight goals per transition")]
Seed = Annotated[int, (lambda value, _: 0 <= value < 2**32, "a number from 0 to 2^32 - 1")]
Share = Annotated[float, (lambda value, _: 0 <= value <= 1, "a number from 0 to 1")]
Below1 = Annotated[float, (lambda value, _: 0 <= value < 1, "a number from 0 to 1, but not 1")]
Weight = Annotated[float, (lambda value, _: 0 <= value < math.inf, "a finite number >= 0")]
Number = Annotated[float, (lambda value, _: math.isfinite(value), "a finite number")]
Folder = Annotated[Path | None, (lambda value, _: value is None or not value.is_file(), "a folder, not a file")]
Ratio = Annotated[
    float | None,
    (
        lambda value, flags: value is None or (0 <= value <= 1 and flags.relabel == "sample" and flags.num_goals > 0),
        "a number from 0 to 1, with --relabel sample and hindsight goals",
    ),
]
Correction = Annotated[
    Literal["none", "largest"],
    (lambda value, flags: value == "none" or flags.num_steps > 1, "none, or --num-steps of 2 or more"),
]


@dataclasses.dataclass(frozen=True)
class Flags:
    """What all programs are told: how many runs, how often to look, and where to write."""

    not_training: ClassVar[tuple[str, ...]] = ("out", "log_dir", "checkpoint", "checkpoint_seconds", "progress")
    """What may differ when a run goes on."""

    seeds: Count = 5  # Independent runs, vmapped, and shared out among the devices.
    seed: Seed = 0  # Where all randomness starts.
    eval_every: Count = 100  # Steps, or cycles, between evaluations.
    eval_episodes: Count = 20  # Greedy episodes of an evaluation.
    out: Path = Path("results")  # Folder for results.json and plots.
    log_dir: Folder = None  # Folder for TensorBoard scalars; none by default.
    checkpoint: Folder = None  # Folder that keeps the state of training: a run that was killed goes on from it.
    checkpoint_seconds: Weight = 10.0  # Time between checkpoints, at least. They are saved after an evaluation.
    progress: bool = True  # Whether to show a progress bar.

    @property
    def evaluations(self: Any) -> int:
        """How many a run has at most, by its number of steps or cycles."""
        return int((self.cycles if hasattr(self, "cycles") else self.steps) // self.eval_every)


@dataclasses.dataclass(frozen=True)
class HindsightFlags(Flags):
    """What programs are told that train with one buffer."""

    strategy: str = "future"  # Where goals come from: future, final, episode, random, or a mixture: future=0.8,random=0.2.
    num_goals: Goals = 4  # Hindsight goals per transition; 0: no HER.
    relabel: Literal["episode_end", "sample"] = "episode_end"  # When hindsight goals are drawn: once, or afresh for each batch.
    hindsight_ratio: Ratio = None  # Share of a batch with hindsight goals, with relabel sample; None: k / (k + 1).
    num_steps: Count = 1  # Steps of an n-step return.
    correction: Correction = "none"  # largest: of the returns of 1 to n steps the largest, as actions pursued another goal.


AnyFlags = TypeVar("AnyFlags", bound=Flags)


def parse(kind: type[AnyFlags], try_out: Callable[[AnyFlags], Any], args: Sequence[str] | None) -> AnyFlags:
    """The flags; refused where one may not be what it is, or where `try_out` raises a `ValueError` for them."""
    flags = tyro.cli(kind, args=args)
    try:
        check(flags)
        try_out(flags)
    except ValueError as error:
        refuse(error)
    return flags


def check(flags: Any) -> None:
    """Raises `ValueError` where a flag may not be what it is."""
    for name, hint in get_type_hints(type(flags), include_extras=True).items():
        for good, remedy in (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, tuple)):
            values = getattr(flags, name)
            values = values if isinstance(values, tuple) else (values,)
            require(flags, name, all(good(value, flags) for value in values), remedy.format(**vars(flags)))
    parse_strategy(getattr(flags, "strategy", "future"))


def require(flags: Any, name: str, good: bool, remedy: str) -> None:
    """Raises `ValueError` with the flag, its value and what to give instead, unless it is good."""
    if not good:
        raise ValueError(f"--{name.replace('_', '-')} is {getattr(flags, name)}; give {remedy}.")


def refuse(error: object) -> NoReturn:
    """Says in one line what cannot be done, and ends the program."""
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    sys.exit(2)


def parse_strategy(text: str) -> Any:
    """The strategy that a flag names, or the mixture whose weights it gives, as "future=0.8,random=0.2"."""
    try:
        weights = [part.split("=") for part in text.split(",")] if "=" in text else [[text, "1"]]
        mixture = {name: float(weight) for name, weight in weights}
        if len(mixture) < len(weights):
            raise ValueError("a name is given twice")
        return herjax.mixture(mixture)
    except ValueError as error:
        remedy = f"give one of {', '.join(STRATEGIES)}, or weights such as future=0.8,random=0.2."
        raise ValueError(f"--strategy is {text}; {remedy}") from error


def describe_goals(flags: HindsightFlags) -> str:
    """Which goals are replayed, for a title."""
    if flags.num_goals == 0:
        return "without HER"
    share = f"k = {flags.num_goals}" if flags.hindsight_ratio is None else f"ratio {flags.hindsight_ratio}"
    return f"HER {flags.strategy}, {share}"


def counted(flags: Flags) -> dict[str, Any]:
    """Those that decide what is learned, as JSON brings them back."""
    settings = {name: value for name, value in vars(flags).items() if name not in flags.not_training}
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def plain(flags: Any) -> dict[str, Any]:
    """The flags as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
