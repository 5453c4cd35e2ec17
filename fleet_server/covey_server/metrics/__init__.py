"""What Prometheus is told. One module for each subject; `exporter` puts them together."""
