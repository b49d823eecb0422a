"""A tenant's events in one order: the feed where whoever missed a webhook or a stream catches up."""
