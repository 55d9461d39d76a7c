"""All that is to be measured on a GPU or a TPU, in one call: parts one after another, the most telling first.

    pip install ".[test]" "jax[cuda12]" flashbax rejax==0.1.3    # for NVIDIA's GPUs; "jax[tpu]" for TPUs
    pip install --no-deps jaxgcrl==0.2.8                         # see contrastive.py
    python examples/benchmarks/accelerator.py

Each part is a process of its own, with a time limit. When it ends, its figures go to a file, and what it printed goes to
summary.txt. A part that fails is recorded, and the next one begins. When `--minutes` are over, the other parts are given up. A
second call measures the parts that have no file yet. On a CPU every part does little: a few minutes show that they work.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures herjax on the device that JAX finds."""

    minutes: float = 25
    """Time for all parts together; those that are left then are given up."""
    small: bool = False
    """Whether parts do little, as they do on a CPU by default."""
    full: bool = False
    """Whether they do all, on a CPU, too."""
    again: bool = False
    """Whether to measure the parts that have a file already."""
    only: tuple[str, ...] = ()
    """Names of parts; all by default."""
    out: Path = Path("results/accelerator")
    """Folder for the files. Those of small parts go to one of their own in it."""


class Part(NamedTuple):
    """A process that measures something."""

    name: str
    what: str  # For the summary.
    command: str  # For Python, in the repository's folder; it writes its figures to {out}.
    small: str | None  # The same with little work; None: the part is left out.
    seconds: float  # The most that it may take.
    needs: str | None = None  # The part is skipped where this module is not installed.
    environment: tuple[tuple[str, str], ...] = ()  # Variables of a full part's process, and their values.


class Outcome(NamedTuple):
    """How a part went."""

    part: str
    outcome: str  # done, failed, timed out; or without a file: there already, skipped, given up
    seconds: float = 0.0
    printed: str = ""
    error: str = ""  # What it printed last, if it was not done.
    command: str = ""
    figures: Any = None  # What it wrote; of a part that was ended, what it had written by then.


def program(name: str, flags: str = "", small: str = "") -> tuple[str, str]:
    """The commands of a part that another file measures."""
    command = f"examples/benchmarks/{name} --out {{out}}"
    return f"{command} {flags}", f"{command} {small}"


def own(name: str) -> tuple[str, str]:
    """The commands of a part that accelerator_parts.py measures."""
    return program("accelerator_parts.py", f"--name {name}", f"--name {name} --small")


