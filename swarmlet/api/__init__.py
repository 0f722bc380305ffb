"""The one object model: generated protobuf, ids, errors, task states, and Docker's JSON.

Everything else imports this package; it imports nothing of the project.
`swarmlet.api.pb` holds every generated message in one namespace.
"""
