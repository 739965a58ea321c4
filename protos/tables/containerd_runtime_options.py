"""Tables of protos/containerd/runtime_options.proto for protos.lite, made by protos/generate."""

Options = {0: 'runtimeoptions.v1.Options', 1: ("type_url", 9, 0, None), 2: ("config_path", 9, 0, None), 3: ("config_body", 12, 0, None)}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {}
