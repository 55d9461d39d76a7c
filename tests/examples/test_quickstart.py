"""The notebook: it runs as stored, HER learns in it and plain replay does not, and what is stored with it is whole."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import herjax

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
REPORT = """import json
print(json.dumps({
    "herjax": herjax.__file__,
    "curves": {name: globals()[name].tolist() for name in ("with_her", "without_her", "final", "mixture")},
    "batch": {
        "observation": batch.transition.observation.tolist(),
        "action": batch.transition.action.tolist(),
        "goal": batch.goal.tolist(),
        "reward": batch.reward.tolist(),
    },
}))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh kernel has after all cells ran, in a folder from which no herjax can be imported by accident."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    # Code that is both made quickly and fast: with level 1 the cells take two thirds of the time that they take without flags.
    flags = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    herjax_under_test = str(Path(herjax.__file__).parents[1])
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": herjax_under_test}
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("kernel"))}}
    NotebookClient(notebook, timeout=600, resources=folder).execute(env=environment)
    return json.loads(notebook.cells[-1].outputs[0].text)


def test_her_learns_and_plain_replay_does_not(report: dict[str, Any]) -> None:
    """In the last 1,000 steps all seeds reach more than nine of ten goals with HER, and less than one of five without."""
    last = {name: np.asarray(curve)[:, -2:] for name, curve in report["curves"].items()}
    assert last["with_her"].shape == (4, 2)
    assert last["with_her"].min() > 0.9
    assert last["mixture"].min() > 0.9
    assert last["without_her"].max() < 0.2


def test_final_learns_later(report: dict[str, Any]) -> None:
    """At half of the steps every seed reaches more goals with "future" than with "final"."""
    curves = {name: np.asarray(curve) for name, curve in report["curves"].items()}
    assert np.all(curves["with_her"][:, 8:12].mean(axis=1) > curves["final"][:, 8:12].mean(axis=1) + 0.2)


def test_the_batch_is_as_the_text_says(report: dict[str, Any]) -> None:
    """Where flipping the bit that the action names gives the goal, and nowhere else, the reward is 0. Both are shown."""
    observation, goal = (np.asarray(report["batch"][name]) for name in ("observation", "goal"))
    flipped = np.abs(observation - np.eye(observation.shape[1])[report["batch"]["action"]])
    reached = np.all(flipped == goal, axis=1)
    np.testing.assert_array_equal(report["batch"]["reward"], reached - 1.0)
    assert 0 < reached.sum() < len(reached)


def test_it_ran_with_the_herjax_under_test(report: dict[str, Any]) -> None:
    """The kernel imports the herjax that the other tests import."""
    assert report["herjax"] == herjax.__file__


def test_is_stored_whole_and_small() -> None:
    """At most 150 kB; every code cell ran, in order and without error or warning; two figures and a table are stored."""
    assert NOTEBOOK.stat().st_size <= 150_000
    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"display_data", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output.name for output in outputs if output.output_type == "stream"] == ["stdout"]
