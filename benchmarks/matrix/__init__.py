"""Every real model for every target: what is built, how far it agrees with its source, and what it costs."""
