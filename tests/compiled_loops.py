"""Training loops of many shapes, and what XLA makes of them: `python tests/compiled_loops.py --platform cuda`.

A loop is in place if the temporaries of the compiled loop are small beside the buffer. No GPU or TPU is needed to compile for
one, only its plugin: `pip install ".[test-cuda]"` or `".[test-tpu]"`.
"""

import json
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies

import herjax

CAPACITY, LENGTH, BATCH, STEPS, SIZE = 1_600_000, 8, 16, 10, 6
H100 = Path(__file__).with_name("h100.txtpb")

PAIR = {"next_observation": "observation"}
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritised": {"priority_exponent": 0.6},
    "16 envs": {"priority_exponent": 0.6, "num_envs": 16},
    "late goals": {"relabel": "sample", "strategy": "episode"},
    "late goals, prioritised": {"relabel": "sample", "strategy": "episode", "priority_exponent": 0.6},
    "running": {"relabel": "sample", "sample_running": True},
    "running, prioritised": {"relabel": "sample", "sample_running": True, "priority_exponent": 0.6},
    "next of, uniform": {"next_of": PAIR},
    "next of, prioritised, 16 envs": {"next_of": PAIR, "priority_exponent": 0.6, "num_envs": 16},
    "next of, late goals, prioritised": {"next_of": PAIR, "relabel": "sample", "strategy": "episode", "priority_exponent": 0.6},
    "next of, running": {"next_of": PAIR, "relabel": "sample", "sample_running": True},
    "next of, running, prioritised": {
        "next_of": PAIR,
        "relabel": "sample",
        "sample_running": True,
        "priority_exponent": 0.6,
        "num_steps": 2,
        "discount": 0.9,
    },
}


class Transition(NamedTuple):
    """A step: what was seen before and after it."""

    observation: jax.Array  # float32 [SIZE], as the next one
    next_observation: jax.Array


class Loop(NamedTuple):
    """The carry of a loop: a buffer, and an agent."""

    buffer: herjax.BufferState
    params: jax.Array  # float32 [SIZE]


Step: TypeAlias = Callable[[Loop, jax.Array, jax.Array], Loop]
"""A step of a loop, given a key and the number of the step, int32 []."""


def achieved(transition: Transition) -> jax.Array:
    """All that is seen is a goal."""
    return transition.next_observation


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """The distance of both."""
    return -jnp.sum(jnp.abs(transition.next_observation - goal))


def start(setting: str, capacity: int = CAPACITY) -> Loop:
    """An empty buffer, and an agent."""
    example = Transition(jnp.zeros(SIZE), jnp.zeros(SIZE))
    functions = {"goal_fn": achieved, "reward_fn": reward}
    buffer = herjax.init(example, capacity=capacity, max_episode_length=LENGTH, **functions, **SETTINGS[setting])
    return Loop(buffer, jnp.zeros(SIZE))


def envs(buffer: herjax.BufferState) -> tuple[int, ...]:
    """The leading axes of what environments show."""
    return () if buffer.config.num_envs is None else (buffer.config.num_envs,)


def store(buffer: herjax.BufferState, params: jax.Array, key: jax.Array) -> herjax.BufferState:
    """Stores what a policy with `params` did."""
    shape = (*envs(buffer), SIZE)
    goal = {"goal": jnp.ones(shape)} if buffer.config.sample_running else {}
    before, after = jnp.broadcast_to(params, (2, *shape)) + jax.random.normal(key, (2, *shape))
    return herjax.add(buffer, Transition(before, after), **goal)


def end(buffer: herjax.BufferState, key: jax.Array, done: jax.Array | bool) -> herjax.BufferState:
    """Ends the episode, if `done`."""
    goal = None if buffer.config.sample_running else jnp.ones((*envs(buffer), SIZE))
    return herjax.end_episode(buffer, goal, key, jnp.broadcast_to(done, envs(buffer)))


def act(loop: Loop, params: jax.Array, key: jax.Array) -> herjax.BufferState:
    """Stores what a policy with `params` did, and ends the episode now and then."""
    key_noise, key_done, key_goals = jax.random.split(key, 3)
    done = jax.random.bernoulli(key_done, 0.2, envs(loop.buffer))
    return end(store(loop.buffer, params, key_noise), key_goals, done)


