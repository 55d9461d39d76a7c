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
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import tyro

import flags


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Which devices train together."""

    devices: int | None = None  # CPU devices to fake in this process; by default the devices are those that JAX finds.
    coordinator: str | None = None  # Address and port of process 0, such as 127.0.0.1:9876; by default there is one process.
    num_processes: int = 1  # Processes that train together, each started with the same flags.
    process_id: int = 0  # Which of them this one is. Process 0 shows and writes the results.

    def connect(self) -> None:
        """Fakes devices and joins the other processes, before JAX has looked for any device."""
        if self.devices is not None and self.devices < 1:
            flags.refuse(f"--devices is {self.devices}; give at least 1.")
        last = self.num_processes - 1
        if not 0 <= self.process_id <= last:
            flags.refuse(f"--process-id is {self.process_id}; give one from 0 to --num-processes - 1, {last}.")
        if self.num_processes > 1 and self.coordinator is None:
            flags.refuse(f"--num-processes is {self.num_processes}; give --coordinator too, or 1 process.")
        if self.devices is not None:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", self.devices)
        if self.coordinator is not None:
            jax.distributed.initialize(self.coordinator, self.num_processes, self.process_id)


if __name__ == "__main__":
    # gymnax computes when it is imported, and then JAX has settled on its devices.
    tyro.cli(Cluster, return_unknown_args=True, add_help=False)[0].connect()

import experiment  # noqa: E402

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import bitflip  # noqa: E402
import herjax  # noqa: E402
import returns  # noqa: E402
from bitflip import Agent, Loop  # noqa: E402

AXIS = "device"
"""The mesh axis over which environments and buffer are sharded."""
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
"""An instruction of compiled HLO that exchanges data between devices."""


@dataclasses.dataclass(frozen=True)
class Config(bitflip.Config, Cluster):
    """Trains a Double DQN with Hindsight Experience Replay on bit-flipping, on all devices together."""

    steps: flags.Stretches = 5_000  # Steps of each environment, one update each; a multiple of eval-every.
    num_envs: flags.Count = 4  # Environments of each device.
    capacity: flags.Count = 40_000  # Transitions held by each device, hindsight copies not counted; a multiple of num-envs.
    batch_size: flags.Count = 64  # Transitions that each device adds to an update.
    out: Path = Path("results/multi_device")  # Folder for results.json and success_rate.png.
    seeds: tyro.conf.Suppress[int] = 1
    log_dir: tyro.conf.Suppress[Path | None] = None
    checkpoint: tyro.conf.Suppress[Path | None] = None
    checkpoint_seconds: tyro.conf.Suppress[float] = 0.0
    progress: tyro.conf.Suppress[bool] = False


def start(config: Config, key: jax.Array) -> Loop:
    """One device's state before its first step; key and agent are the same on all devices, the environments are not."""
    key_agent, key_devices = jax.random.split(key)
    key_envs = jax.random.split(jax.random.fold_in(key_devices, jax.lax.axis_index(AXIS)), config.num_envs)
    env, params = bitflip.make_env(config)
    observation, state = jax.vmap(env.reset, (0, None))(key_envs, params)
    # What a scan carries must be declared to differ between devices before it does.
    buffer, time = jax.lax.pcast((bitflip.make_buffer(config, config.num_envs), state.time), AXIS, to="varying")
    return Loop(bitflip.start(config, key_agent).agent, buffer, (observation, state.replace(time=time)))


def update(
    config: Config, agent: Agent, batch: herjax.Sample, window: herjax.Steps | None
) -> tuple[Agent, jax.Array, jax.Array]:
    """One step of Adam on all devices' batches; returns the agent, this device's TD errors [batch_size], the mean loss []."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        errors = jax.vmap(partial(bitflip.td_error, config, agent, params))(batch, window)
        return jnp.mean(batch.weights * optax.huber_loss(errors)), errors

    # Of parameters that are not declared to vary, the gradients would already be sums over all devices.
    params = jax.lax.pcast(agent.params, AXIS, to="varying")
    (loss, errors), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, gradients = jax.lax.pmean((loss, gradients), AXIS)
    agent = agent.apply_gradients(grads=gradients)
    target_params = optax.periodic_update(agent.params, agent.target_params, agent.step, config.target_period)
    return agent.replace(target_params=target_params), errors, loss


def train_step(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Acts once in each environment, stores what happened, and learns from all devices' batches; returns the loss."""
    key_act, key_goals, key_sample = jax.random.split(key, 3)
    keys = jax.random.split(key_act, (config.num_envs, 2))
    env, transition, goal, done = jax.vmap(partial(bitflip.interact, config, loop.agent))(loop.env, keys)
    buffer = herjax.add(loop.buffer, transition)
    buffer = herjax.end_episode(buffer, goal, key_goals, done)
    beta, ratio = config.beta + (1 - config.beta) * (loop.agent.step / config.steps), config.hindsight_ratio
    batch = herjax.sample(buffer, key_sample, config.batch_size, beta=beta, hindsight_ratio=ratio, axis_name=AXIS)
    agent, errors, loss = update(config, loop.agent, batch, returns.window(config, buffer, batch))
    if config.prioritized:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(errors), axis_name=AXIS)
    return Loop(agent, buffer, env), loss


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; key and metrics, float32 [] each, are the same on all devices."""
    key_steps, key_evaluation = jax.random.split(key)
    # A device's number is that among the devices of all processes.
    keys = jax.random.split(jax.random.fold_in(key_steps, jax.lax.axis_index(AXIS)), config.eval_every)
    loop, losses = jax.lax.scan(partial(train_step, config), loop, keys)
    # Every device plays the same episodes, and so needs nothing from the others.
    return loop, {"success_rate": bitflip.evaluate(config, loop.agent, key_evaluation), "loss": jnp.mean(losses)}


def train(config: Config, key: jax.Array) -> tuple[Agent, dict[str, jax.Array]]:
    """One device's part of a run, to be mapped over `AXIS`, in one scan; key, agent and metrics are the same on all devices."""
    loop, metrics = experiment.scan(config, partial(start, config), partial(advance, config), key)
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
    buffer = jax.eval_shape(partial(bitflip.make_buffer, config, config.num_envs))
    return experiment.describe(buffer, jax.device_count()) | {
        "config": flags.plain(config),
        "eval_steps": [steps_at_once * step for step in range(config.eval_every, config.steps + 1, config.eval_every)],
        **{name: [np.asarray(values).tolist()] for name, values in metrics.items()},
        "seconds": seconds,
        "compile_seconds": compiled - began,
        "steps_per_second": config.steps * steps_at_once / seconds,
        # Nothing but an update communicates, and it stands once in the program.
        "collectives_per_update": len(COLLECTIVE.findall(training.as_text())),
        "processes": jax.process_count(),
    }


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains on the devices that there are by now, and shows what was learned."""
    config = flags.parse(Config, lambda config: jax.eval_shape(partial(bitflip.make_buffer, config, config.num_envs)), args)
    results = run(config)
    if jax.process_index() == 0:
        experiment.show(config, results, f"Bit-flipping, {config.num_bits} bits: one agent on {results['devices']} devices")
        print(f"collectives per update            {results['collectives_per_update']}")
        print(f"processes                         {results['processes']}")


if __name__ == "__main__":
    main()
