"""The leader's work: controllers that make what is stored come true, and the dispatcher.

Pure planners plus the one loop in `reconcile`. Runs only while this manager leads.
"""