def update(params: jax.Array, batch: herjax.Sample) -> tuple[jax.Array, jax.Array]:
    """New parameters, and the TD errors."""
    errors = batch.reward - (batch.last.next_observation * params[None]).sum(1) + batch.goal.sum(1)
    return params + 1e-3 * (batch.weights * errors).mean() * batch.transition.observation.mean(0), jnp.abs(errors)


def learn(loop: Loop, key: jax.Array) -> Loop:
    """An update from a batch, and of its priorities if there are any."""
    batch = herjax.sample(loop.buffer, key, BATCH)
    params, errors = update(loop.params, batch)
    prioritised = loop.buffer.config.priority_exponent is not None
    return Loop(herjax.update_priorities(loop.buffer, batch.indices, errors) if prioritised else loop.buffer, params)


def acted(loop: Loop, key: jax.Array) -> Loop:
    """Acts."""
    return Loop(act(loop, loop.params, key), loop.params)


def same(loop: Loop) -> Loop:
    """Does nothing."""
    return loop


def act_then_learn(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """The order of README."""
    return learn(acted(loop, key), key)


def learn_then_act(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """Acts with what was learned."""
    return acted(learn(loop, key), key)


def learn_then_act_as_before(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """Acts with the parameters from before."""
    learned = learn(loop, key)
    return Loop(act(Loop(learned.buffer, loop.params), loop.params, key), learned.params)


def learn_then_act_after(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """The same with `after`."""
    batch = herjax.sample(loop.buffer, key, BATCH)
    params, _ = update(loop.params, batch)
    return Loop(act(Loop(herjax.after(loop.buffer, batch), loop.params), loop.params, key), params)


def learn_now_and_then(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A conditional around the learning, which skips most steps."""
    return jax.lax.cond(number % 4 == 3, lambda loop: learn(loop, key), same, acted(loop, key))


def skip_now_and_then(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """The same conditional, the other way round."""
    return jax.lax.cond(number % 4 < 3, same, lambda loop: learn(loop, key), acted(loop, key))


def learn_when_ready(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """A conditional on what differs by run, made the same in all."""
    loop = acted(loop, key)
    ready = herjax.in_all_runs(herjax.can_sample(loop.buffer))
    return jax.lax.cond(ready, lambda loop: learn(loop, key), same, loop)


def learn_when_each_is_ready(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """The same without `in_all_runs`: not among the loops below, since of several runs it copies all."""
    loop = acted(loop, key)
    return jax.lax.cond(herjax.can_sample(loop.buffer), lambda loop: learn(loop, key), same, loop)


def learn_in_a_loop(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A loop of one turn or none instead of a conditional."""
    turns = (number % 4 == 3).astype(jnp.int32)
    return jax.lax.fori_loop(0, turns, lambda _, loop: learn(loop, key), acted(loop, key))


def end_in_a_branch(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A conditional around the end of episodes."""
    key_noise, key_goals, key_learn = jax.random.split(key, 3)
    buffer = store(loop.buffer, loop.params, key_noise)
    buffer = jax.lax.cond(number % 5 == 4, lambda buffer: end(buffer, key_goals, True), lambda buffer: buffer, buffer)
    return learn(loop._replace(buffer=buffer), key_learn)


def act_in_a_branch(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A conditional around the acting."""
    return learn(jax.lax.cond(number % 3 > 0, lambda loop: acted(loop, key), same, loop), key)


def all_in_a_branch(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A conditional around everything."""
    return jax.lax.cond(number % 3 > 0, lambda loop: act_then_learn(loop, key, number), same, loop)


def two_branches_write(loop: Loop, key: jax.Array, number: jax.Array) -> Loop:
    """A warm-up as a conditional both of whose branches act."""
    return jax.lax.cond(number > 5, lambda loop: act_then_learn(loop, key, number), lambda loop: acted(loop, key), loop)


def many_updates(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """Updates by an inner scan."""
    return jax.lax.scan(lambda loop, key: (learn(loop, key), None), acted(loop, key), jax.random.split(key, 3))[0]


def two_batches(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """Two batches a step, the first of which no update depends on."""
    loop = acted(loop, key)
    other = herjax.sample(loop.buffer, jax.random.fold_in(key, 1), BATCH)
    loop = learn(loop, key)
    return loop._replace(params=loop.params + other.transition.observation.mean(0))


def two_batches_after(loop: Loop, key: jax.Array, _: jax.Array) -> Loop:
    """The same with `after`."""
    loop = acted(loop, key)
    other = herjax.sample(loop.buffer, jax.random.fold_in(key, 1), BATCH)
    loop = learn(loop._replace(buffer=herjax.after(loop.buffer, other)), key)
    return loop._replace(params=loop.params + other.transition.observation.mean(0))


STEPS_BY_NAME: dict[str, Step] = {
    step.__name__: step
    for step in (
        act_then_learn,
        learn_then_act,
        learn_then_act_as_before,
        learn_then_act_after,
        learn_now_and_then,
        skip_now_and_then,
        learn_in_a_loop,
        end_in_a_branch,
        act_in_a_branch,
        all_in_a_branch,
        two_branches_write,
        many_updates,
        two_batches,
        two_batches_after,
        learn_when_ready,
    )
}


def train(step: Step, steps: int, loop: Loop, key: jax.Array) -> Loop:
    """A loop of as many steps."""
    xs = (jax.random.split(key, steps), jnp.arange(steps))
    return jax.lax.scan(lambda loop, x: (step(loop, *x), None), loop, xs)[0]


def device(platform: str) -> jax.Device:
    """A device of that platform, which need not be there: this CPU, an H100, or a chip of a TPU v5e."""
    if platform == "cpu":
        return jax.devices("cpu")[0]
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    return topologies.get_topology_desc(platform="cuda", target_config=H100.read_text(), topology="1x1x1").devices[0]


def temporaries(step: Step, setting: str, platform: str = "cpu", seeds: int = 1) -> float:
    """Bytes of the compiled loop's temporaries over those of its buffer. It is compiled, not run."""

    def arguments(key: jax.Array) -> tuple[Loop, jax.Array]:
        return start(setting), key

    keys = jax.random.split(jax.random.key(0), seeds)
    sharding = jax.sharding.SingleDeviceSharding(device(platform))
    whole = partial(train, step, STEPS)
    if seeds == 1:
        shapes = jax.eval_shape(arguments, keys[0])
    else:
        whole, shapes = jax.vmap(whole), jax.eval_shape(jax.vmap(arguments), keys)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    lowered = jax.jit(whole, donate_argnums=0).trace(*shapes).lower(lowering_platforms=(platform,))
    compiled = lowered.compile(as_users_do() if platform == "cpu" else None)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[0]))
    return compiled.memory_analysis().temp_size_in_bytes / held


@cache
def as_users_do() -> dict[str, bool] | None:
    """Options for the CPU against those of conftest.py; none for an XLA that does not know them."""
    options = {"xla_cpu_use_fusion_emitters": True}
    try:
        jax.jit(jnp.negative).lower(0).compile(options)
    except RuntimeError:  # An XLA that does not know an option says so.
        return None
    return options


def main(platform: str = "cpu", seeds: int = 1, only: tuple[str, ...] = (), settings: tuple[str, ...] = ()) -> None:
    """Compiles every loop, and prints its temporaries over its buffer, as JSON by setting and loop.

    Args:
      platform: cpu, cuda or tpu.
      seeds: buffers vmapped.
      only: names of loops; all by default.
      settings: of the buffer; all by default.
    """
    jax.config.update("jax_platforms", "cpu")  # Nothing is run elsewhere.
    for name, value in {"SKIP_MDS_QUERY": "1", "ACCELERATOR_TYPE": "v5litepod-4", "WORKER_HOSTNAMES": "localhost"}.items():
        os.environ.setdefault(f"TPU_{name}", value)  # Or libtpu waits for a machine.
    found = {
        setting: {name: temporaries(STEPS_BY_NAME[name], setting, platform, seeds) for name in only or STEPS_BY_NAME}
        for setting in settings or SETTINGS
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
