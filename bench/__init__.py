"""How fast it is, as ratios to ceilings that are measured in the same run: `python -m bench`."""
