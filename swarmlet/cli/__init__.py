"""What the user types: one file per noun, Docker's words and flags.

`main` is the console script. Every command but `daemon` and `lab` talks to a
daemon's local socket through `client`; nothing here touches the cluster's state
in any other way. Modules that cost time to import (gRPC, protobuf) are imported
by the commands that need them, so that `--help` and completion stay fast.
"""
