"""The replicated tables of the cluster: objects, indexes, transactions, watch.

Managers only. `Store` is the state machine that raft drives; everybody else reads
through `store.view` and writes through `store.update`.
"""
