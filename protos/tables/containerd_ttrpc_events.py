"""Tables of protos/containerd/ttrpc_events.proto for protos.lite, made by protos/generate."""

Timestamp = {0: 'google.protobuf.Timestamp', 1: ("seconds", 3, 0, None), 2: ("nanos", 5, 0, None)}
Any = {0: 'google.protobuf.Any', 1: ("type_url", 9, 0, None), 2: ("value", 12, 0, None)}
Envelope = {0: 'containerd.types.Envelope', 1: ("timestamp", 11, 1, Timestamp), 2: ("namespace", 9, 0, None), 3: ("topic", 9, 0, None), 4: ("event", 11, 1, Any)}
ForwardRequest = {0: 'containerd.services.events.ttrpc.v1.ForwardRequest', 1: ("envelope", 11, 1, Envelope)}
Empty = {0: 'google.protobuf.Empty'}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {
    "containerd.services.events.ttrpc.v1.Events": {
        "Forward": (ForwardRequest, Empty, False, False),
    },
}
