"""Files of a tenant: uploaded, or made by a batch. The bytes lie in a storage behind fsspec, the rows in PostgreSQL."""
