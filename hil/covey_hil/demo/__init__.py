"""The demo: Covey's whole job on one machine, with nothing pretended but the hardware that is not there, which is called simulated."""
