"""Lets SGLang start where there is no GPU.

Imported at the start of every interpreter of the environment, by `sglang_cpu.pth`, since SGLang's
workers are interpreters of their own. Nothing is imported here that costs time.
"""

from __future__ import annotations

import sys

from sglang_cpu.stand_ins import StandIns
from sglang_cpu.vision import BeforeTorchvision

sys.meta_path.append(StandIns("sgl_kernel", "triton", "soundfile", "IPython"))
sys.meta_path.insert(0, BeforeTorchvision())
