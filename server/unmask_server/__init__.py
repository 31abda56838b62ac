"""The Unmask server."""
