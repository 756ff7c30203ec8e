"""What is wrong with a sweep before it starts: in its fields, its metric, its points, and as a whole."""
