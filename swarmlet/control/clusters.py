"""The one cluster object: read without its secrets, changed, its join tokens rotated."""

from __future__ import annotations

import random
from datetime import timedelta

from swarmlet.api import pb
from swarmlet.api.errors import Conflict, InvalidArgument, Unavailable
from swarmlet.ca import tokens
from swarmlet.ca.root import root_digest
from swarmlet.control.presentation import Presenter
from swarmlet.control.writes import Writer
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import Tables

DEFAULT_NAME = "default"
CERT_EXPIRY_MIN = timedelta(hours=1)


class Clusters:
    """The cluster methods of Control."""

    def __init__(
        self, store: Store, *, writer: Writer, presenter: Presenter, token_rng: random.Random
    ) -> None:
        self._store = store
        self._writer = writer
        self._presenter = presenter
        self._token_rng = token_rng

    async def get(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        response = pb.GetClusterResponse(cluster=the_cluster(self._store.view))
        self._presenter.prepare(response.cluster)
        return response

    async def update(self, request: pb.UpdateClusterRequest) -> pb.UpdateClusterResponse:
        """A request without a spec keeps it: rotating a token needs no more than the version."""
        if request.HasField("spec"):
            validate_cluster_spec(request.spec)

        def update(transaction: Transaction) -> None:
            current = the_cluster(transaction.view)
            if current.version.index != request.version:
                raise Conflict("update out of sequence")
            changed = pb.Cluster()
            changed.CopyFrom(current)
            if request.HasField("spec"):
                changed.spec.CopyFrom(request.spec)
                _keep_hidden(current.spec, changed.spec)
            digest = root_digest(current.root_ca.certificate_pem) if _rotates(request) else ""
            if request.rotate_worker_token:
                changed.join_tokens.worker = tokens.generate(digest, self._token_rng)
            if request.rotate_manager_token:
                changed.join_tokens.manager = tokens.generate(digest, self._token_rng)
            if changed != current:
                transaction.update(changed)

        index = await self._writer.commit(self._writer.operation_id(request.operation_id), update)
        response = pb.UpdateClusterResponse(cluster=the_cluster(self._store.view), index=index)
        self._presenter.prepare(response.cluster)
        return response


def the_cluster(view: Tables) -> pb.Cluster:
    """Raises Unavailable while a new manager has not yet been told about the cluster."""
    cluster = view.cluster()
    if cluster is None:
        raise Unavailable("this manager does not know the cluster yet: try again in a moment")
    return cluster


def validate_cluster_spec(spec: pb.ClusterSpec) -> None:
    """Raises InvalidArgument, in Docker's words."""
    expiry = spec.ca_config.node_cert_expiry_ns
    # 0 stands for the default.
    if expiry and expiry < CERT_EXPIRY_MIN / timedelta(microseconds=1) * 1000:
        raise InvalidArgument("minimum certificate expiry time is: 1h0m0s")
    if spec.dispatcher.heartbeat_period_ns < 0:
        raise InvalidArgument("heartbeat time period cannot be a negative duration")
    if spec.name != DEFAULT_NAME:
        raise InvalidArgument("modification of cluster name is not allowed")


def _keep_hidden(old: pb.ClusterSpec, new: pb.ClusterSpec) -> None:
    """A spec that was read and sent back comes without the signing key and its certificate."""
    if old.ca_config.signing_ca_key and not new.ca_config.signing_ca_key:
        new.ca_config.signing_ca_key = old.ca_config.signing_ca_key
        new.ca_config.signing_ca_cert = new.ca_config.signing_ca_cert or old.ca_config.signing_ca_cert


def _rotates(request: pb.UpdateClusterRequest) -> bool:
    return request.rotate_worker_token or request.rotate_manager_token
