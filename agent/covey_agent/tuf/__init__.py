"""The update client of The Update Framework (specification 1.0.34, section 5): which releases this device may believe in.

`trusted` and `search` decide over plain bytes and know no I/O, clock or randomness; `folder` stores, `source` fetches,
`updater` is the workflow that ties them. Formats, canonical JSON, signatures and the matching of delegations are python-tuf's
(`tuf.api.metadata`); the workflow and its storage are ours, see docs/adr. Importing python-tuf costs 13 MB: the control
process does not, it starts `covey-agent tuf` for the moment that it takes.
"""
