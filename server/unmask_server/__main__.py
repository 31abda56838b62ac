"""`python -m unmask_server` is `unmask-server`."""

from unmask_server.cli import main

main()
