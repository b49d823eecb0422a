"""One act on many jobs, or dead letters, that a filter names: worked off in small steps, watched, and stopped."""
