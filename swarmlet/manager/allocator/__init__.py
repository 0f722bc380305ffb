"""What a service and its tasks are given before they can be placed: published ports.

One controller per kind of resource; none talks to a node.
"""
