"""The driver of a sweep: which trial runs next, on what, how it ends, and what is written down."""
