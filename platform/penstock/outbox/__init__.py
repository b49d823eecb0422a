"""The transactional outbox: what a transaction wants told to the world, told after it committed."""
