"""torchvision without its compiled part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_declared: list[object] = []
"""A library that is collected takes its operators away again."""


class BeforeTorchvision(MetaPathFinder):
    """Declares the operators that torchvision looks for, just before it is first imported.

    Its compiled part is linked against CUDA; importing the rest fails if the two are unknown.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds nothing: it is only told when torchvision is looked for."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
        return None
