"""Requests that no sane client sends, many of them, at a real server. See docs/fuzz.md."""
