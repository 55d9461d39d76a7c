"""A training loop that saves every step of it, to be killed: `python saver.py FOLDER`.

It says, a line each, `restored NUMBER DIGEST` and then `saved NUMBER` after every save that has returned.
"""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import herjax
from herjax import checkpoints
from numbered import make


def start(**options: object) -> herjax.BufferState:
    """An empty prioritised buffer, which soon is full."""
    return make(**({"capacity": 64, "terminated_fn": None, "priority_exponent": 0.6} | options))


@jax.jit
def step(buffer: herjax.BufferState, number: jax.Array) -> herjax.BufferState:
    """Step `number` of the loop: adds, ends each episode of 4 steps, samples, and updates priorities."""
    key_end, key_sample, key_priorities = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)
    shape = () if buffer.config.num_envs is None else (buffer.config.num_envs,)
    numbers = jnp.full(shape, number)
    buffer = herjax.end_episode(herjax.add(buffer, numbers), -1 - numbers, key_end, number % 4 == 3)
    batch = herjax.sample(buffer, key_sample, 16)
    if buffer.tree is None:
        return buffer
    return herjax.update_priorities(buffer, batch.indices, jax.random.exponential(key_priorities, (16,)))


def digest(buffer: herjax.BufferState) -> str:
    """Tells states apart, bit by bit."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(buffer))).hexdigest()


def main(folder: str) -> None:
    """Goes on from what is saved in the folder, for ever."""
    buffer, number = start(), 0
    if (saved := checkpoints.restore(folder, buffer)) is not None:
        buffer, number = saved.tree, saved.notes["number"]
    jax.block_until_ready(step(buffer, jnp.int32(number)))  # Compiled now, so that hardly anything but saving is left to do.
    print("restored", number, digest(buffer), flush=True)
    while True:
        buffer, number = step(buffer, jnp.int32(number)), number + 1
        checkpoints.save(folder, buffer, notes={"number": number})
        print("saved", number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
