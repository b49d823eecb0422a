"""Dead letters: jobs that were given up because running them breaks something, kept for an operator to look at."""
