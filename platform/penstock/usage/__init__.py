"""What was consumed, by whom."""
