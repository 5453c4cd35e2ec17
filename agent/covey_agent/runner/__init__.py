"""The process that runs one build: loads it, warms it up, checks its golden vectors, then answers inferences over a socket."""
