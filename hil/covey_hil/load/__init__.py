"""A load generator for gateways: constant rate, open loop, and every answer is checked."""
