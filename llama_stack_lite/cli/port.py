"""The port that a server listens at: taken early, and an alternative named where that fails."""

import errno
import ipaddress
import socket

from llama_stack_lite.errors import ConfigError, StackError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; connections are refused until the server is ready.

    Raises `ConfigError` for a host that is not this machine's, `StackError` for a port that is taken.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        raise _unbound(host, port, error) from error
    except UnicodeError as error:
        raise ConfigError(f"server.host: {host!r} is no host name") from error


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def listen(listener: socket.socket) -> int:
    """Take connections from now on; returns the port. Of two that bound one port only the first can."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen()
    except OSError as error:
        raise _unbound(host, port, error) from error
    return int(port)


def _unbound(host: str, port: int, error: OSError) -> StackError:
    if error.errno == errno.EADDRINUSE:
        return StackError(f"port {port} is taken by another process; try --port {free_port(host, port)}")
    if error.errno == errno.EACCES:
        return StackError(f"port {port} is reserved for the system; try --port {free_port(host, 8320)}")
    return ConfigError(f"server.host: cannot listen at {host}: {error.strerror}")


def free_port(host: str, after: int) -> int:
    """The next free port, or 0, which lets the system choose."""
    for port in range(after + 1, min(after + 100, 65536)):
        try:
            _bound(host, port).close()
            return port
        except OSError:
            continue
    return 0
