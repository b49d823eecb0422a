"""The parts that the models are made of, each in its own file."""
