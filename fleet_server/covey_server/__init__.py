"""The control plane: registry, build queue, signing, campaigns, MQTT sessions, console."""

__version__ = "0.1.0"
