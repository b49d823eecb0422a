"""A package, so that the house that its tests share ends with them: elsewhere its workers would take their jobs."""
