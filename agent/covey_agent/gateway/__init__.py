"""The data plane: the local inference endpoint, which goes on serving while the agent's control process is away."""
