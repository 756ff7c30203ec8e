"""Intake: what becomes of a request before it is an experiment in the store, and of a verb on one."""
