"""How long things are kept, and how they go: by age, one job at its tenant's word, or a whole tenant."""
