"""From services to tasks: how many, which revision, what replaces what, what is forgotten.

`replicated` and `global_` are the controllers for services, `reaper` the one for what
is over. `slot` decides about one slot, `rollout` about the order among slots,
`restart` whether a task that ended is followed by another. Nothing here talks to a
node: tasks are created and told what to become, agents and the scheduler do the rest.
"""
