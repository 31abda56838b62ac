"""torchvision without its compiled part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class BeforeTorchvision(MetaPathFinder):
    """Declares the operators that torchvision looks for, just before it is first imported.

    Its compiled part is linked against CUDA; importing the rest fails if the two are unknown.
    """

    def __init__(self) -> None:
        self._library: object = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Never finds anything."""
        if fullname == "torchvision" and self._library is None:
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            # A library that is collected takes its operators away again.
            self._library = library
            sys.meta_path.remove(self)
            sys.modules[__name__].KEPT = self  # type: ignore[attr-defined]
        return None
