"""What a run needs beside its algorithm: seeds on all devices, progress, checkpoints, logs, a table and a plot.

Import it before JAX: it gives the CPU a device for each core, and JAX reads how many there are when it is imported.
"""

import os

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(CORES))

import contextlib
import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flags import AnyFlags, Flags, counted, plain, refuse
from herjax import checkpoints


class Training(NamedTuple):
    """What `run` takes from evaluation to evaluation."""

    loop: Any  # The state before the first step: a pytree.
    advance: Callable[[Any, int], tuple[Any, Any]]  # (loop, evaluations so far) -> (loop, metrics): a dict of arrays by seed.
    facts: dict[str, Any]  # What results.json says beside metrics.


def scan(config: Flags, start: Callable[..., Any], advance: Callable[..., Any], key: jax.Array) -> tuple[Any, Any]:
    """One seed's whole training in one scan: the state at the end, and metrics by evaluation. Functions as for `over_seeds`."""
    key_start, key_run = jax.random.split(key)
    numbers = jnp.arange(config.evaluations)
    return jax.lax.scan(lambda loop, number: advance(loop, jax.random.fold_in(key_run, number)), start(key_start), numbers)


def over_seeds(config: Flags, start: Callable[..., Any], advance: Callable[..., Any]) -> Training:
    """Training of several seeds, each as in `scan`, vmapped, and shared out among the devices.

    Args:
      config: how many, and where their randomness starts.
      start: `start(key)` gives the state of one seed before its first step, with a field `buffer`.
      advance: `advance(loop, key)` takes it on to the next evaluation; returns the state and metrics, a dict of float32.
    """
    began, devices = time.perf_counter(), jax.local_devices()
    share = math.ceil(config.seeds / len(devices))
    mesh = jax.sharding.Mesh(np.asarray(devices[: math.ceil(config.seeds / share)]), ("seed",))
    # Lanes past the last seed only fill up a device: they repeat it, and nobody looks at them.
    lanes = np.minimum(np.arange(mesh.size * share), config.seeds - 1)
    keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(config.seed), config.seeds)[lanes])
    each, alike = jax.sharding.PartitionSpec("seed"), jax.sharding.PartitionSpec()
    on_devices = partial(jax.shard_map, mesh=mesh, out_specs=each, check_vma=False)

    def advance_some(loops: Any, number: jax.Array, keys: jax.Array) -> Any:
        return jax.vmap(lambda loop, key: advance(loop, jax.random.fold_in(key, number)))(loops, keys)

    loops = jax.jit(on_devices(jax.vmap(start), in_specs=each))(keys[:, 0])
    program = jax.jit(on_devices(advance_some, in_specs=(each, alike, each)), donate_argnums=0)
    compiled = program.lower(loops, jnp.int32(0), keys[:, 1]).compile()

    def advance_all(loops: Any, number: int) -> tuple[Any, Any]:
        loops, metrics = compiled(loops, jnp.int32(number), keys[:, 1])
        return loops, jax.tree.map(lambda values: np.asarray(values)[: config.seeds], metrics)

    facts = describe(jax.eval_shape(start, keys[0, 0]).buffer, mesh.size)
    return Training(loops, advance_all, facts | {"compile_seconds": time.perf_counter() - began})


