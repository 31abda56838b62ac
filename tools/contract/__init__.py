"""Scripts around the contract in proto/: stubs, and the pages that are made from it."""
