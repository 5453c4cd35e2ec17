"""Hardware-in-the-loop benches, device simulator, load generator and the demo."""

__version__ = "0.1.0"
