"""Tables of protos/containerd/bootstrap.proto for protos.lite, made by protos/generate."""

Any = {0: 'google.protobuf.Any', 1: ("type_url", 9, 0, None), 2: ("value", 12, 0, None)}
Extension = {0: 'containerd.runtime.bootstrap.v1.Extension', 1: ("value", 11, 1, Any)}
BootstrapParams = {0: 'containerd.runtime.bootstrap.v1.BootstrapParams', 1: ("instance_id", 9, 0, None), 2: ("namespace", 9, 0, None), 3: ("log_level", 14, 0, None), 4: ("containerd_version", 9, 0, None), 5: ("containerd_ttrpc_address", 9, 0, None), 6: ("containerd_grpc_address", 9, 0, None), 7: ("containerd_binary", 9, 0, None), 8: ("extensions", 11, 2, Extension), 9: ("socket_dir", 9, 1, None)}
BootstrapResult = {0: 'containerd.runtime.bootstrap.v1.BootstrapResult', 1: ("version", 5, 0, None), 2: ("address", 9, 0, None), 3: ("protocol", 9, 0, None), 4: ("capabilities", 14, 2, None), 5: ("metadata", 11, 3, (9, 9, None))}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {}
