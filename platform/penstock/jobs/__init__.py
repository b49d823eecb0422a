"""The job: its states, its lease, its token journal, its views."""
