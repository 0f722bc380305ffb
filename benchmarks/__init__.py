"""Measurements of the product, each against its target: python -m benchmarks.NAME [--json FILE].

Each makes a lab of its own and leaves nothing behind. docs/measured.md has the figures.
"""
