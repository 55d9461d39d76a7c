"""Bit-flipping learned by all devices together: data-parallel Double DQN with HER and prioritised replay, inside one scan.

Every device steps its own environments and holds and samples its own shard of the buffer. The agent is the same on all of
them, because it learns from the mean of their gradients; only those and a few scalars travel between devices.

python examples/multi_device.py                # all the devices that JAX finds
python examples/multi_device.py --devices 8    # eight fake ones, on the CPU

Over several processes, here two with a CPU device each; the numbers are those of one process with two devices:

python examples/multi_device.py --coordinator 127.0.0.1:9876 --num-processes 2 --process-id 1 --devices 1 &
python examples/multi_device.py --coordinator 127.0.0.1:9876 --num-processes 2 --process-id 0 --devices 1
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import jax
import tyro


def refuse(error: object) -> NoReturn:
    """Says in one line what is wrong with the flags, and ends the program."""
    print(f"multi_device.py: {error}", file=sys.stderr)
    sys.exit(2)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Which devices train together."""

    devices: int | None = None
    """CPU devices to fake in this process; by default the devices are those that JAX finds."""
    coordinator: str | None = None
    """Address and port of process 0, such as 127.0.0.1:9876; by default there is one process."""
    num_processes: int = 1
    """Processes that train together, each started with the same flags."""
    process_id: int = 0
    """Which of them this one is. Process 0 shows and writes the results."""

    def connect(self) -> None:
        """Fakes devices and joins the other processes, before JAX has looked for any device."""
        if self.devices is not None and self.devices < 1:
            refuse(f"--devices is {self.devices}; give at least 1.")
        if not 0 <= self.process_id < self.num_processes:
            refuse(f"--process-id is {self.process_id}; give one from 0 to --num-processes - 1, {self.num_processes - 1}.")
        if self.num_processes > 1 and self.coordinator is None:
            refuse(f"--num-processes is {self.num_processes}; give --coordinator too, or 1 process.")
        if self.devices is not None:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", self.devices)
        if self.coordinator is not None:
            jax.distributed.initialize(self.coordinator, self.num_processes, self.process_id)


if __name__ == "__main__":
    # gymnax computes when it is imported, and then JAX has settled on its devices.
    tyro.cli(Cluster, return_unknown_args=True, add_help=False)[0].connect()

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import bitflip  # noqa: E402
import herjax  # noqa: E402
from bitflip import Agent, Loop, Metrics, Outcome  # noqa: E402

AXIS = "device"
"""The mesh axis over which environments and buffer are sharded."""
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
"""An instruction of compiled HLO that exchanges data between devices."""


@dataclasses.dataclass(frozen=True)
class Config(bitflip.Config, Cluster):
    """Trains a Double DQN with Hindsight Experience Replay on bit-flipping, on all devices together."""

    steps: int = 5_000
    """Steps of each environment, one update each; a multiple of eval-every."""
    num_envs: int = 4
    """Environments of each device."""
    capacity: int = 40_000
    """Transitions held by each device, hindsight copies not counted; a multiple of num-envs."""
    batch_size: int = 64
    """Transitions that each device adds to an update."""
    out: Path = Path("results/multi_device")
    """Folder for results.json."""
    seeds: tyro.conf.Suppress[int] = 1
    log_dir: tyro.conf.Suppress[Path | None] = None
    progress: tyro.conf.Suppress[bool] = False


def make_buffer(config: Config) -> herjax.BufferState:
    """One device's empty shard."""
    return bitflip.make_buffer(config, config.num_envs)


def start(config: Config, key_agent: jax.Array, key_env: jax.Array) -> Loop:
    """One device's state before its first step; `key_agent` is the same on all devices, `key_env` is not."""
    env, params = bitflip.make_env(config)
    observation, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(key_env, config.num_envs), params)
    # What a scan carries must be declared to differ between devices before it does.
    buffer, time = jax.lax.pcast((make_buffer(config), env_state.time), AXIS, to="varying")
    return Loop(bitflip.start(config, key_agent).agent, buffer, env_state.replace(time=time), observation)


def interact(config: Config, loop: Loop, key: jax.Array) -> Outcome:
    """Takes one step in each of this device's environments; every field of the outcome is [num_envs, ...]."""
    keys = jax.random.split(key, (2, config.num_envs))
    return jax.vmap(partial(bitflip.interact, config), (Loop(None, None, 0, 0), 0, 0))(loop, *keys)


