"""Ports, mounts, networks, secrets, configs, ulimits: the flags whose value is a small language.

Each parser takes one flag's text and gives the message that goes into the spec; it
raises ValueError with Docker's words. Names of networks, secrets and configs are
sent as they are: control resolves them.
"""

from __future__ import annotations

import csv
import ipaddress
import re
from pathlib import Path

from swarmlet.api import pb
from swarmlet.cli.values import parse_bool, parse_bytes

_LONG_SYNTAX = re.compile(r"\w+=\w+(,\w+=\w+)*")
_PROTOCOLS = {
    "tcp": pb.PORT_PROTOCOL_TCP,
    "udp": pb.PORT_PROTOCOL_UDP,
    "sctp": pb.PORT_PROTOCOL_SCTP,
}
_PUBLISH_MODES = {"ingress": pb.PUBLISH_MODE_INGRESS, "host": pb.PUBLISH_MODE_HOST}
_MOUNT_TYPES = {
    "bind": pb.MOUNT_TYPE_BIND,
    "volume": pb.MOUNT_TYPE_VOLUME,
    "tmpfs": pb.MOUNT_TYPE_TMPFS,
    "npipe": pb.MOUNT_TYPE_NPIPE,
    "cluster": pb.MOUNT_TYPE_CLUSTER,
}
_MOUNT_SWITCHES = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src")
_PORTS_PER_FLAG_MAX = 65535


def _fields(text: str) -> list[str]:
    rows = list(csv.reader([text], strict=True))
    if not rows or not rows[0]:
        raise ValueError("value is empty")
    return rows[0]


def _pair(field: str) -> tuple[str, str]:
    key, equals, value = field.partition("=")
    if not equals or not key:
        raise ValueError(f"invalid field '{field}' must be a key=value pair")
    return key.lower(), value


# ---- ports ----


def parse_port(text: str) -> list[pb.PortConfig]:
    """`published=8080,target=80,protocol=tcp,mode=ingress` or `8080:80/tcp`, ranges included."""
    return [_long_port(text)] if _LONG_SYNTAX.search(text) else _short_ports(text)


def _long_port(text: str) -> pb.PortConfig:
    port = pb.PortConfig()
    for field in _fields(text):
        key, value = _pair(field)
        value = value.lower()
        if key == "protocol":
            if value not in _PROTOCOLS:
                raise ValueError(f"invalid protocol value '{value}'")
            port.protocol = _PROTOCOLS[value]
        elif key == "mode":
            if value not in _PUBLISH_MODES:
                raise ValueError(f"invalid publish mode value ({value}): must be either 'ingress' or 'host'")
            port.publish_mode = _PUBLISH_MODES[value]
        elif key == "target":
            port.target_port = _long_port_number("target", value)
        elif key == "published":
            port.published_port = _long_port_number("published", value)
        else:
            raise ValueError(f"invalid field key: {key}")
    if port.target_port == 0:
        raise ValueError("missing mandatory field 'target'")
    return port


def _long_port_number(which: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f"invalid {which} port ({text}): value must be an integer: invalid syntax")
    if int(text) > 65535:
        raise ValueError(f"invalid {which} port ({text}): value must be an integer: value out of range")
    return int(text)


def _short_ports(text: str) -> list[pb.PortConfig]:
    ports, slash, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    address, _, rest = ports.rpartition(":")
    host, _, published = address.rpartition(":")
    if slash and protocol not in _PROTOCOLS:
        raise ValueError(f"invalid proto: {protocol}")
    if not rest:
        raise ValueError(f"no port specified: {text}<empty>")
    if host:
        raise ValueError("hostip is not supported")
    targets = _range("containerPort", rest)
    sources = _range("hostPort", published) if published else [0] * len(targets)
    if len(targets) == 1:
        targets = targets * len(sources)
    if len(targets) != len(sources):
        raise ValueError(f"invalid ranges specified for container and host Ports: {rest} and {published}")
    return [
        pb.PortConfig(protocol=_PROTOCOLS[protocol], target_port=target, published_port=source)
        for source, target in zip(sources, targets, strict=True)
    ]


