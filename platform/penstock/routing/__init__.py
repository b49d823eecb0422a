"""Which model version serves a job, and why."""
