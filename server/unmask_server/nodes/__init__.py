"""Nodes put together: what a request names, what the models say there, and what the tree knows."""
