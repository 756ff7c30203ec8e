"""Dispatch: what the service does with a recorded experiment, from the queue to its settled end."""
