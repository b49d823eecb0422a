"""What each tenant may use in a minute and at once."""
