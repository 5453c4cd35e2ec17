"""What Covey's server and devices say to each other: messages, topics, manifest, envelopes."""

__version__ = "0.1.0"
