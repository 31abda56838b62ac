"""Pruning, retention and compacting."""
