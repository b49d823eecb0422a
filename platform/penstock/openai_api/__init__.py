"""The paths that OpenAI's clients know. Each call is a job like any other, told in OpenAI's form."""
