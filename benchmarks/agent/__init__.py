"""What the agent's data plane does: swaps, crashes of candidates, overhead over the runtime, and weight."""