def _range(which: str, text: str) -> list[int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"invalid {which}: {text}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last > _PORTS_PER_FLAG_MAX or first > last:
        raise ValueError(f"invalid {which}: {text}")
    return list(range(first, last + 1))


# ---- mounts ----


def parse_mount(text: str) -> pb.Mount:
    """`type=volume|bind|tmpfs,source=...,target=...` and the options of each type."""
    mount = pb.Mount(type=pb.MOUNT_TYPE_VOLUME)
    for field in _fields(text.strip()):
        _take_mount_field(mount, field)
    if not mount.target:
        raise ValueError("target is required")
    _check_mount(mount)
    return mount


def _take_mount_field(mount: pb.Mount, field: str) -> None:
    key, equals, value = field.partition("=")
    key = key.lower()
    if not equals and key not in _MOUNT_SWITCHES:
        raise ValueError(f"invalid field '{field}' must be a key=value pair")
    if equals and not value.strip():
        raise ValueError(f"invalid value for '{key}': value is empty")
    if key == "type":
        if value.lower() not in _MOUNT_TYPES:
            raise ValueError(
                f"invalid value for type: {value} (must be bind, volume, tmpfs, npipe or cluster)"
            )
        mount.type = _MOUNT_TYPES[value.lower()]
    elif key in ("source", "src"):
        mount.source = str(Path(value).absolute()) if value.startswith(".") else value
    elif key in ("target", "dst", "destination"):
        mount.target = value
    elif key in ("readonly", "ro"):
        mount.read_only = _switch(key, value, equals)
    elif key == "consistency":
        mount.consistency = value.lower()
    elif key.startswith("bind-"):
        _take_bind_field(mount.bind_options, key, value, equals)
    elif key.startswith("volume-"):
        _take_volume_field(mount.volume_options, key, value, equals)
    elif key == "tmpfs-size":
        try:
            mount.tmpfs_options.size_bytes = parse_bytes(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-mode":
        if not re.fullmatch(r"[0-7]{1,10}", value):
            raise ValueError(f"invalid value for {key}: {value}")
        mount.tmpfs_options.mode = int(value, 8)
    else:
        raise ValueError(f"unknown option '{key}' in '{field}'")


def _switch(key: str, value: str, equals: str) -> bool:
    try:
        return parse_bool(value) if equals else True
    except ValueError:
        raise ValueError(f"invalid value for '{key}': invalid boolean value: {value}") from None


def _take_bind_field(options: pb.BindOptions, key: str, value: str, equals: str) -> None:
    if key == "bind-propagation":
        options.propagation = value.lower()
    elif key == "bind-nonrecursive":
        options.non_recursive = _switch(key, value, equals)
    elif key == "bind-recursive" and value in ("enabled", "disabled"):
        options.non_recursive = value == "disabled"
    elif key == "bind-recursive":
        raise ValueError(f'invalid value for {key}: {value} (must be "enabled" or "disabled")')
    elif key == "bind-create-src":
        options.create_mountpoint = _switch(key, value, equals)
    else:
        raise ValueError(f"unknown option '{key}' in '{key}={value}'")


def _take_volume_field(options: pb.VolumeOptions, key: str, value: str, equals: str) -> None:
    name, _, text = value.partition("=")
    if key == "volume-nocopy":
        options.no_copy = _switch(key, value, equals)
    elif key == "volume-label":
        options.labels[name] = text
    elif key == "volume-driver":
        options.driver_config.name = value
    elif key == "volume-opt":
        options.driver_config.options[name] = text
    elif key == "volume-subpath":
        options.subpath = value
    else:
        raise ValueError(f"unknown option '{key}' in '{key}={value}'")


def _check_mount(mount: pb.Mount) -> None:
    kind = pb.MountType.Name(mount.type).removeprefix("MOUNT_TYPE_").lower()
    for options, owner in (
        ("bind_options", "bind"),
        ("volume_options", "volume"),
        ("tmpfs_options", "tmpfs"),
    ):
        if mount.HasField(options) and kind != owner:  # type: ignore[arg-type]
            raise ValueError(f"cannot mix '{owner}-*' options with mount type '{kind}'")
    if kind == "bind" and not mount.source:
        raise ValueError("source is required for a mount of type 'bind'")
    if kind == "tmpfs" and mount.source:
        raise ValueError("source is not allowed for a mount of type 'tmpfs'")


# ---- networks, secrets, configs ----


def parse_network(text: str) -> pb.NetworkAttachmentConfig:
    """`NAME` or `name=NAME,alias=ALIAS,driver-opt=KEY=VALUE`."""
    if not _LONG_SYNTAX.search(text):
        return pb.NetworkAttachmentConfig(target=text)
    network = pb.NetworkAttachmentConfig()
    for field in _fields(text):
        key, value = _pair(field)
        if key == "name":
            network.target = value
        elif key == "alias":
            network.aliases.append(value)
        elif key == "driver-opt":
            option, equals, setting = value.partition("=")
            if not equals or not option:
                raise ValueError("invalid key value pair format in driver options")
            network.driver_opts[option] = setting
        else:
            raise ValueError(f"invalid field key {key}")
    if not network.target:
        raise ValueError("network name/id is not specified")
    return network


def parse_secret(text: str) -> pb.SecretReference:
    """`NAME` or `source=NAME,target=FILE,uid=0,gid=0,mode=0444`."""
    name, file = _file_reference(text, "secret")
    return pb.SecretReference(secret_name=name, file=file)


def parse_config(text: str) -> pb.ConfigReference:
    """`NAME` or `source=NAME,target=/FILE,uid=0,gid=0,mode=0444`."""
    name, file = _file_reference(text, "config")
    return pb.ConfigReference(config_name=name, file=file)


def _file_reference(text: str, what: str) -> tuple[str, pb.FileTarget]:
    name = ""
    file = pb.FileTarget(uid="0", gid="0", mode=0o444)
    fields = _fields(text)
    if len(fields) == 1 and "=" not in fields[0]:
        file.name = fields[0]
        return fields[0], file
    for field in fields:
        key, value = _pair(field)
        if key in ("source", "src"):
            name = value
        elif key == "target":
            file.name = value
        elif key == "uid":
            file.uid = value
        elif key == "gid":
            file.gid = value
        elif key == "mode":
            file.mode = _file_mode(value)
        else:
            raise ValueError(f"invalid field in {what} request: {key}")
    if not name:
        raise ValueError("source is required")
    file.name = file.name or name
    return name, file


def _file_mode(text: str) -> int:
    base = 8 if re.fullmatch(r"0[0-7]+", text) else 10
    if base == 10 and not re.fullmatch(r"0|[1-9][0-9]*", text):
        raise ValueError(f'invalid mode specified: strconv.ParseUint: parsing "{text}": invalid syntax')
    mode = int(text, base)
    if mode >= 2**32:
        raise ValueError(f'invalid mode specified: strconv.ParseUint: parsing "{text}": value out of range')
    return mode


# ---- the rest ----


def parse_ulimit(text: str) -> pb.Ulimit:
    """`nofile=1024` or `nofile=1024:2048` (soft:hard); -1 is no limit."""
    name, equals, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    if not equals or not name:
        raise ValueError(f"invalid ulimit argument: {text}")
    if not re.fullmatch(r"-?\d+", soft) or (colon and not re.fullmatch(r"-?\d+", hard)):
        raise ValueError(f"invalid ulimit value: {values}")
    ulimit = pb.Ulimit(name=name, soft=int(soft), hard=int(hard) if colon else int(soft))
    if ulimit.hard != -1 and (ulimit.soft > ulimit.hard or ulimit.soft == -1):
        raise ValueError(
            f"ulimit soft limit must be less than or equal to hard limit: {soft} > {ulimit.hard}"
        )
    return ulimit


def parse_preference(text: str) -> pb.PlacementPreference:
    strategy, equals, descriptor = text.partition("=")
    if not equals or not strategy:
        raise ValueError('placement preference must be of the format "<strategy>=<arg>"')
    if strategy != "spread":
        raise ValueError(f"unsupported placement preference {strategy} (only spread is supported)")
    return pb.PlacementPreference(spread=pb.SpreadOver(spread_descriptor=descriptor))


def parse_generic_resource(text: str) -> pb.GenericResource:
    kind, equals, value = text.partition("=")
    if not equals or not kind or not re.fullmatch(r"[0-9]+", value):
        raise ValueError(f"invalid generic-resource request `{text}`: only KIND=NUMBER is supported")
    return pb.GenericResource(discrete=pb.DiscreteGenericResource(kind=kind, value=int(value)))


def parse_extra_host(text: str) -> str:
    """`HOST:IP` as a line of /etc/hosts: "IP HOST"."""
    host, separator, address = (
        re.split(r"([:=])", text, maxsplit=1) if re.search("[:=]", text) else (text, "", "")
    )
    if not separator or not host:
        raise ValueError(f"bad format for add-host: {text!r}")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise ValueError(f"invalid IP address in add-host: {address!r}") from None
    return f"{address.strip('[]')} {host}"


def parse_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"{text} is not an ip address") from None
