"""Tables of protos/containerd/events.proto for protos.lite, made by protos/generate."""

Mount = {0: 'containerd.types.Mount', 1: ("type", 9, 0, None), 2: ("source", 9, 0, None), 3: ("target", 9, 0, None), 4: ("options", 9, 2, None)}
TaskIO = {0: 'containerd.events.TaskIO', 1: ("stdin", 9, 0, None), 2: ("stdout", 9, 0, None), 3: ("stderr", 9, 0, None), 4: ("terminal", 8, 0, None)}
TaskCreate = {0: 'containerd.events.TaskCreate', 1: ("container_id", 9, 0, None), 2: ("bundle", 9, 0, None), 3: ("rootfs", 11, 2, Mount), 4: ("io", 11, 1, TaskIO), 5: ("checkpoint", 9, 0, None), 6: ("pid", 13, 0, None)}
TaskStart = {0: 'containerd.events.TaskStart', 1: ("container_id", 9, 0, None), 2: ("pid", 13, 0, None)}
Timestamp = {0: 'google.protobuf.Timestamp', 1: ("seconds", 3, 0, None), 2: ("nanos", 5, 0, None)}
TaskDelete = {0: 'containerd.events.TaskDelete', 1: ("container_id", 9, 0, None), 2: ("pid", 13, 0, None), 3: ("exit_status", 13, 0, None), 4: ("exited_at", 11, 1, Timestamp), 5: ("id", 9, 0, None)}
TaskExit = {0: 'containerd.events.TaskExit', 1: ("container_id", 9, 0, None), 2: ("id", 9, 0, None), 3: ("pid", 13, 0, None), 4: ("exit_status", 13, 0, None), 5: ("exited_at", 11, 1, Timestamp)}
TaskOOM = {0: 'containerd.events.TaskOOM', 1: ("container_id", 9, 0, None)}
TaskExecAdded = {0: 'containerd.events.TaskExecAdded', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
TaskExecStarted = {0: 'containerd.events.TaskExecStarted', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("pid", 13, 0, None)}
TaskPaused = {0: 'containerd.events.TaskPaused', 1: ("container_id", 9, 0, None)}
TaskResumed = {0: 'containerd.events.TaskResumed', 1: ("container_id", 9, 0, None)}
TaskCheckpointed = {0: 'containerd.events.TaskCheckpointed', 1: ("container_id", 9, 0, None), 2: ("checkpoint", 9, 0, None)}
SandboxCreate = {0: 'containerd.events.SandboxCreate', 1: ("sandbox_id", 9, 0, None)}
SandboxStart = {0: 'containerd.events.SandboxStart', 1: ("sandbox_id", 9, 0, None)}
SandboxExit = {0: 'containerd.events.SandboxExit', 1: ("sandbox_id", 9, 0, None), 2: ("exit_status", 13, 0, None), 3: ("exited_at", 11, 1, Timestamp)}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {}