PYTEST = "-m pytest -q -p no:cacheprovider"
QUICK = ("buffer", "sum_tree", "priorities", "num_envs", "next_of", "compilation")
FIRST_TESTS = " ".join(f"tests/library/test_{name}.py" for name in QUICK)
TESTING = (("XLA_FLAGS", ""), ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"))
"""XLA compiles as for users, and the processes that tests start share the device's memory."""
BESIDE = "--peers flashbax --steps 200 --rounds 3 --fill 2000 --capacity 10000 --runs"
BESIDE_SMALL = "--peers flashbax --steps 20 --rounds 2 --fill 20 --capacity 1000 --runs"
ENVIRONMENTS = ("--no-weigh", "--no-weigh --num-envs 8 --episode-length 10 --capacity 400 --few 2 --rounds 1")
CONTRASTIVE = ("", "--num-envs 8 --episode-length 50 --inserted 10 --rounds 2")
STEP_COST = (
    "--seeds 1 32 1024 --capacities 20000 --steps 200 --rounds 5 --no-shares",
    "--seeds 1 --capacities 1000 --steps 20 --rounds 2 --no-shares",
)
PARTS = (
    Part("device", "the device; finite values; the same bits twice", *own("device"), 150),
    Part(
        "tests",
        "some of the default tests",
        f"{PYTEST} -x {FIRST_TESTS}",
        f"{PYTEST} -x tests/library/test_sum_tree.py",
        180,
        "pytest",
        TESTING,
    ),
    Part("loops", "µs a step of training loops; a buffer that is copied makes the ratio large", *own("loops"), 240),
    Part("seeds", "bitflip.py: steps a second, with an update each, of more and more seeds", *own("seeds"), 300),
    Part("step_cost", "a training iteration over the same without replay", *program("step_cost.py", *STEP_COST), 240),
    Part("peers_many", "many runs beside flashbax", *program("peers.py", f"{BESIDE} 1024", f"{BESIDE_SMALL} 8"), 180),
    Part("peers_some", "some runs beside flashbax", *program("peers.py", f"{BESIDE} 32", f"{BESIDE_SMALL} 2"), 120),
    Part(
        "contrastive",
        "batches of a contrastive agent; published of JaxGCRL's training on a V100: 16.7 thousand steps a second",
        *program("contrastive.py", *CONTRASTIVE),
        150,
    ),
    Part("environments", "many environments in a buffer", *program("environments.py", *ENVIRONMENTS), 240),
    Part(
        "rejax",
        "SAC with two replays; published of rejax on an A100, a million steps of Hopper: 476 s, or 8.7 s each of 300 agents",
        *own("rejax"),
        300,
        "rejax",
    ),
    Part("memory", "bytes a transition", *program("memory.py", "", "--capacity 1000"), 60),
    Part("more_loops", "training loops with the other settings of a buffer", *own("more_loops"), 420),
    Part("all_tests", "all default tests", f"{PYTEST} -n 4 --maxfail 50", None, 900, "pytest", TESTING),
)


def run(name: str, command: list[str], environment: dict[str, str], limit: float, figures: Path) -> Outcome:
    """Runs a part's process, and ends it after `limit` seconds with all that it started."""
    figures.unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    timed_out = False
    try:
        printed, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if timed_out:
        printed, errors = process.communicate()
    outcome = "timed out" if timed_out else "failed" if process.returncode else "done"
    error = "" if outcome == "done" else f"exit status {process.returncode}\n{errors[-4000:]}"
    found = json.loads(figures.read_text()) if figures.exists() else None
    figures.unlink(missing_ok=True)
    return Outcome(name, outcome, time.monotonic() - began, printed, error, shlex.join(command), found)


def measure(part: Part, folder: Path, small: bool, left: float, again: bool) -> Outcome:
    """Runs a part unless there is a reason not to, and writes its file. `left` are the seconds left for all parts."""
    file = folder / f"{part.name}.json"
    if file.exists() and not again:
        return Outcome(part.name, "there already")
    if part.needs is not None and importlib.util.find_spec(part.needs) is None:
        return Outcome(part.name, "skipped", error=f"{part.needs} is not installed")
    if left <= 0:
        return Outcome(part.name, "given up", error="no time is left")
    figures = folder.resolve() / f"{part.name}.unfinished"
    words = shlex.split(part.small or "" if small else part.command)
    command = [sys.executable, *(word.replace("{out}", str(figures)) for word in words)]
    found = run(part.name, command, {} if small else dict(part.environment), min(part.seconds, left), figures)
    if found.outcome == "timed out" and left < part.seconds:
        return found._replace(outcome="given up")  # It may have more time in the next call.
    file.write_text(json.dumps(found._asdict(), indent=1))
    return found


def described(part: Part, found: Outcome) -> str:
    """A part's place in the summary: a line, what it printed, and the end of what went wrong."""
    lines = [*found.printed.splitlines()[-80:], *found.error.splitlines()[-8:]]
    head = f"{part.name:<12} {found.outcome:<13} {found.seconds:5.0f} s   {part.what}"
    return "\n".join([head, *(f"    {line}" for line in lines)]) + "\n"


def measure_all(parts: Sequence[Part], settings: Settings, small: bool) -> list[Outcome]:
    """Measures parts in order; prints how each went, and appends it to the summary."""
    deadline = time.monotonic() + 60 * settings.minutes
    folder = settings.out / "small" if small else settings.out
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for part in parts:
        if (small and part.small is None) or part.name not in (settings.only or [part.name]):
            continue
        found = measure(part, folder, small, deadline - time.monotonic(), settings.again)
        text = described(part, found)
        print(text, end="", flush=True)
        if found.outcome != "there already":
            with (folder / "summary.txt").open("a") as summary:
                summary.write(text)
        outcomes.append(found)
    return outcomes


def on_cpu() -> bool:
    """Whether JAX finds nothing but a CPU. Another process asks, since some devices serve one process at a time."""
    ask = "import jax; print(jax.default_backend())"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False, timeout=120)
    return asked.stdout.split()[-1:] == ["cpu"]


def main(args: Sequence[str] | None = None) -> None:
    """Measures all parts, or those asked for."""
    settings = tyro.cli(Settings, args=args)
    unknown = set(settings.only) - {part.name for part in PARTS}
    if unknown:
        sys.exit(f"--only has {', '.join(sorted(unknown))}; give some of {', '.join(part.name for part in PARTS)}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the process of a part ends, too.
    small = settings.small or (not settings.full and on_cpu())
    outcomes = measure_all(PARTS, settings, small)
    print(f"{sum(found.outcome == 'done' for found in outcomes)} of {len(outcomes)} parts done; {settings.out}")


if __name__ == "__main__":
    main()
