"""Tools that a model may call: how they are described, how calls are written, held to their schemas and read."""
