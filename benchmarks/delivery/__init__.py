"""Delivery of one build to many devices: what it costs the server and the broker, and how long it takes."""
