"""Views: what the service shows of an experiment, made of the store, storage and MLflow."""
