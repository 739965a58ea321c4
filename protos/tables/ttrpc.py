"""Tables of protos/ttrpc/ttrpc.proto for protos.lite, made by protos/generate."""

KeyValue = {0: 'ttrpc.KeyValue', 1: ("key", 9, 0, None), 2: ("value", 9, 0, None)}
Request = {0: 'ttrpc.Request', 1: ("service", 9, 0, None), 2: ("method", 9, 0, None), 3: ("payload", 12, 0, None), 4: ("timeout_nano", 3, 0, None), 5: ("metadata", 11, 2, KeyValue)}
Any = {0: 'google.protobuf.Any', 1: ("type_url", 9, 0, None), 2: ("value", 12, 0, None)}
Status = {0: 'ttrpc.Status', 1: ("code", 5, 0, None), 2: ("message", 9, 0, None), 3: ("details", 11, 2, Any)}
Response = {0: 'ttrpc.Response', 1: ("status", 11, 1, Status), 2: ("payload", 12, 0, None)}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {}
