"""Whether what a server needs is there: its store, and what runs its models."""
