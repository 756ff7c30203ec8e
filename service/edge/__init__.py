"""The HTTP edge: who may ask what, how a request is read and how a refusal is worded."""
