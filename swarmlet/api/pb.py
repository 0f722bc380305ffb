"""Every generated message and enum in one namespace: `from swarmlet.api import pb`, `pb.Service`."""

from swarmlet.api.v1.ca_pb2 import *  # noqa: F403
from swarmlet.api.v1.control_pb2 import *  # noqa: F403
from swarmlet.api.v1.dispatcher_pb2 import *  # noqa: F403
from swarmlet.api.v1.objects_pb2 import *  # noqa: F403
from swarmlet.api.v1.options_pb2 import *  # noqa: F403
from swarmlet.api.v1.raft_pb2 import *  # noqa: F403
from swarmlet.api.v1.specs_pb2 import *  # noqa: F403
from swarmlet.api.v1.store_pb2 import *  # noqa: F403
