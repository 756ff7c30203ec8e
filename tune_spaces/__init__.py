"""Sweeps as data, the studies of the paper among them, and the driver that runs them."""
