"""Who asks: tenants, their users, their API keys."""
