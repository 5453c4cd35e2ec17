"""`python -m covey_agent.gateway`; started by the agent's control process."""

from __future__ import annotations

from covey_agent.gateway.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
