"""Examples that ship with Unmask."""
