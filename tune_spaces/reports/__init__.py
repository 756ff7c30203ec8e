"""The answer of a sweep: its trials as observations, estimates and verdicts, and their report in every form."""
