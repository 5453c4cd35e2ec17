"""The schema's history, applied by `covey_server.db.engine.Database.migrate`."""
