"""The embedded stack: a Ray head, an MLflow server and the service, on one machine, on loopback."""
