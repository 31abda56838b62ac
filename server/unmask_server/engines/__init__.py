"""Engines: whatever runs a model. Nothing here imports torch until an engine is opened."""
