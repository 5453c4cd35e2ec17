"""The repository of releases: what has been released, in the metadata of The Update Framework (specification 1.0.34).

`policy` says how long things last and what they are called; `edition` reads what is published; `draft` makes the next edition;
`shelf` keeps the files; `keyring` finds the private keys; `ceremony` changes who is trusted; `releases` ties them together and
`upkeep` signs anew before anything expires. A static web server that serves the folder is all that a client needs.
"""
