"""What every node is asked before a job begins, on the shared cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitcore
from tasks.on_ray.nodes import require_everywhere
from tasks.settings import Settings
from vitcore.errors import RequestError


@pytest.mark.cluster
def test_a_node_that_does_not_see_a_file_is_named(house: Settings, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    (code,) = require_everywhere({str(tmp_path / "here"): "this file"}).values()
    assert code == vitcore.__file__
    with pytest.raises(RequestError, match=r"node \S+ of the cluster does not see the other: make it"):
        require_everywhere({str(tmp_path / "here"): "this file", str(tmp_path / "there"): "the other: make it"})
