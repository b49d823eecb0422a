"""Model versions: what MLflow registers, what workers host, and how a model folder is read without torch."""
