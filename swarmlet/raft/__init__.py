"""Agreement between managers: PySyncObj's engine, made safe.

A replicated log of opaque byte strings. Nothing outside imports pysyncobj; nothing
in here knows what the bytes mean. `agreement` is what the rest of the house sees.
"""
