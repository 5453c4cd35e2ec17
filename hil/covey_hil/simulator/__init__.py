"""A fleet of simulated devices in one process: each its own MQTT session, speaking what an agent speaks. Nothing is inferred."""
