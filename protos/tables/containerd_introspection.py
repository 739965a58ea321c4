"""Tables of protos/containerd/introspection.proto for protos.lite, made by protos/generate."""

Any = {0: 'google.protobuf.Any', 1: ("type_url", 9, 0, None), 2: ("value", 12, 0, None)}
RuntimeRequest = {0: 'containerd.types.RuntimeRequest', 1: ("runtime_path", 9, 0, None), 2: ("options", 11, 1, Any)}
RuntimeVersion = {0: 'containerd.types.RuntimeVersion', 1: ("version", 9, 0, None), 2: ("revision", 9, 0, None)}
RuntimeInfo = {0: 'containerd.types.RuntimeInfo', 1: ("name", 9, 0, None), 2: ("version", 11, 1, RuntimeVersion), 3: ("options", 11, 1, Any), 4: ("features", 11, 1, Any), 5: ("annotations", 11, 3, (9, 9, None))}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {}
