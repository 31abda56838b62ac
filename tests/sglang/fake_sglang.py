"""Stands in for `sglang.launch_server` where a real one cannot be made to fail on demand.

    python fake_sglang.py --model-path M --host H --port P --folder DIR [--fault …]

It answers `/health`, and 200 to everything else. In DIR it leaves one file a process it runs, named
by its pid, and a file a start, named `start-N`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model-path", required=True)
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--unhealthy-probes", type=int, default=0, help="-1: it never gets healthy")
parser.add_argument("--dies-at-start", type=int, default=0, help="so many of its starts fail")
parser.add_argument("--shouts", help="said on standard output at the start")
parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM")
parser.add_argument("--workers", type=int, default=0, help="with sessions of their own")
options = parser.parse_args()

WORKER = """
import os, pathlib, signal, sys, time
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(600)
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        healthy = self.path != "/health" or options.unhealthy_probes == 0
        if self.path == "/health" and options.unhealthy_probes > 0:
            options.unhealthy_probes -= 1
        self.send_response(200 if healthy else 503)
        self.end_headers()
        if self.path == "/die":
            print("an illegal token id", flush=True)
            os._exit(3)


starts = len(list(options.folder.glob("start-*")))
(options.folder / f"start-{starts}").touch()
if options.shouts:
    sys.stdout.write(options.shouts)
    sys.stdout.flush()
if starts < options.dies_at_start:
    print("out of memory", flush=True)
    sys.exit(1)
if options.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(options.workers):
    subprocess.Popen([sys.executable, "-c", WORKER, str(options.folder)])
(options.folder / str(os.getpid())).touch()
while len([f for f in options.folder.iterdir() if f.name.isdigit()]) < 1 + options.workers:
    time.sleep(0.01)
print("The server is fired up", flush=True)
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
