"""Where a server's settings come from, and how they are shown."""
