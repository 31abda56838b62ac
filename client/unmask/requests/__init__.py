"""Keyword arguments to requests. One function for each call; `Client` has them as methods."""
