"""The errors of starting and running a server.

ServerError          it did not start, did not answer, or was asked for something impossible
  NoServerError      this machine cannot run one as it is; the message says in one sentence what to do
"""


class ServerError(Exception):
    """A tritonserver did not start, did not answer, or was asked for something impossible."""


class NoServerError(ServerError):
    """This machine cannot run a tritonserver as it is."""
