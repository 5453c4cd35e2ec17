"""Telemetry to an OpenTelemetry collector, in a process of its own (`covey-agent otlp`, extra `otlp`)."""
