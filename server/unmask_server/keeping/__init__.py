"""Keeping the store small: what goes, by rule or by hand, and giving its room back."""
