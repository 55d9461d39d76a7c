"""What accelerator.py measures that no other benchmark does. It calls this file, once for each name.

Of the loops alone, and little: python examples/benchmarks/accelerator_parts.py --name loops --small
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from interleaved import ratio, seconds

sys.path.extend(str(Path(__file__).resolve().parents[2] / name) for name in ("examples", "examples/frameworks", "tests"))
import compiled_loops
import herjax

Row = dict[str, Any]
"""What was found."""
Rows = Iterator[tuple[Row, Callable[[], Row]]]
"""What each row is about, and the function that finds the rest of it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures one thing on the device that JAX finds."""

    name: Literal["device", "loops", "more_loops", "seeds", "rejax"]
    """What to measure."""
    small: bool = False
    """Whether to do little."""
    out: Path = Path("results/accelerator_parts.json")
    """Where the figures go."""


def device(small: bool) -> Rows:
    """The device; then whether what is drawn there is finite, and the same if drawn again, with some settings of a buffer."""
    here = jax.devices()[0]
    about = {"platform": here.platform, "kind": here.device_kind, "devices": jax.device_count()}
    memory = (here.memory_stats() or {}).get("bytes_limit")
    yield about, lambda: {"memory": memory, "jax": jax.__version__, "herjax": herjax.__version__}
    for setting in ["prioritised"] if small else LOOP_SETTINGS[::2]:
        yield {"setting": setting}, partial(drawn_again, setting)


def drawn_again(setting: str) -> Row:
    """Trains and draws twice, and once on the CPU, whose floats may round otherwise: the share of indices that are the same."""

    @jax.jit
    def play(key: jax.Array) -> tuple[Any, ...]:
        loop = compiled_loops.train(compiled_loops.act_then_learn, 200, compiled_loops.start(setting, 1600), key)
        batch = herjax.sample(loop.buffer, key, 256)
        return batch.indices, jax.tree.leaves((batch, loop))

    key = jax.random.key(0)
    (indices, first), (_, second) = jax.device_get((play(key), play(key)))
    found = {"finite": all(np.isfinite(leaf).all() for leaf in first), "same": all(map(np.array_equal, first, second))}
    if not all(found.values()):
        raise ValueError(str(found))
    try:
        host = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS may leave it out.
        return found
    on_host = np.asarray(play(jax.device_put(key, host))[0])
    return found | {"indices_as_on_cpu": float(np.mean(indices == on_host))}


def loops(small: bool, settings: list[str]) -> Rows:
    """The loops of compiled_loops.py, each with two capacities in turn."""
    names = ["act_then_learn", "two_branches_write"] if small else list(compiled_loops.STEPS_BY_NAME)
    capacities, steps, rounds = ((1600, 160_000), 20, 2) if small else ((204_800, 6_553_600), 100, 3)
    for setting in settings:
        starts = {capacity: jax.jit(partial(compiled_loops.start, setting, capacity)) for capacity in capacities}

        def compiled(name: str, starts: Any = starts) -> list[Any]:
            train = jax.jit(partial(compiled_loops.train, compiled_loops.STEPS_BY_NAME[name], steps), donate_argnums=0)
            key = jax.random.key(0)
            return [train.lower(jax.eval_shape(start), key).compile() for start in starts.values()]

        with ThreadPoolExecutor() as threads:  # Most of the time would be the compiler's.
            programs = list(threads.map(compiled, names))
        for name, pair in zip(names, programs, strict=True):
            yield {"setting": setting, "loop": name}, partial(time_pair, pair, starts, steps, rounds)


def time_pair(programs: list[Any], starts: dict[int, Callable[[], Any]], steps: int, rounds: int) -> Row:
    """Microseconds a step by capacity, the time with the large buffer over that with the small one, and its temporaries."""
    key = jax.random.key(0)

    def repeated(program: Any, loop: Any) -> Callable[[], None]:
        def call() -> None:
            nonlocal loop
            loop = jax.block_until_ready(program(loop, key))

        return call

    large = starts[max(starts)]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(large)))
    calls = {str(capacity): repeated(each, starts[capacity]()) for capacity, each in zip(starts, programs, strict=True)}
    taken = seconds(calls, rounds)
    found = {f"us_{capacity}": float(np.median(times)) / steps * 1e6 for capacity, times in taken.items()}
    over = ratio(taken[str(max(starts))], taken[str(min(starts))])[0]
    return found | {"ratio": over, "temporaries_over_buffer": programs[-1].memory_analysis().temp_size_in_bytes / held}


def seeds(small: bool) -> Rows:
    """examples/bitflip.py with more and more seeds, on all devices."""
    for number in (1, 8) if small else (1, 1024, 8, 64, 256):
        yield {"seeds": number}, partial(bitflip_rate, number, 100 if small else 2000)


def bitflip_rate(number: int, steps: int) -> Row:
    """Environment steps a second of all seeds, evaluations included, after compilation."""
    import experiment  # noqa: PLC0415 - takes its time, as gymnax and rejax do.

    import bitflip  # noqa: PLC0415

    config = bitflip.Config(seeds=number, steps=steps, eval_every=steps // 2, capacity=20_000, progress=False)
    training = experiment.over_seeds(config, partial(bitflip.start, config), partial(bitflip.advance, config))
    results = experiment.run(config, training)[1]
    names = ("steps_per_second", "compile_seconds", "buffer_bytes", "devices")
    return {name: results[name] for name in names} | {"us_a_step": 1e6 * number / results["steps_per_second"]}


def rejax(small: bool) -> Rows:
    """SAC of rejax, an update for each step, with its own replay, which does no HER, and with herjax's."""
    import rejax_sac  # noqa: PLC0415 - only where rejax is installed.

    for agents in (1, 4) if small else (1, 300):
        for replay, algorithm in (("rejax", rejax_sac.SAC), ("herjax", rejax_sac.HindsightSAC)):
            train = partial(sac_rate, algorithm, rejax_sac.Reach(), agents, 400 if small else 5000)
            yield {"replay": replay, "agents": agents}, train


