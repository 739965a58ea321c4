"""Tables of protos/containerd/task_v2.proto for protos.lite, made by protos/generate."""

Mount = {0: 'containerd.types.Mount', 1: ("type", 9, 0, None), 2: ("source", 9, 0, None), 3: ("target", 9, 0, None), 4: ("options", 9, 2, None)}
Any = {0: 'google.protobuf.Any', 1: ("type_url", 9, 0, None), 2: ("value", 12, 0, None)}
CreateTaskRequest = {0: 'containerd.task.v2.CreateTaskRequest', 1: ("id", 9, 0, None), 2: ("bundle", 9, 0, None), 3: ("rootfs", 11, 2, Mount), 4: ("terminal", 8, 0, None), 5: ("stdin", 9, 0, None), 6: ("stdout", 9, 0, None), 7: ("stderr", 9, 0, None), 8: ("checkpoint", 9, 0, None), 9: ("parent_checkpoint", 9, 0, None), 10: ("options", 11, 1, Any)}
CreateTaskResponse = {0: 'containerd.task.v2.CreateTaskResponse', 1: ("pid", 13, 0, None)}
StartRequest = {0: 'containerd.task.v2.StartRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
StartResponse = {0: 'containerd.task.v2.StartResponse', 1: ("pid", 13, 0, None)}
DeleteRequest = {0: 'containerd.task.v2.DeleteRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
Timestamp = {0: 'google.protobuf.Timestamp', 1: ("seconds", 3, 0, None), 2: ("nanos", 5, 0, None)}
DeleteResponse = {0: 'containerd.task.v2.DeleteResponse', 1: ("pid", 13, 0, None), 2: ("exit_status", 13, 0, None), 3: ("exited_at", 11, 1, Timestamp)}
ExecProcessRequest = {0: 'containerd.task.v2.ExecProcessRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("terminal", 8, 0, None), 4: ("stdin", 9, 0, None), 5: ("stdout", 9, 0, None), 6: ("stderr", 9, 0, None), 7: ("spec", 11, 1, Any)}
ExecProcessResponse = {0: 'containerd.task.v2.ExecProcessResponse'}
ResizePtyRequest = {0: 'containerd.task.v2.ResizePtyRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("width", 13, 0, None), 4: ("height", 13, 0, None)}
StateRequest = {0: 'containerd.task.v2.StateRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
StateResponse = {0: 'containerd.task.v2.StateResponse', 1: ("id", 9, 0, None), 2: ("bundle", 9, 0, None), 3: ("pid", 13, 0, None), 4: ("status", 14, 0, None), 5: ("stdin", 9, 0, None), 6: ("stdout", 9, 0, None), 7: ("stderr", 9, 0, None), 8: ("terminal", 8, 0, None), 9: ("exit_status", 13, 0, None), 10: ("exited_at", 11, 1, Timestamp), 11: ("exec_id", 9, 0, None)}
KillRequest = {0: 'containerd.task.v2.KillRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("signal", 13, 0, None), 4: ("all", 8, 0, None)}
CloseIORequest = {0: 'containerd.task.v2.CloseIORequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("stdin", 8, 0, None)}
PidsRequest = {0: 'containerd.task.v2.PidsRequest', 1: ("id", 9, 0, None)}
ProcessInfo = {0: 'containerd.v1.types.ProcessInfo', 1: ("pid", 13, 0, None), 2: ("info", 11, 1, Any)}
PidsResponse = {0: 'containerd.task.v2.PidsResponse', 1: ("processes", 11, 2, ProcessInfo)}
CheckpointTaskRequest = {0: 'containerd.task.v2.CheckpointTaskRequest', 1: ("id", 9, 0, None), 2: ("path", 9, 0, None), 3: ("options", 11, 1, Any)}
UpdateTaskRequest = {0: 'containerd.task.v2.UpdateTaskRequest', 1: ("id", 9, 0, None), 2: ("resources", 11, 1, Any), 3: ("annotations", 11, 3, (9, 9, None))}
WaitRequest = {0: 'containerd.task.v2.WaitRequest', 1: ("id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
WaitResponse = {0: 'containerd.task.v2.WaitResponse', 1: ("exit_status", 13, 0, None), 2: ("exited_at", 11, 1, Timestamp)}
StatsRequest = {0: 'containerd.task.v2.StatsRequest', 1: ("id", 9, 0, None)}
StatsResponse = {0: 'containerd.task.v2.StatsResponse', 1: ("stats", 11, 1, Any)}
ConnectRequest = {0: 'containerd.task.v2.ConnectRequest', 1: ("id", 9, 0, None)}
ConnectResponse = {0: 'containerd.task.v2.ConnectResponse', 1: ("shim_pid", 13, 0, None), 2: ("task_pid", 13, 0, None), 3: ("version", 9, 0, None)}
ShutdownRequest = {0: 'containerd.task.v2.ShutdownRequest', 1: ("id", 9, 0, None), 2: ("now", 8, 0, None)}
PauseRequest = {0: 'containerd.task.v2.PauseRequest', 1: ("id", 9, 0, None)}
ResumeRequest = {0: 'containerd.task.v2.ResumeRequest', 1: ("id", 9, 0, None)}
Empty = {0: 'google.protobuf.Empty'}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {
    "containerd.task.v2.Task": {
        "State": (StateRequest, StateResponse, False, False),
        "Create": (CreateTaskRequest, CreateTaskResponse, False, False),
        "Start": (StartRequest, StartResponse, False, False),
        "Delete": (DeleteRequest, DeleteResponse, False, False),
        "Pids": (PidsRequest, PidsResponse, False, False),
        "Pause": (PauseRequest, Empty, False, False),
        "Resume": (ResumeRequest, Empty, False, False),
        "Checkpoint": (CheckpointTaskRequest, Empty, False, False),
        "Kill": (KillRequest, Empty, False, False),
        "Exec": (ExecProcessRequest, Empty, False, False),
        "ResizePty": (ResizePtyRequest, Empty, False, False),
        "CloseIO": (CloseIORequest, Empty, False, False),
        "Update": (UpdateTaskRequest, Empty, False, False),
        "Wait": (WaitRequest, WaitResponse, False, False),
        "Stats": (StatsRequest, StatsResponse, False, False),
        "Connect": (ConnectRequest, ConnectResponse, False, False),
        "Shutdown": (ShutdownRequest, Empty, False, False),
    },
}
