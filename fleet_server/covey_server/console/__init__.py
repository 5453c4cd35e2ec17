"""The fleet console: pages rendered on the server, kept fresh by one event stream per page.

Each page has a *live region*: a template and the context it is made from, named in `covey_server.console.live.LIVE`. The page
includes it, and the stream sends it again when hints on the bus say that something changed: rendered once, sent to all who
look. Nothing here writes but through the services that the API uses.
"""
