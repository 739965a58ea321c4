"""Tables of protos/kata/health.proto for protos.lite, made by protos/generate."""

CheckRequest = {0: 'grpc.CheckRequest', 1: ("service", 9, 0, None)}
HealthCheckResponse = {0: 'grpc.HealthCheckResponse', 1: ("status", 14, 0, None)}
VersionCheckResponse = {0: 'grpc.VersionCheckResponse', 1: ("grpc_version", 9, 0, None), 2: ("agent_version", 9, 0, None)}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {
    "grpc.Health": {
        "Check": (CheckRequest, HealthCheckResponse, False, False),
        "Version": (CheckRequest, VersionCheckResponse, False, False),
    },
}
