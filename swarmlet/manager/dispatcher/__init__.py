"""What each agent must run, streamed to it; what it runs, taken in.

`Dispatcher` is the whole of it; the node runs it while this manager leads and
`grpc.DispatcherService` puts it on the wire. Writes only node statuses and the
observed statuses of tasks: what should run is decided by the other controllers.
"""
