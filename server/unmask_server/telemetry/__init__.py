"""What a server tells of itself: request ids, logs, metrics, traces. Imports nothing of ours."""
