"""Which workers should host which model versions: what operators want, and what follows of it for each worker."""
