"""`python -m sglang_cpu …`: `python -m sglang.launch_server …` with what a CPU needs.

All arguments are passed on; one that is given here too overrides this one's.
"""

from __future__ import annotations

import os
import sys

FLAGS = (
    "--device=cpu",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--disable-overlap-schedule",
    "--dtype=float32",
    "--mem-fraction-static=0.2",
    "--max-total-tokens=65536",
    # Otherwise an idle server keeps a core busy, looking for work.
    "--sleep-on-idle",
)

if __name__ == "__main__":
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    # One thread a server, which does not spin while it waits: servers that share few cores would
    # otherwise take them from each other. For a large model alone set OMP_NUM_THREADS.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Becomes SGLang: who started this process has SGLang's own, to signal and to wait for.
    os.execv(sys.executable, [sys.executable, "-m", "sglang.launch_server", *FLAGS, *sys.argv[1:]])
