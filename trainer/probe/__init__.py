"""Probes: what frozen representations can tell, and whether they have collapsed (paper, sections 2.3 and 4.2)."""
