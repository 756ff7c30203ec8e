"""What travels inside an encoder bundle besides weights: one standalone file, and its text."""
