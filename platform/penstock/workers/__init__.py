"""Workers and deployments as operators see them, and asking a worker to end."""
