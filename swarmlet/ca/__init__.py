"""Identities: the root CA, join tokens, node certificates, mutual TLS and role checks.

Every connection between nodes is made with what is here; `node` and `control` call
it. It does not know the store: who was removed and which tokens hold is asked
through callables.
"""
