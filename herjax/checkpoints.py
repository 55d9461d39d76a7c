"""Training states on disk, by orbax: whole or refused, and never lost once saved. Imported by itself, since orbax is heavy.

A folder holds the state saved last, and `saved.json`, which names it and tells what is in it: the settings of its buffers, the
shapes of its arrays, and how long each file is and what its checksum. The moment of saving is that in which `saved.json` is
replaced: a process killed before it leaves the state before, and one killed after it the new one.
"""

import dataclasses
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import orbax.checkpoint as ocp

from herjax.rows import Layout, Pytree
from herjax.state import BufferState
from herjax.version import __version__

_RECORD = "saved.json"
_DERIVED = ("stored", "copy", "episode")  # Settings that follow from others.


Json: TypeAlias = dict[str, Any]
"""What JSON can say, by name."""


class Saved(NamedTuple):
    """What `restore` finds."""

    tree: Pytree
    notes: Json


def save(folder: Path | str, tree: Pytree, *, settings: Json | None = None, notes: Json | None = None) -> None:
    """Saves a training state; when this returns, it has taken the place of the one saved before.

    Args:
      folder: made where there is none. It holds one state.
      tree: a pytree of arrays and buffers, such as the carry of a training loop after any step.
      settings: what else must be alike where this state goes on, such as a learning rate.
      notes: what else to keep, such as the figures so far.

    Raises:
      RuntimeError: there are several processes.
    """
    _require_one_process()
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    before = _record(folder)
    name = f"state-{1 + int(before['name'].removeprefix('state-')) if before else 1}"
    with ocp.StandardCheckpointer() as checkpointer:  # Has written all of it when it is left.
        checkpointer.save(folder / name, tree, force=True)  # One killed while it saved may have left that name behind.
    record = {
        "name": name,
        "settings": (settings or {}) | describe(tree),
        "files": {
            str(file.relative_to(folder)): _fingerprint(file) for file in sorted((folder / name).rglob("*")) if file.is_file()
        },
        "notes": notes or {},
    }
    replace_file(folder / _RECORD, json.dumps(record, indent=1))
    for other in folder.glob("state-*"):
        if other.name != name:
            shutil.rmtree(other)


def restore(folder: Path | str, tree: Pytree, *, settings: Json | None = None) -> Saved | None:
    """The state saved last, and its notes; None where nothing is saved.

    Args:
      folder: that given to `save`.
      tree: a state like the one saved, such as that before the first step: its structure, functions and devices are taken, and
        no value.
      settings: those given to `save`.

    Raises:
      ValueError: the state has other settings or shapes than `tree`, or a file is not as it was written; both values are named.
      RuntimeError: there are several processes.
    """
    _require_one_process()
    folder = Path(folder).absolute()
    record = _record(folder)
    if record is None:
        return None
    asked = json.loads(json.dumps((settings or {}) | describe(tree)))
    for name in dict.fromkeys([*asked, *record["settings"]]):
        old, new = record["settings"].get(name, "absent"), asked.get(name, "absent")
        if old != new:
            raise ValueError(
                f"{folder} was saved with {name} {old}, and {name} {new} is asked for; "
                "give what it was saved with, or another folder."
            )
    for name, written in record["files"].items():
        found = _fingerprint(folder / name) if (folder / name).is_file() else "missing"
        if found != written:
            raise ValueError(f"{folder / name} is {found}, but {written} was written: it is damaged; give another folder.")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    with ocp.StandardCheckpointer() as checkpointer:
        return Saved(checkpointer.restore(folder / record["name"], abstract), record["notes"])


def describe(tree: Pytree) -> Json:
    """What must be alike for one state to go on as another: each buffer's settings, functions by name, and each array's shape.

    `restore` compares it. Where orbax is used by itself, it can be kept beside the state.
    """
    found: Json = {"herjax": __version__}
    nodes = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, BufferState))
    for path, buffer in nodes:
        if isinstance(buffer, BufferState):
            for field in dataclasses.fields(buffer.config):
                if field.name not in _DERIVED:
                    found[_dotted(path, field.name)] = _described(getattr(buffer.config, field.name))
    for path, leaf in jax.tree.leaves_with_path(tree):
        found[_dotted(path)] = f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"
    return found


def replace_file(path: Path, text: str) -> None:
    """Writes a file such that a reader, or one who comes after a crash, finds the old text or the new one, whole."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _record(folder: Path) -> Json | None:
    file = folder / _RECORD
    if not file.exists():
        return None
    try:
        record: Json = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): it is damaged; give another folder.") from error
    return record


def _fingerprint(file: Path) -> str:
    """Length and checksum, as text."""
    checksum, length = 0, 0
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            checksum, length = zlib.crc32(part, checksum), length + len(part)
    return f"{length} bytes (CRC-32 {checksum:08x})"


def _described(value: Any) -> Any:
    """A setting as JSON; of functions their name, since where they lie in memory tells nothing."""
    if isinstance(value, Layout):
        return ", ".join(f"{leaf.path} {leaf.dtype}{list(leaf.shape)}" for leaf in value.leaves)
    if callable(value):
        return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return value


def _dotted(path: tuple[Any, ...], *names: str) -> str:
    return ".".join([part for part in [jax.tree_util.keystr(path, simple=True, separator="."), *names] if part])


def _require_one_process() -> None:
    if jax.process_count() > 1:
        raise RuntimeError(
            f"there are {jax.process_count()} processes, and checkpoints knows one; use orbax's CheckpointManager, and keep "
            "describe(tree) beside the state."
        )
