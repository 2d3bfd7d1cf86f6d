"""Connected components: which of N nodes hang together, directly or through others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Components:
    """N nodes, each alone at first; joined ones share the name of the smallest among them.

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._parent: Rows = np.arange(count)

    def join(self, left: Rows, right: Rows) -> None:
        """Join each node of `left` with the one of `right` at the same place."""
        while len(left):
            one, other = self.names(left), self.names(right)
            apart = one != other
            left, right = left[apart], right[apart]
            # Several pairs may want one root; the smallest wins, and the others are joined in the next round.
            np.minimum.at(self._parent, np.maximum(one, other)[apart], np.minimum(one, other)[apart])

    def names(self, nodes: Rows | None = None) -> Rows:
        """The smallest node of the component of each node; of all nodes by default."""
        nodes = np.arange(len(self._parent)) if nodes is None else nodes
        names = self._parent[nodes]
        while not np.array_equal(further := self._parent[names], names):
            names = further
        self._parent[nodes] = names
        return names
