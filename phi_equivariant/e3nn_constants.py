"""e3nn 0.4.4 reads its constants from a file that holds a slice, which torch ≥ 2.6 refuses unless it is declared safe.

Whoever imports ``phi_equivariant`` can import e3nn and mace after it. The declaration waits until e3nn is looked for,
because it needs torch, whose import takes longer than all else that a command line does to show its help.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType


class DeclareSlice(importlib.abc.MetaPathFinder):
    """Finds nothing; declares ``slice`` safe when a module of e3nn is looked for."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """None: the search goes on with the next finder."""
        if fullname.partition(".")[0] == "e3nn":
            import torch

            torch.serialization.add_safe_globals([slice])


def declare_slice() -> None:
    """Have ``slice`` declared before e3nn is imported."""
    sys.meta_path.insert(0, DeclareSlice())