def describe(buffer: Any, devices: int) -> dict[str, Any]:
    """What results.json says of a seed's buffer, and of the devices."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
    return {"buffer_bytes": size, "device": jax.local_devices()[0].device_kind, "devices": devices}


def run(
    config: Flags,
    training: Training,
    *,
    steps: int | None = None,
    label: str | None = None,
    is_over: Callable[[dict[str, Any]], bool] = lambda _: False,
) -> tuple[Any, dict[str, Any]]:
    """Trains to the end, from where a run that was killed left off if there is one.

    Args:
      config: where to save and to log.
      training: what to take on.
      steps: environment steps of each seed between evaluations; by default those are counted in steps.
      label: of the progress bar.
      is_over: says of the figures so far whether to stop before.

    Returns:
      The state at the end, and what results.json holds: each metric by seed and evaluation.
    """
    (loop, figures), evaluations, steps = restore(config, training), config.evaluations, steps or config.eval_every
    saved, taken, writers = time.monotonic(), len(figures["eval_steps"]), make_writers(config)
    size = {"total": evaluations * steps * config.seeds, "initial": taken * steps * config.seeds}
    with tqdm(desc=label, unit="step", unit_scale=True, disable=not config.progress, **size) as bar:
        while taken < evaluations and not is_over(figures):
            began = time.perf_counter()
            loop, metrics = training.advance(loop, taken)
            figures["seconds"] += time.perf_counter() - began
            taken += 1
            figures["eval_steps"].append(taken * steps)
            for name, values in metrics.items():
                for curve, value in zip(figures.setdefault(name, [[] for _ in values]), values.tolist(), strict=True):
                    curve.append(value)
                for writer, value in zip(writers, values if values.ndim == 1 else (), strict=False):  # Scalars alone.
                    writer.add_scalar(name, value, taken * steps)
            bar.set_postfix_str(f"success {np.mean(metrics['success_rate']):.2f}", refresh=False)
            bar.update(steps * config.seeds)
            is_last = taken == evaluations or is_over(figures)
            if config.checkpoint is not None and (is_last or time.monotonic() - saved >= config.checkpoint_seconds):
                checkpoints.save(config.checkpoint, loop, settings=training_settings(config, training), notes=figures)
                saved = time.monotonic()
    for writer in writers:
        writer.close()
    rate = taken * steps * config.seeds / figures["seconds"]
    return loop, {"config": plain(config), **figures, **training.facts, "steps_per_second": rate}


def restore(config: Flags, training: Training) -> tuple[Any, dict[str, Any]]:
    """The state and figures of a run that was killed, or its beginning where nothing is saved."""
    new = (training.loop, {"eval_steps": [], "seconds": 0.0})
    if config.checkpoint is None:
        return new
    try:
        return checkpoints.restore(config.checkpoint, training.loop, settings=training_settings(config, training)) or new
    except ValueError as error:
        refuse(error)


def training_settings(config: Flags, training: Training) -> dict[str, Any]:
    """What a run must go on with; over more or fewer devices its seeds would be shared out, and rounded, differently."""
    return {"devices": training.facts["devices"]} | counted(config)


def kept(folder: Path, config: AnyFlags, train: Callable[[AnyFlags], dict[str, Any]]) -> dict[str, Any]:
    """The results of `train(config)`, and "config": read from the folder's runs.json, or else trained, and added to it.

    What is trained has a checkpoint in the folder until it is finished, so that a run that is killed goes on. How many devices
    there were does not count here, although seeds that are shared out otherwise are rounded otherwise.
    """
    file, settings = folder / "runs.json", counted(config)
    unfinished = folder / "unfinished" / f"{zlib.crc32(json.dumps(settings).encode()):08x}"
    found = next((record for record in read_records(file) if record["config"] == settings), None)
    if found is None:
        found = {"config": settings} | train(dataclasses.replace(config, checkpoint=unfinished))
        folder.mkdir(parents=True, exist_ok=True)
        # Read again: another process may have added to it in the meantime.
        checkpoints.replace_file(file, json.dumps([*read_records(file), found], indent=1))
    checkpoints.discard(unfinished)
    return found


def read_records(file: Path) -> list[Any]:
    """What `kept` has written; nothing if there is no such file."""
    records = json.loads(file.read_text()) if file.exists() else []
    if not isinstance(records, list):
        refuse(f"{file} is of another program; give another --out.")
    return records


def make_writers(config: Flags) -> list[Any]:
    """A TensorBoard writer for each seed, if there is a folder for them."""
    if config.log_dir is None:
        return []
    from tensorboardX import SummaryWriter  # noqa: PLC0415 - only where asked for.

    return [SummaryWriter(str(config.log_dir / f"seed_{seed}")) for seed in range(config.seeds)]


def table(results: dict[str, Any], rows: int = 15) -> str:
    """The success rate by step, and what the run cost, as text."""
    rates = np.asarray(results["success_rate"])  # [seeds, E]
    lines = [f"{'step':>9} {'mean':>6} {'std':>6} {'min':>6} {'max':>6}"]
    for e in np.unique(np.linspace(0, rates.shape[1] - 1, rows).round().astype(int)):
        at = rates[:, e]
        lines.append(f"{results['eval_steps'][e]:>9,} {at.mean():6.2f} {at.std():6.2f} {at.min():6.2f} {at.max():6.2f}")
    last = " ".join(f"{rate:.2f}" for rate in rates[:, -10:].mean(axis=1))
    lines += [
        "",
        f"last ten evaluations, each seed   {last}",
        f"training                          {results['seconds']:.1f} s",
        f"compilation                       {results['compile_seconds']:.1f} s",
        f"steps per second, all seeds       {results['steps_per_second']:,.0f}",
        f"buffer, each seed                 {results['buffer_bytes'] / 2**20:.1f} MiB",
        f"device                            {results['devices']} x {results['device']}",
    ]
    return "\n".join(lines)


def show(config: Flags, results: dict[str, Any], title: str, *more: str) -> None:
    """Prints the table, and writes results.json and a plot of every seed's success; `more` are files already written."""
    print(table(results))
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoints.replace_file(config.out / "results.json", json.dumps(results, indent=1))
    rates = np.asarray(results["success_rate"])
    with axes(config.out / "success_rate.png") as drawn:
        drawn.plot(results["eval_steps"], rates.T, color="tab:blue", alpha=0.25, linewidth=0.8)
        label = f"mean of {len(rates)} seeds"
        drawn.plot(results["eval_steps"], rates.mean(axis=0), color="tab:blue", linewidth=2, label=label)
        drawn.set(title=title, xlabel="environment steps", ylabel="success rate (greedy)")
        drawn.legend(loc="lower right")
    print(f"written                           {config.out}: {', '.join(('results.json', 'success_rate.png', *more))}")


@contextlib.contextmanager
def axes(path: Path, panels: int = 1, **options: Any) -> Iterator[Any]:
    """Axes to draw success on, or several side by side, saved to `path` as a picture."""
    import matplotlib  # noqa: PLC0415 - only the end of a run needs it.

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, drawn = plt.subplots(1, panels, layout="constrained", sharey=True, **{"figsize": (7, 4)} | options)
    yield drawn
    for each in np.ravel(drawn):
        each.set_ylim(-0.03, 1.03)
        each.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
