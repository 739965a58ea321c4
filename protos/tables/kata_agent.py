"""Tables of protos/kata/agent.proto for protos.lite, made by protos/generate."""

DestroySandboxRequest = {0: 'grpc.DestroySandboxRequest'}
RemoveStaleVirtiofsShareMountsRequest = {0: 'grpc.RemoveStaleVirtiofsShareMountsRequest'}
ListInterfacesRequest = {0: 'grpc.ListInterfacesRequest'}
ListRoutesRequest = {0: 'grpc.ListRoutesRequest'}
GetOOMEventRequest = {0: 'grpc.GetOOMEventRequest'}
GetMetricsRequest = {0: 'grpc.GetMetricsRequest'}
StringUser = {0: 'grpc.StringUser', 1: ("uid", 9, 0, None), 2: ("gid", 9, 0, None), 3: ("additionalGids", 9, 2, None)}
Device = {0: 'grpc.Device', 1: ("id", 9, 0, None), 2: ("type", 9, 0, None), 3: ("vm_path", 9, 0, None), 4: ("container_path", 9, 0, None), 5: ("options", 9, 2, None)}
FSGroup = {0: 'grpc.FSGroup', 2: ("group_id", 13, 0, None), 3: ("group_change_policy", 14, 0, None)}
Storage = {0: 'grpc.Storage', 1: ("driver", 9, 0, None), 2: ("driver_options", 9, 2, None), 3: ("source", 9, 0, None), 4: ("fstype", 9, 0, None), 5: ("options", 9, 2, None), 6: ("mount_point", 9, 0, None), 7: ("fs_group", 11, 1, FSGroup), 8: ("shared", 8, 0, None)}
Box = {0: 'grpc.Box', 1: ("Height", 13, 0, None), 2: ("Width", 13, 0, None)}
User = {0: 'grpc.User', 1: ("UID", 13, 0, None), 2: ("GID", 13, 0, None), 3: ("AdditionalGids", 13, 2, None), 4: ("Username", 9, 0, None)}
LinuxCapabilities = {0: 'grpc.LinuxCapabilities', 1: ("Bounding", 9, 2, None), 2: ("Effective", 9, 2, None), 3: ("Inheritable", 9, 2, None), 4: ("Permitted", 9, 2, None), 5: ("Ambient", 9, 2, None)}
POSIXRlimit = {0: 'grpc.POSIXRlimit', 1: ("Type", 9, 0, None), 2: ("Hard", 4, 0, None), 3: ("Soft", 4, 0, None)}
Process = {0: 'grpc.Process', 1: ("Terminal", 8, 0, None), 2: ("ConsoleSize", 11, 1, Box), 3: ("User", 11, 1, User), 4: ("Args", 9, 2, None), 5: ("Env", 9, 2, None), 6: ("Cwd", 9, 0, None), 7: ("Capabilities", 11, 1, LinuxCapabilities), 8: ("Rlimits", 11, 2, POSIXRlimit), 9: ("NoNewPrivileges", 8, 0, None), 10: ("ApparmorProfile", 9, 0, None), 11: ("OOMScoreAdj", 3, 0, None), 12: ("SelinuxLabel", 9, 0, None)}
Root = {0: 'grpc.Root', 1: ("Path", 9, 0, None), 2: ("Readonly", 8, 0, None)}
Mount = {0: 'grpc.Mount', 1: ("destination", 9, 0, None), 2: ("source", 9, 0, None), 3: ("type", 9, 0, None), 4: ("options", 9, 2, None)}
Hook = {0: 'grpc.Hook', 1: ("Path", 9, 0, None), 2: ("Args", 9, 2, None), 3: ("Env", 9, 2, None), 4: ("Timeout", 3, 0, None)}
Hooks = {0: 'grpc.Hooks', 1: ("Prestart", 11, 2, Hook), 2: ("Poststart", 11, 2, Hook), 3: ("Poststop", 11, 2, Hook), 4: ("CreateRuntime", 11, 2, Hook), 5: ("CreateContainer", 11, 2, Hook), 6: ("StartContainer", 11, 2, Hook)}
LinuxIDMapping = {0: 'grpc.LinuxIDMapping', 1: ("HostID", 13, 0, None), 2: ("ContainerID", 13, 0, None), 3: ("Size", 13, 0, None)}
LinuxDeviceCgroup = {0: 'grpc.LinuxDeviceCgroup', 1: ("Allow", 8, 0, None), 2: ("Type", 9, 0, None), 3: ("Major", 3, 0, None), 4: ("Minor", 3, 0, None), 5: ("Access", 9, 0, None)}
LinuxMemory = {0: 'grpc.LinuxMemory', 1: ("Limit", 3, 0, None), 2: ("Reservation", 3, 0, None), 3: ("Swap", 3, 0, None), 4: ("Kernel", 3, 0, None), 5: ("KernelTCP", 3, 0, None), 6: ("Swappiness", 4, 0, None), 7: ("DisableOOMKiller", 8, 0, None)}
LinuxCPU = {0: 'grpc.LinuxCPU', 1: ("Shares", 4, 0, None), 2: ("Quota", 3, 0, None), 3: ("Period", 4, 0, None), 4: ("RealtimeRuntime", 3, 0, None), 5: ("RealtimePeriod", 4, 0, None), 6: ("Cpus", 9, 0, None), 7: ("Mems", 9, 0, None)}
LinuxPids = {0: 'grpc.LinuxPids', 1: ("Limit", 3, 0, None)}
LinuxWeightDevice = {0: 'grpc.LinuxWeightDevice', 1: ("Major", 3, 0, None), 2: ("Minor", 3, 0, None), 3: ("Weight", 13, 0, None), 4: ("LeafWeight", 13, 0, None)}
LinuxThrottleDevice = {0: 'grpc.LinuxThrottleDevice', 1: ("Major", 3, 0, None), 2: ("Minor", 3, 0, None), 3: ("Rate", 4, 0, None)}
LinuxBlockIO = {0: 'grpc.LinuxBlockIO', 1: ("Weight", 13, 0, None), 2: ("LeafWeight", 13, 0, None), 3: ("WeightDevice", 11, 2, LinuxWeightDevice), 4: ("ThrottleReadBpsDevice", 11, 2, LinuxThrottleDevice), 5: ("ThrottleWriteBpsDevice", 11, 2, LinuxThrottleDevice), 6: ("ThrottleReadIOPSDevice", 11, 2, LinuxThrottleDevice), 7: ("ThrottleWriteIOPSDevice", 11, 2, LinuxThrottleDevice)}
LinuxHugepageLimit = {0: 'grpc.LinuxHugepageLimit', 1: ("Pagesize", 9, 0, None), 2: ("Limit", 4, 0, None)}
LinuxInterfacePriority = {0: 'grpc.LinuxInterfacePriority', 1: ("Name", 9, 0, None), 2: ("Priority", 13, 0, None)}
LinuxNetwork = {0: 'grpc.LinuxNetwork', 1: ("ClassID", 13, 0, None), 2: ("Priorities", 11, 2, LinuxInterfacePriority)}
LinuxResources = {0: 'grpc.LinuxResources', 1: ("Devices", 11, 2, LinuxDeviceCgroup), 2: ("Memory", 11, 1, LinuxMemory), 3: ("CPU", 11, 1, LinuxCPU), 4: ("Pids", 11, 1, LinuxPids), 5: ("BlockIO", 11, 1, LinuxBlockIO), 6: ("HugepageLimits", 11, 2, LinuxHugepageLimit), 7: ("Network", 11, 1, LinuxNetwork)}
LinuxNamespace = {0: 'grpc.LinuxNamespace', 1: ("Type", 9, 0, None), 2: ("Path", 9, 0, None)}
LinuxDevice = {0: 'grpc.LinuxDevice', 1: ("Path", 9, 0, None), 2: ("Type", 9, 0, None), 3: ("Major", 3, 0, None), 4: ("Minor", 3, 0, None), 5: ("FileMode", 13, 0, None), 6: ("UID", 13, 0, None), 7: ("GID", 13, 0, None)}
LinuxSeccompArg = {0: 'grpc.LinuxSeccompArg', 1: ("Index", 4, 0, None), 2: ("Value", 4, 0, None), 3: ("ValueTwo", 4, 0, None), 4: ("Op", 9, 0, None)}
LinuxSyscall = {0: 'grpc.LinuxSyscall', 1: ("Names", 9, 2, None), 2: ("Action", 9, 0, None), 3: ("errnoret", 13, 1, None), 4: ("Args", 11, 2, LinuxSeccompArg)}
LinuxSeccomp = {0: 'grpc.LinuxSeccomp', 1: ("DefaultAction", 9, 0, None), 2: ("Architectures", 9, 2, None), 3: ("Flags", 9, 2, None), 4: ("Syscalls", 11, 2, LinuxSyscall)}
LinuxIntelRdt = {0: 'grpc.LinuxIntelRdt', 1: ("L3CacheSchema", 9, 0, None)}
Linux = {0: 'grpc.Linux', 1: ("UIDMappings", 11, 2, LinuxIDMapping), 2: ("GIDMappings", 11, 2, LinuxIDMapping), 3: ("Sysctl", 11, 3, (9, 9, None)), 4: ("Resources", 11, 1, LinuxResources), 5: ("CgroupsPath", 9, 0, None), 6: ("Namespaces", 11, 2, LinuxNamespace), 7: ("Devices", 11, 2, LinuxDevice), 8: ("Seccomp", 11, 1, LinuxSeccomp), 9: ("RootfsPropagation", 9, 0, None), 10: ("MaskedPaths", 9, 2, None), 11: ("ReadonlyPaths", 9, 2, None), 12: ("MountLabel", 9, 0, None), 13: ("IntelRdt", 11, 1, LinuxIntelRdt)}
Solaris = {0: 'grpc.Solaris', 1: ("dummy", 9, 0, None)}
Windows = {0: 'grpc.Windows', 1: ("dummy", 9, 0, None)}
Spec = {0: 'grpc.Spec', 1: ("Version", 9, 0, None), 2: ("Process", 11, 1, Process), 3: ("Root", 11, 1, Root), 4: ("Hostname", 9, 0, None), 5: ("Mounts", 11, 2, Mount), 6: ("Hooks", 11, 1, Hooks), 7: ("Annotations", 11, 3, (9, 9, None)), 8: ("Linux", 11, 1, Linux), 9: ("Solaris", 11, 1, Solaris), 10: ("Windows", 11, 1, Windows)}
SharedMount = {0: 'grpc.SharedMount', 1: ("name", 9, 0, None), 2: ("src_ctr", 9, 0, None), 3: ("src_path", 9, 0, None), 4: ("dst_ctr", 9, 0, None), 5: ("dst_path", 9, 0, None)}
CreateContainerRequest = {0: 'grpc.CreateContainerRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("string_user", 11, 1, StringUser), 4: ("devices", 11, 2, Device), 5: ("storages", 11, 2, Storage), 6: ("OCI", 11, 1, Spec), 7: ("sandbox_pidns", 8, 0, None), 8: ("shared_mounts", 11, 2, SharedMount), 9: ("stdin_port", 13, 0, None), 10: ("stdout_port", 13, 0, None), 11: ("stderr_port", 13, 0, None), 100: ("oci_spec_json", 12, 0, None)}
StartContainerRequest = {0: 'grpc.StartContainerRequest', 1: ("container_id", 9, 0, None)}
RemoveContainerRequest = {0: 'grpc.RemoveContainerRequest', 1: ("container_id", 9, 0, None), 2: ("timeout", 13, 0, None)}
ExecProcessRequest = {0: 'grpc.ExecProcessRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("string_user", 11, 1, StringUser), 4: ("process", 11, 1, Process), 5: ("stdin_port", 13, 0, None), 6: ("stdout_port", 13, 0, None), 7: ("stderr_port", 13, 0, None), 100: ("oci_process_json", 12, 0, None)}
SignalProcessRequest = {0: 'grpc.SignalProcessRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("signal", 13, 0, None)}
WaitProcessRequest = {0: 'grpc.WaitProcessRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
WaitProcessResponse = {0: 'grpc.WaitProcessResponse', 1: ("status", 5, 0, None)}
UpdateContainerRequest = {0: 'grpc.UpdateContainerRequest', 1: ("container_id", 9, 0, None), 2: ("resources", 11, 1, LinuxResources), 100: ("oci_resources_json", 12, 0, None)}
StatsContainerRequest = {0: 'grpc.StatsContainerRequest', 1: ("container_id", 9, 0, None)}
PauseContainerRequest = {0: 'grpc.PauseContainerRequest', 1: ("container_id", 9, 0, None)}
ResumeContainerRequest = {0: 'grpc.ResumeContainerRequest', 1: ("container_id", 9, 0, None)}
CpuUsage = {0: 'grpc.CpuUsage', 1: ("total_usage", 4, 0, None), 2: ("percpu_usage", 4, 2, None), 3: ("usage_in_kernelmode", 4, 0, None), 4: ("usage_in_usermode", 4, 0, None)}
ThrottlingData = {0: 'grpc.ThrottlingData', 1: ("periods", 4, 0, None), 2: ("throttled_periods", 4, 0, None), 3: ("throttled_time", 4, 0, None)}
CpuStats = {0: 'grpc.CpuStats', 1: ("cpu_usage", 11, 1, CpuUsage), 2: ("throttling_data", 11, 1, ThrottlingData)}
PidsStats = {0: 'grpc.PidsStats', 1: ("current", 4, 0, None), 2: ("limit", 4, 0, None)}
MemoryData = {0: 'grpc.MemoryData', 1: ("usage", 4, 0, None), 2: ("max_usage", 4, 0, None), 3: ("failcnt", 4, 0, None), 4: ("limit", 4, 0, None)}
MemoryStats = {0: 'grpc.MemoryStats', 1: ("cache", 4, 0, None), 2: ("usage", 11, 1, MemoryData), 3: ("swap_usage", 11, 1, MemoryData), 4: ("kernel_usage", 11, 1, MemoryData), 5: ("use_hierarchy", 8, 0, None), 6: ("stats", 11, 3, (9, 4, None))}
BlkioStatsEntry = {0: 'grpc.BlkioStatsEntry', 1: ("major", 4, 0, None), 2: ("minor", 4, 0, None), 3: ("op", 9, 0, None), 4: ("value", 4, 0, None)}
BlkioStats = {0: 'grpc.BlkioStats', 1: ("io_service_bytes_recursive", 11, 2, BlkioStatsEntry), 2: ("io_serviced_recursive", 11, 2, BlkioStatsEntry), 3: ("io_queued_recursive", 11, 2, BlkioStatsEntry), 4: ("io_service_time_recursive", 11, 2, BlkioStatsEntry), 5: ("io_wait_time_recursive", 11, 2, BlkioStatsEntry), 6: ("io_merged_recursive", 11, 2, BlkioStatsEntry), 7: ("io_time_recursive", 11, 2, BlkioStatsEntry), 8: ("sectors_recursive", 11, 2, BlkioStatsEntry)}
HugetlbStats = {0: 'grpc.HugetlbStats', 1: ("usage", 4, 0, None), 2: ("max_usage", 4, 0, None), 3: ("failcnt", 4, 0, None)}
CgroupStats = {0: 'grpc.CgroupStats', 1: ("cpu_stats", 11, 1, CpuStats), 2: ("memory_stats", 11, 1, MemoryStats), 3: ("pids_stats", 11, 1, PidsStats), 4: ("blkio_stats", 11, 1, BlkioStats), 5: ("hugetlb_stats", 11, 3, (9, 11, HugetlbStats))}
NetworkStats = {0: 'grpc.NetworkStats', 1: ("name", 9, 0, None), 2: ("rx_bytes", 4, 0, None), 3: ("rx_packets", 4, 0, None), 4: ("rx_errors", 4, 0, None), 5: ("rx_dropped", 4, 0, None), 6: ("tx_bytes", 4, 0, None), 7: ("tx_packets", 4, 0, None), 8: ("tx_errors", 4, 0, None), 9: ("tx_dropped", 4, 0, None)}
StatsContainerResponse = {0: 'grpc.StatsContainerResponse', 1: ("cgroup_stats", 11, 1, CgroupStats), 2: ("network_stats", 11, 2, NetworkStats)}
WriteStreamRequest = {0: 'grpc.WriteStreamRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("data", 12, 0, None)}
WriteStreamResponse = {0: 'grpc.WriteStreamResponse', 1: ("len", 13, 0, None)}
ReadStreamRequest = {0: 'grpc.ReadStreamRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("len", 13, 0, None)}
ReadStreamResponse = {0: 'grpc.ReadStreamResponse', 1: ("data", 12, 0, None)}
CloseStdinRequest = {0: 'grpc.CloseStdinRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None)}
TtyWinResizeRequest = {0: 'grpc.TtyWinResizeRequest', 1: ("container_id", 9, 0, None), 2: ("exec_id", 9, 0, None), 3: ("row", 13, 0, None), 4: ("column", 13, 0, None)}
KernelModule = {0: 'grpc.KernelModule', 1: ("name", 9, 0, None), 2: ("parameters", 9, 2, None)}
CreateSandboxRequest = {0: 'grpc.CreateSandboxRequest', 1: ("hostname", 9, 0, None), 2: ("dns", 9, 2, None), 3: ("storages", 11, 2, Storage), 4: ("sandbox_pidns", 8, 0, None), 5: ("sandbox_id", 9, 0, None), 6: ("guest_hook_path", 9, 0, None), 7: ("kernel_modules", 11, 2, KernelModule), 100: ("sysctl", 11, 3, (9, 9, None))}
IPAddress = {0: 'types.IPAddress', 1: ("family", 14, 0, None), 2: ("address", 9, 0, None), 3: ("mask", 9, 0, None)}
Interface = {0: 'types.Interface', 1: ("device", 9, 0, None), 2: ("name", 9, 0, None), 3: ("IPAddresses", 11, 2, IPAddress), 4: ("mtu", 4, 0, None), 5: ("hwAddr", 9, 0, None), 6: ("devicePath", 9, 0, None), 7: ("type", 9, 0, None), 8: ("raw_flags", 13, 0, None)}
Interfaces = {0: 'grpc.Interfaces', 1: ("Interfaces", 11, 2, Interface)}
Route = {0: 'types.Route', 1: ("dest", 9, 0, None), 2: ("gateway", 9, 0, None), 3: ("device", 9, 0, None), 4: ("source", 9, 0, None), 5: ("scope", 13, 0, None), 6: ("family", 14, 0, None), 7: ("flags", 13, 0, None), 8: ("mtu", 13, 0, None), 100: ("metric", 13, 0, None)}
Routes = {0: 'grpc.Routes', 1: ("Routes", 11, 2, Route)}
UpdateInterfaceRequest = {0: 'grpc.UpdateInterfaceRequest', 1: ("interface", 11, 1, Interface)}
UpdateRoutesRequest = {0: 'grpc.UpdateRoutesRequest', 1: ("routes", 11, 1, Routes)}
UpdateEphemeralMountsRequest = {0: 'grpc.UpdateEphemeralMountsRequest', 1: ("storages", 11, 2, Storage)}
ARPNeighbor = {0: 'types.ARPNeighbor', 1: ("toIPAddress", 11, 1, IPAddress), 2: ("device", 9, 0, None), 3: ("lladdr", 9, 0, None), 4: ("state", 5, 0, None), 5: ("flags", 5, 0, None)}
ARPNeighbors = {0: 'grpc.ARPNeighbors', 1: ("ARPNeighbors", 11, 2, ARPNeighbor)}
AddARPNeighborsRequest = {0: 'grpc.AddARPNeighborsRequest', 1: ("neighbors", 11, 1, ARPNeighbors)}
GetIPTablesRequest = {0: 'grpc.GetIPTablesRequest', 1: ("is_ipv6", 8, 0, None)}
GetIPTablesResponse = {0: 'grpc.GetIPTablesResponse', 1: ("data", 12, 0, None)}
SetIPTablesRequest = {0: 'grpc.SetIPTablesRequest', 1: ("is_ipv6", 8, 0, None), 2: ("data", 12, 0, None)}
SetIPTablesResponse = {0: 'grpc.SetIPTablesResponse', 1: ("data", 12, 0, None)}
OnlineCPUMemRequest = {0: 'grpc.OnlineCPUMemRequest', 1: ("wait", 8, 0, None), 2: ("nb_cpus", 13, 0, None), 3: ("cpu_only", 8, 0, None)}
ReseedRandomDevRequest = {0: 'grpc.ReseedRandomDevRequest', 2: ("data", 12, 0, None)}
AgentDetails = {0: 'grpc.AgentDetails', 1: ("version", 9, 0, None), 2: ("init_daemon", 8, 0, None), 3: ("device_handlers", 9, 2, None), 4: ("storage_handlers", 9, 2, None), 5: ("supports_seccomp", 8, 0, None), 6: ("extra_features", 9, 2, None)}
GuestDetailsRequest = {0: 'grpc.GuestDetailsRequest', 1: ("mem_block_size", 8, 0, None), 2: ("mem_hotplug_probe", 8, 0, None)}
GuestDetailsResponse = {0: 'grpc.GuestDetailsResponse', 1: ("mem_block_size_bytes", 4, 0, None), 2: ("agent_details", 11, 1, AgentDetails), 3: ("support_mem_hotplug_probe", 8, 0, None)}
MemHotplugByProbeRequest = {0: 'grpc.MemHotplugByProbeRequest', 1: ("memHotplugProbeAddr", 4, 2, None)}
SetGuestDateTimeRequest = {0: 'grpc.SetGuestDateTimeRequest', 1: ("Sec", 3, 0, None), 2: ("Usec", 3, 0, None)}
CopyFileRequest = {0: 'grpc.CopyFileRequest', 1: ("path", 9, 0, None), 2: ("file_size", 3, 0, None), 3: ("file_mode", 13, 0, None), 4: ("dir_mode", 13, 0, None), 5: ("uid", 5, 0, None), 6: ("gid", 5, 0, None), 7: ("offset", 3, 0, None), 8: ("data", 12, 0, None)}
OOMEvent = {0: 'grpc.OOMEvent', 1: ("container_id", 9, 0, None)}
AddSwapRequest = {0: 'grpc.AddSwapRequest', 1: ("PCIPath", 13, 2, None)}
AddSwapPathRequest = {0: 'grpc.AddSwapPathRequest', 1: ("path", 9, 0, None)}
Metrics = {0: 'grpc.Metrics', 1: ("metrics", 9, 0, None)}
VolumeStatsRequest = {0: 'grpc.VolumeStatsRequest', 1: ("volume_guest_path", 9, 0, None)}
ResizeVolumeRequest = {0: 'grpc.ResizeVolumeRequest', 1: ("volume_guest_path", 9, 0, None), 2: ("size", 4, 0, None)}
SetPolicyRequest = {0: 'grpc.SetPolicyRequest', 1: ("policy", 9, 0, None)}
GetDiagnosticDataRequest = {0: 'grpc.GetDiagnosticDataRequest', 1: ("log_type", 9, 0, None), 2: ("container_id", 9, 0, None)}
GetDiagnosticDataResponse = {0: 'grpc.GetDiagnosticDataResponse', 1: ("data", 9, 0, None)}
MemAgentMemcgConfig = {0: 'grpc.MemAgentMemcgConfig', 1: ("disabled", 8, 1, None), 2: ("swap", 8, 1, None), 3: ("swappiness_max", 13, 1, None), 4: ("period_secs", 4, 1, None), 5: ("period_psi_percent_limit", 13, 1, None), 6: ("eviction_psi_percent_limit", 13, 1, None), 7: ("eviction_run_aging_count_min", 4, 1, None)}
MemAgentCompactConfig = {0: 'grpc.MemAgentCompactConfig', 1: ("disabled", 8, 1, None), 2: ("period_secs", 4, 1, None), 3: ("period_psi_percent_limit", 13, 1, None), 4: ("compact_psi_percent_limit", 13, 1, None), 5: ("compact_sec_max", 3, 1, None), 6: ("compact_order", 13, 1, None), 7: ("compact_threshold", 4, 1, None), 8: ("compact_force_times", 4, 1, None)}
Empty = {0: 'google.protobuf.Empty'}
VolumeUsage = {0: 'grpc.VolumeUsage', 1: ("available", 4, 0, None), 2: ("total", 4, 0, None), 3: ("used", 4, 0, None), 4: ("unit", 14, 0, None)}
VolumeCondition = {0: 'grpc.VolumeCondition', 1: ("abnormal", 8, 0, None), 2: ("message", 9, 0, None)}
VolumeStatsResponse = {0: 'grpc.VolumeStatsResponse', 1: ("usage", 11, 2, VolumeUsage), 2: ("volume_condition", 11, 1, VolumeCondition)}
SERVICES: "dict[str, dict[str, tuple[dict[int, object], dict[int, object], bool, bool]]]" = {
    "grpc.AgentService": {
        "CreateContainer": (CreateContainerRequest, Empty, False, False),
        "StartContainer": (StartContainerRequest, Empty, False, False),
        "RemoveContainer": (RemoveContainerRequest, Empty, False, False),
        "ExecProcess": (ExecProcessRequest, Empty, False, False),
        "SignalProcess": (SignalProcessRequest, Empty, False, False),
        "WaitProcess": (WaitProcessRequest, WaitProcessResponse, False, False),
        "UpdateContainer": (UpdateContainerRequest, Empty, False, False),
        "UpdateEphemeralMounts": (UpdateEphemeralMountsRequest, Empty, False, False),
        "StatsContainer": (StatsContainerRequest, StatsContainerResponse, False, False),
        "PauseContainer": (PauseContainerRequest, Empty, False, False),
        "ResumeContainer": (ResumeContainerRequest, Empty, False, False),
        "RemoveStaleVirtiofsShareMounts": (RemoveStaleVirtiofsShareMountsRequest, Empty, False, False),
        "GetDiagnosticData": (GetDiagnosticDataRequest, GetDiagnosticDataResponse, False, False),
        "WriteStdin": (WriteStreamRequest, WriteStreamResponse, False, False),
        "ReadStdout": (ReadStreamRequest, ReadStreamResponse, False, False),
        "ReadStderr": (ReadStreamRequest, ReadStreamResponse, False, False),
        "CloseStdin": (CloseStdinRequest, Empty, False, False),
        "TtyWinResize": (TtyWinResizeRequest, Empty, False, False),
        "UpdateInterface": (UpdateInterfaceRequest, Interface, False, False),
        "UpdateRoutes": (UpdateRoutesRequest, Routes, False, False),
        "ListInterfaces": (ListInterfacesRequest, Interfaces, False, False),
        "ListRoutes": (ListRoutesRequest, Routes, False, False),
        "AddARPNeighbors": (AddARPNeighborsRequest, Empty, False, False),
        "GetIPTables": (GetIPTablesRequest, GetIPTablesResponse, False, False),
        "SetIPTables": (SetIPTablesRequest, SetIPTablesResponse, False, False),
        "GetMetrics": (GetMetricsRequest, Metrics, False, False),
        "MemAgentMemcgSet": (MemAgentMemcgConfig, Empty, False, False),
        "MemAgentCompactSet": (MemAgentCompactConfig, Empty, False, False),
        "CreateSandbox": (CreateSandboxRequest, Empty, False, False),
        "DestroySandbox": (DestroySandboxRequest, Empty, False, False),
        "OnlineCPUMem": (OnlineCPUMemRequest, Empty, False, False),
        "ReseedRandomDev": (ReseedRandomDevRequest, Empty, False, False),
        "GetGuestDetails": (GuestDetailsRequest, GuestDetailsResponse, False, False),
        "MemHotplugByProbe": (MemHotplugByProbeRequest, Empty, False, False),
        "SetGuestDateTime": (SetGuestDateTimeRequest, Empty, False, False),
        "CopyFile": (CopyFileRequest, Empty, False, False),
        "GetOOMEvent": (GetOOMEventRequest, OOMEvent, False, False),
        "AddSwap": (AddSwapRequest, Empty, False, False),
        "AddSwapPath": (AddSwapPathRequest, Empty, False, False),
        "GetVolumeStats": (VolumeStatsRequest, VolumeStatsResponse, False, False),
        "ResizeVolume": (ResizeVolumeRequest, Empty, False, False),
        "SetPolicy": (SetPolicyRequest, Empty, False, False),
    },
}
