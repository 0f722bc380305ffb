"""How a task runs on a node: one interface (`base`), several ways (`docker`, `process`, `simulated`).

Called by the agent only. A runtime never talks to a manager and knows nothing of
services, slots or other nodes beyond what is written in a task.
"""
