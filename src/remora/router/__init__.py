"""The calling side of the data plane, inside every process that calls a deployment."""
