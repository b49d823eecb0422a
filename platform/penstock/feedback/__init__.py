"""What people and programs think of jobs' answers, kept with the version that gave them."""
