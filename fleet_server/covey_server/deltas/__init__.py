"""Deltas between builds: made once for each pair, offered to devices that have the older one, and never needed.

All of it is derived: the folder may be deleted, and is filled again.
"""
