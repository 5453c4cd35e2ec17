"""Traces, as an option: from the push of a model over its builds to the swap on each device, in one trace."""
