"""The HTTP API, `/api/v1`: one module for each noun, thin over the services that do the work."""