def update(config: Config, agent: Agent, batch: herjax.Sample, step: jax.Array) -> tuple[Agent, jax.Array, jax.Array]:
    """One step of Adam on all devices' batches; returns the agent, this device's TD errors [batch_size], the mean loss []."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        errors = bitflip.td_errors(config, params, agent.target_params, batch)
        return jnp.mean(batch.weights * optax.huber_loss(errors)), errors

    # Of parameters that are not declared to vary, the gradients would already be sums over all devices.
    params = jax.lax.pcast(agent.params, AXIS, to="varying")
    (loss, errors), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, gradients = jax.lax.pmean((loss, gradients), AXIS)
    updates, opt_state = optax.adam(config.learning_rate).update(gradients, agent.opt_state)
    params = optax.apply_updates(agent.params, updates)
    target_params = optax.periodic_update(params, agent.target_params, step + 1, config.target_period)
    return Agent(params, target_params, opt_state), errors, loss


def train_step(config: Config, loop: Loop, step_and_key: tuple[jax.Array, jax.Array]) -> tuple[Loop, jax.Array]:
    """Acts once in each environment, stores what happened, and learns from all devices' batches; returns the loss."""
    step, key = step_and_key
    key_act, key_goals, key_sample = jax.random.split(key, 3)
    outcome = interact(config, loop, key_act)
    buffer = herjax.add(loop.buffer, outcome.transition)
    buffer = herjax.end_episode(buffer, outcome.goal, key_goals, done=outcome.done)
    beta = config.beta + (1 - config.beta) * (step / config.steps)
    ratio = config.hindsight_ratio
    batch = herjax.sample(buffer, key_sample, config.batch_size, beta=beta, hindsight_ratio=ratio, axis_name=AXIS)
    agent, errors, loss = update(config, loop.agent, batch, step)
    if config.prioritized:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(errors), axis_name=AXIS)
    return Loop(agent, buffer, outcome.env_state, outcome.observation), loss


def train(config: Config, key: jax.Array) -> tuple[Agent, Metrics]:
    """One device's part of a run, to be mapped over `AXIS`: a scan over evaluations of a scan over steps.

    Args:
      config: the settings, static.
      key: all of the run's randomness, the same on all devices; used up.

    Returns:
      The agent and the metrics, float32 [E], the same on all devices.
    """
    key_agent, key_eval, key_devices = jax.random.split(key, 3)
    # A device's number is that among the devices of all processes.
    key_env, key_steps = jax.random.split(jax.random.fold_in(key_devices, jax.lax.axis_index(AXIS)))
    steps = jnp.arange(config.steps).reshape(-1, config.eval_every)
    keys = jax.random.split(key_steps, steps.shape)
    eval_keys = jax.random.split(key_eval, (len(steps), 1 + config.eval_episodes))

    def train_and_evaluate(loop: Loop, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Loop, Metrics]:
        steps, keys, eval_keys = xs
        loop, losses = jax.lax.scan(partial(train_step, config), loop, (steps, keys))
        # Every device plays the same episodes, and so needs nothing from the others.
        return loop, Metrics(bitflip.evaluate(config, loop.agent.params, eval_keys), jnp.mean(losses))

    loop, metrics = jax.lax.scan(train_and_evaluate, start(config, key_agent, key_env), (steps, keys, eval_keys))
    return loop.agent, metrics


def compile_training(config: Config, key: jax.Array) -> jax.stages.Compiled:
    """`train` on all devices of all processes, from a key to the agent and the metrics."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), (AXIS,))
    spec = jax.sharding.PartitionSpec()
    return jax.jit(jax.shard_map(partial(train, config), mesh=mesh, in_specs=spec, out_specs=spec)).lower(key).compile()


def run(config: Config) -> dict[str, Any]:
    """Trains, and returns what results.json holds."""
    key = jax.random.key(config.seed)
    began = perf_counter()
    training = compile_training(config, key)
    compiled = perf_counter()
    _, metrics = jax.block_until_ready(training(key))
    seconds = perf_counter() - compiled
    steps_at_once = config.num_envs * jax.device_count()
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()},
        "eval_steps": [steps_at_once * step for step in range(config.eval_every, config.steps + 1, config.eval_every)],
        "success_rate": np.asarray(metrics.success_rate).tolist(),
        "loss": np.asarray(metrics.loss).tolist(),
        "seconds": seconds,
        "compile_seconds": compiled - began,
        "steps_per_second": config.steps * steps_at_once / seconds,
        # Nothing but an update communicates, and it stands once in the program.
        "collectives_per_update": len(COLLECTIVE.findall(training.as_text())),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def table(results: dict[str, Any], rows: int = 15) -> str:
    """The success rate by environment steps of all devices, and what the run cost, as text."""
    steps, rates = results["eval_steps"], results["success_rate"]
    shown = np.unique(np.linspace(0, len(steps) - 1, rows).round().astype(int))
    lines = [
        f"{'steps':>12} {'success':>8}",
        *(f"{steps[e]:>12,} {rates[e]:8.2f}" for e in shown),
        "",
        f"last ten evaluations              {np.mean(rates[-10:]):.2f}",
        f"training                          {results['seconds']:.1f} s",
        f"compilation                       {results['compile_seconds']:.1f} s",
        f"environment steps per second      {results['steps_per_second']:,.0f}",
        f"collectives per update            {results['collectives_per_update']}",
        f"devices                           {results['devices']} x {results['device']}, processes: {results['processes']}",
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains on the devices that there are by now, and shows what was learned."""
    config = tyro.cli(Config, args=args)
    try:
        bitflip.check(config)
        jax.eval_shape(partial(make_buffer, config))
    except ValueError as error:
        refuse(error)
    results = run(config)
    if jax.process_index() == 0:
        print(table(results))
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "results.json").write_text(json.dumps(results, indent=1))
        print(f"written                           {config.out / 'results.json'}")


if __name__ == "__main__":
    main()
