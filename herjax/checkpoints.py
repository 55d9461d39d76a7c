"""Training states on disk, by orbax: whole or refused, and no kill loses what was saved. Imported by itself: orbax is heavy.

A folder holds the state saved last, and `saved.json`, which names it and tells what is in it: the caller's settings, those of
its buffers, the shapes of its arrays, and each file's length and checksum. The moment of saving is that in which `saved.json`
is replaced: a process killed before it leaves the state before, and one killed after it the new one.
"""

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from herjax.records import Json, describe, leaves_by_name, notes_as_json, settings_as_json
from herjax.rows import Pytree

__all__ = ["Saved", "describe", "discard", "replace_file", "restore", "save"]

_FORMAT = 5  # Of saved.json and of a buffer's rows: higher where older states must not be restored.
_RECORD = "saved.json"
_NAMES = re.compile(r"state-(\d+)(\.orbax-checkpoint-tmp.*)?")  # Of folders that are ours, finished or not.


class Saved(NamedTuple):
    """What `restore` finds."""

    tree: Pytree
    notes: Json


def save(folder: Path | str, tree: Pytree, *, settings: Json | None = None, notes: Json | None = None) -> None:
    """Saves a training state; when this returns, it has taken the place of the one saved before.

    Until then both need room. Only one process at a time may use a folder.

    Args:
      folder: made where there is none. It holds one state, `state-1`, `state-2` and so on; what has other names is left alone.
      tree: a pytree of arrays, numbers and buffers, such as the carry of a training loop after any step.
      settings: what else must be alike where this state goes on, such as a learning rate: numbers, text, arrays, lists, dicts;
        functions count by their names.
      notes: what else to keep, such as the figures so far: numbers, text, lists, dicts. An array comes back as a list.

    Raises:
      RuntimeError: there are several processes.
      ValueError: what the folder holds is damaged, or two parts of the tree have one name.
      TypeError: a part of the tree, of the settings or of the notes is of a kind that would not come back. As with all of
        these, what was saved before stays.

    Example:
      >>> import jax.numpy as jnp, herjax.checkpoints as checkpoints
      >>> checkpoints.save("results/run", {"steps": jnp.int32(3)}, notes={"best": 0.5})
      >>> checkpoints.restore("results/run", {"steps": jnp.int32(0)}).notes
      {'best': 0.5}
    """
    _require_one_process()
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": _FORMAT,
        "settings": settings_as_json(settings or {}),
        "state": describe(tree),
        "notes": notes_as_json(notes or {}),
    }
    before = _read_record(folder)
    name = f"state-{1 + _number(before['name']) if before else 1}"
    if arrays := {name: _array(leaf) for name, leaf in leaves_by_name(tree).items() if np.size(leaf)}:
        with ocp.StandardCheckpointer() as checkpointer:  # Has written all of it when it is left.
            checkpointer.save(folder / name, arrays, force=True)  # One killed while it saved may have left that name behind.
    files = {str(file.relative_to(folder)): _fingerprint(file) for file in (folder / name).rglob("*") if file.is_file()}
    _write_record(folder, record | {"name": name, "files": files})
    _delete_states(folder, but=name)


def restore(folder: Path | str, tree: Pytree, *, settings: Json | None = None) -> Saved | None:
    """The state saved last, and its notes; None where nothing is saved.

    Args:
      folder: that given to `save`.
      tree: a state like the one saved, such as that before the first step, or its `jax.ShapeDtypeStruct`s: its structure,
        functions and devices are taken, and no value.
      settings: those given to `save`.

    Raises:
      ValueError: the state has other settings or shapes than these, or a file is not as it was written; both values are named.
      RuntimeError: there are several processes.

    Example:
      >>> import jax.numpy as jnp, herjax.checkpoints as checkpoints
      >>> checkpoints.save("results/run", {"steps": jnp.int32(3)})
      >>> int(checkpoints.restore("results/run", {"steps": jnp.int32(0)}).tree["steps"])
      3
    """
    _require_one_process()
    folder = Path(folder).absolute()
    record = _read_record(folder)
    if record is None:
        return None
    _compare(folder, {"format": record["format"]}, {"format": _FORMAT})
    _compare(folder, record["settings"], settings_as_json(settings or {}))
    _compare(folder, record["state"], describe(tree))
    for name, written in record["files"].items():
        found = _fingerprint(folder / name) if (folder / name).is_file() else "missing"
        if found != written:
            raise ValueError(f"{folder / name} is {found}, but {written} was written: it is damaged; give another folder.")
    leaves, arrays = leaves_by_name(tree), {}
    if abstract := {name: ocp.utils.to_shape_dtype_struct(_array(leaf)) for name, leaf in leaves.items() if np.size(leaf)}:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder / record["name"], abstract)
    restored = [_like(leaf, arrays.get(name)) for name, leaf in leaves.items()]
    return Saved(jax.tree.unflatten(jax.tree.structure(tree), restored), record["notes"])


