"""What the README prints."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_quickstart_runs_as_printed() -> None:
    """The Python block runs, and every seed's batches hold rewards once an episode has ended."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(blocks[0], namespace)
    rewards = np.asarray(namespace["rewards"])
    assert rewards.shape == (8, 200)
    assert np.all((rewards >= -1) & (rewards <= 0))
    assert np.all(rewards[:, -1] < 0)
    assert np.all(rewards[:, -50:].max(axis=1) > -1), "hindsight goals were reached"


def test_its_files_exist() -> None:
    """Every file that the README links to is there."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
