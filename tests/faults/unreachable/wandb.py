"""A tracker with wandb's interface, whose server is not there from some call on.

``G2RPO_TEST_LOST_AT`` is ``init``, ``finish``, or the step of the first failing log. The errors are
those of the system: nobody listens at the port.
"""

import os
import socket


def init(**_):
    """Start a run."""
    _reach_server("init")
    return _Run()


class _Run:
    def log(self, metrics, step):
        """Send metrics."""
        if os.environ["G2RPO_TEST_LOST_AT"].isdigit() and step >= int(
            os.environ["G2RPO_TEST_LOST_AT"]
        ):
            _connect()

    def finish(self):
        """End the run."""
        _reach_server("finish")


def _reach_server(call):
    if os.environ["G2RPO_TEST_LOST_AT"] == call:
        _connect()


def _connect():
    # Port 9 of this machine discards what it gets, where anything listens there at all.
    socket.create_connection(("127.0.0.1", 9), timeout=5).close()
    raise ConnectionError("the server that must not be there is there")