def discard(folder: Path | str) -> None:
    """Deletes what is saved in a folder, and the folder, if nothing else is in it; killed half-way, nothing counts as saved.

    Example:
      >>> import jax.numpy as jnp, herjax.checkpoints as checkpoints
      >>> checkpoints.save("results/run", {"steps": jnp.int32(3)})
      >>> checkpoints.discard("results/run")
      >>> checkpoints.restore("results/run", {"steps": jnp.int32(0)}) is None
      True
    """
    folder = Path(folder)
    (folder / _RECORD).unlink(missing_ok=True)
    _delete_states(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _array(leaf: Any) -> Any:
    """What orbax stores of a leaf: it takes no scalar of NumPy's."""
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _like(leaf: Any, found: Any) -> Any:
    """What was found, as the leaf is that was asked for; an array without elements is not stored."""
    if found is None:
        return jax.numpy.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return found[()] if isinstance(leaf, np.generic) else found


def replace_file(path: Path, text: str) -> None:
    """Writes a file such that a reader, or one who comes after a crash, finds the old text or the new one, whole.

    Example:
      >>> import pathlib, herjax.checkpoints as checkpoints
      >>> checkpoints.replace_file(pathlib.Path("notes.txt"), "all of it")
      >>> pathlib.Path("notes.txt").read_text()
      'all of it'
    """
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _compare(folder: Path, saved: Json, asked: Json) -> None:
    for name in dict.fromkeys([*asked, *saved]):
        old, new = saved.get(name, "absent"), asked.get(name, "absent")
        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):  # As text, since NaN differs from itself.
            raise ValueError(
                f"{folder} was saved with {name} {old}, and {name} {new} is asked for; "
                "give what it was saved with, or another folder."
            )


def _write_record(folder: Path, record: Json) -> None:
    text = json.dumps(record)
    replace_file(folder / _RECORD, json.dumps({"crc32": _crc32(text), "record": record}, indent=1))


def _read_record(folder: Path) -> Json | None:
    file = folder / _RECORD
    if not file.exists():
        return None
    try:
        whole = json.loads(file.read_text())
        record: Json = whole["record"]
        found, written = _crc32(json.dumps(record)), whole["crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no record of a state ({error!r}): it is damaged; give another folder.") from error
    if found != written:
        raise ValueError(f"{file} has the checksum {found}, but {written} was written: it is damaged; give another folder.")
    return record


def _delete_states(folder: Path, but: str = "") -> None:
    for state in folder.glob("state-*"):
        if state.is_dir() and state.name != but and _NAMES.fullmatch(state.name):
            shutil.rmtree(state)


def _number(name: str) -> int:
    match = _NAMES.fullmatch(name)
    return int(match[1]) if match else 0


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _fingerprint(file: Path) -> str:
    """Length and checksum, as text."""
    checksum, length = 0, 0
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            checksum, length = zlib.crc32(part, checksum), length + len(part)
    return f"{length} bytes (CRC-32 {checksum:08x})"


def _require_one_process() -> None:
    if jax.process_count() > 1:
        raise RuntimeError(
            f"there are {jax.process_count()} processes, and checkpoints knows one; use orbax's CheckpointManager, and keep "
            "describe(tree) beside the state."
        )
