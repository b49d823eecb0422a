"""`Idempotency-Key`: a request that is sent again acts once."""
