"""Worked examples: small real models with exactly measurable answers."""
