"""Tables of protos/katapy/extension.proto for protos.lite, made by protos/generate."""

HelloRequest = {0: 'katapy.agent.v1.HelloRequest'}
HelloResponse = {0: 'katapy.agent.v1.HelloResponse', 1: ("agent_version", 9, 0, None), 2: ("features", 9, 2, None), 3: ("boot_stamps", 11, 3, (9, 4, None))}
StdioFrame = {0: 'katapy.agent.v1.StdioFrame', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("channel", 13, 0, None), 4: ("data", 12, 0, None), 5: ("eof", 8, 0, None), 6: ("credit", 4, 0, None)}
ConsoleFrame = {0: 'katapy.agent.v1.ConsoleFrame', 3: ("channel", 13, 0, None), 4: ("data", 12, 0, None), 5: ("eof", 8, 0, None), 6: ("credit", 4, 0, None), 7: ("args", 9, 2, None), 8: ("terminal", 8, 0, None), 9: ("term", 9, 0, None), 10: ("rows", 13, 0, None), 11: ("columns", 13, 0, None), 12: ("exited", 8, 0, None), 13: ("exit_code", 13, 0, None)}
RemoveDeviceRequest = {0: 'katapy.agent.v1.RemoveDeviceRequest', 1: ("pci_path", 9, 0, None)}
ArchiveRequest = {0: 'katapy.agent.v1.ArchiveRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("path", 9, 0, None), 4: ("extract", 8, 0, None), 5: ("no_walk", 8, 0, None), 6: ("preserve_ownership", 8, 0, None)}
SetClockRequest = {0: 'katapy.agent.v1.SetClockRequest', 1: ("unix_nanos", 3, 0, None)}
FileChange = {0: 'katapy.agent.v1.FileChange', 1: ("path", 9, 0, None), 2: ("file_size", 3, 0, None), 3: ("file_mode", 13, 0, None), 4: ("uid", 5, 0, None), 5: ("gid", 5, 0, None), 6: ("offset", 3, 0, None), 7: ("data", 12, 0, None), 8: ("remove", 8, 0, None), 9: ("in_place", 8, 0, None)}
PushFilesRequest = {0: 'katapy.agent.v1.PushFilesRequest', 1: ("volume", 9, 0, None), 2: ("changes", 11, 2, FileChange)}
PullFileRequest = {0: 'katapy.agent.v1.PullFileRequest', 1: ("volume", 9, 0, None), 2: ("path", 9, 0, None), 3: ("limit", 3, 0, None)}
PullFileResponse = {0: 'katapy.agent.v1.PullFileResponse', 1: ("data", 12, 0, None)}
ListenSocketRequest = {0: 'katapy.agent.v1.ListenSocketRequest', 1: ("path", 9, 0, None), 2: ("mode", 13, 0, None), 3: ("uid", 13, 0, None), 4: ("gid", 13, 0, None), 5: ("cover", 9, 0, None)}
SocketAccepted = {0: 'katapy.agent.v1.SocketAccepted', 1: ("connection", 4, 0, None)}
ConnectionFrame = {0: 'katapy.agent.v1.ConnectionFrame', 1: ("connection", 4, 0, None), 2: ("data", 12, 0, None), 3: ("eof", 8, 0, None), 4: ("credit", 4, 0, None), 5: ("port", 13, 0, None)}
Listener = {0: 'katapy.agent.v1.Listener', 1: ("protocol", 9, 0, None), 2: ("port", 13, 0, None)}
WaitListenersRequest = {0: 'katapy.agent.v1.WaitListenersRequest', 1: ("known", 11, 2, Listener), 2: ("local", 8, 0, None)}
WaitListenersResponse = {0: 'katapy.agent.v1.WaitListenersResponse', 1: ("now", 11, 2, Listener)}
Empty = {0: 'google.protobuf.Empty'}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {
    "katapy.agent.v1.Extension": {
        "Hello": (HelloRequest, HelloResponse, False, False),
        "Stdio": (StdioFrame, StdioFrame, True, True),
        "SetClock": (SetClockRequest, Empty, False, False),
        "PushFiles": (PushFilesRequest, Empty, False, False),
        "PullFile": (PullFileRequest, PullFileResponse, False, False),
        "ListenSocket": (ListenSocketRequest, SocketAccepted, True, True),
        "Connection": (ConnectionFrame, ConnectionFrame, True, True),
        "Dial": (ConnectionFrame, ConnectionFrame, True, True),
        "Console": (ConsoleFrame, ConsoleFrame, True, True),
        "RemoveDevice": (RemoveDeviceRequest, Empty, False, False),
        "Archive": (ArchiveRequest, Empty, False, False),
        "WaitListeners": (WaitListenersRequest, WaitListenersResponse, False, False),
    },
}
