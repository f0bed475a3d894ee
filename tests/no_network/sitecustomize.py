"""Refuse every connection and look-up that leaves this machine, in any Python whose PYTHONPATH names this folder.

Python imports a module of this name when it starts, so commands of a workflow are guarded too. What was asked for is
appended to the file that MEDSYN_NETWORK_LOG names.
"""

import os
import socket
from pathlib import Path

_HERE = ("localhost", "127.", "::1", "0.0.0.0")
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _check(host):
    name = host.decode() if isinstance(host, bytes) else host
    if name and not name.startswith(_HERE) and name != socket.gethostname():
        with Path(os.environ["MEDSYN_NETWORK_LOG"]).open("a") as log:
            log.write(f"{name}\n")
        raise OSError(f"no network in this test, asked for {name}")


def _guarded(function):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return function(self, address)

    return connect


def _look_up(host, *args, **options):
    _check(host)
    return _getaddrinfo(host, *args, **options)


if "MEDSYN_NETWORK_LOG" in os.environ:
    socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
    socket.getaddrinfo = _look_up