def sac_rate(algorithm: Any, env: Any, agents: int, steps: int) -> Row:
    """Environment steps a second of all agents, the evaluation at the end included, after compilation."""
    settings = {"total_timesteps": steps, "eval_freq": steps, "skip_initial_evaluation": True, "buffer_size": steps}
    sac = algorithm.create(env=env, fill_buffer=200, batch_size=256, **settings)
    keys = jax.random.split(jax.random.key(0), agents)
    train = jax.jit(jax.vmap(sac.train)).lower(keys).compile()
    began = time.perf_counter()
    jax.block_until_ready(train(keys))
    taken = time.perf_counter() - began
    return {"steps_per_second": agents * steps / taken, "seconds_a_million_and_agent": taken / agents / steps * 1e6}


LOOP_SETTINGS = list(compiled_loops.SETTINGS)
MEASURES: dict[str, Callable[[bool], Rows]] = {
    "device": device,
    "loops": lambda small: loops(small, LOOP_SETTINGS[: 1 if small else 3]),
    "more_loops": lambda small: loops(small, LOOP_SETTINGS[3 : 4 if small else None]),
    "seeds": seeds,
    "rejax": rejax,
}


def line(row: Row) -> str:
    """A row as text."""
    figures = {name: f"{value:,.{2 if value < 100 else 0}f}" for name, value in row.items() if isinstance(value, float)}
    return "  ".join(f"{name} {value}" for name, value in (row | figures).items())


def main() -> None:
    """Measures; prints each row and writes it at once. A row that fails has an error, and the next one follows."""
    settings = tyro.cli(Settings)
    rows: list[Row] = []
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    for about, work in MEASURES[settings.name](settings.small):
        try:
            rows.append(about | work())
        except Exception as error:  # Such as too little memory for one of the settings.
            rows.append(about | {"error": f"{type(error).__name__}: {error}"[:500]})
        print(line(rows[-1]), flush=True)
        settings.out.write_text(json.dumps(rows, indent=1))
    if any("error" in row for row in rows):
        sys.exit("Some rows have an error.")


if __name__ == "__main__":
    main()
