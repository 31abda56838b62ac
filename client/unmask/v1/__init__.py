"""The generated code of the contract `unmask.v1`."""
