"""A whole cluster on one machine, for trying it out, for tests and for measurements.

Every node is one daemon with its own state directory and loopback address; the
daemons are started and hurt from outside, as an operator or a power failure would.
Nothing here is imported by the product itself.

    layout      what a lab is made of, on disk, before anything runs
    processes   finding, stopping and killing what belongs to a node, by its marker
    containers  the same for what a node runs on a Docker Engine
    cuts        taking a node's packets away
    client      talking to a node over its local socket
    cluster     the lab as a whole: up, start, kill, status, down
    load        a constant stream of HTTP requests that counts what fails
    demo, show  the product's story, run for real
    cli         the commands
"""
