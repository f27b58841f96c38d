"""The one place that makes gRPC clients of a server: for the launcher, the benchmarks and the reliability tests.

They connect to a server of this machine, or measure one. So they never use a proxy, whatever `http_proxy` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.security import Access

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

EVERYBODY = Access()
# tritonclient's own default, which arguments of ours replace, is to limit no message; gRPC's would be 4 MB.
DIRECT = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


def connect(url: str, access: Access = EVERYBODY) -> InferenceServerClient:
    """tritonclient's client of the server at host:port; close it, or use it in a `with` block."""
    from tritonclient.grpc import InferenceServerClient

    more = access.channel.get("channel_args", ())
    return InferenceServerClient(url, **{**access.channel, "channel_args": [*DIRECT, *more]})
