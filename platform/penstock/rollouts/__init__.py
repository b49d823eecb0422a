"""Which model version is to serve next, earned gate by gate: policies, statistics, verdicts and what they will cost."""
