"""SimCLR on Ray Train: one trial from its spec to its encoder bundle."""
