"""Cut a Python process off the network; loopback stays, since Jupyter kernels talk over it.

Python imports this module at its start if this folder is on PYTHONPATH, so that notebooks and
scripts which the tests run in processes of their own are cut off as well.
"""

import socket

_connect = socket.socket.connect


def _is_local(address) -> bool:
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    host = str(address[0])
    return host in ("localhost", "::1") or host.startswith("127.")


def _guarded_connect(self, address):
    if not _is_local(address):
        raise OSError(f"no network in tests: connection to {address} refused")
    return _connect(self, address)


def _guarded_getaddrinfo(host, *args, **kwargs):
    if host is not None and not _is_local((host.decode() if isinstance(host, bytes) else host,)):
        raise socket.gaierror(f"no network in tests: look-up of {host!r} refused")
    return _getaddrinfo(host, *args, **kwargs)


_getaddrinfo = socket.getaddrinfo
socket.socket.connect = _guarded_connect
socket.socket.connect_ex = _guarded_connect
socket.getaddrinfo = _guarded_getaddrinfo
