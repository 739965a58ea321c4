"""Specs as containerd makes them."""

from __future__ import annotations

from typing import Any


def cri_container() -> dict[str, Any]:
    """An app container of a CRI pod, shortened where entries repeat."""
    return {
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [10], "username": "x"},
            "args": ["/bin/sh", "-c", "sleep 1"],
            "env": ["PATH=/bin", "A=ü"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": 1073741816, "soft": 1024},
                {"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 0},
            ],
            "noNewPrivileges": True,
            "apparmorProfile": "cri-containerd.apparmor.d",
            "selinuxLabel": "system_u:system_r:container_t:s0",
            "oomScoreAdj": -998,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "pod-1",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["nosuid", "ro"],
            },
            {
                "destination": "/etc/hosts",
                "type": "bind",
                "source": "/var/lib/kubelet/pods/u/etc-hosts",
                "options": ["rbind", "rprivate", "rw"],
            },
            {
                "destination": "/dev/shm/",
                "type": "bind",
                "source": "/run/containerd/sandboxes/s/shm",
                "options": ["rbind", "ro"],
            },
            {
                "destination": "/data",
                "type": "bind",
                "source": "/mnt/data",
                "options": ["bind", "rslave", "ro", 'context="label"'],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
            },
            {"destination": "/host/proc", "type": "bind", "source": "/proc", "options": ["rbind"]},
            {
                "destination": "/host/cg",
                "type": "none",
                "source": "/sys/fs/cgroup",
                "options": ["rbind", "ro"],
            },
        ],
        "hooks": {"prestart": [{"path": "/usr/bin/hook"}]},
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {
                    "limit": 1 << 28,
                    "swap": 1 << 28,
                    "kernel": 5,
                    "swappiness": 3,
                    "disableOOMKiller": True,
                },
                "cpu": {
                    "shares": 512,
                    "quota": 50000,
                    "period": 100000,
                    "cpus": "0-3",
                    "mems": "0",
                    "realtimePeriod": 4,
                },
                "pids": {"limit": 100},
                "blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 5}]},
                "hugepageLimits": [
                    {"pageSize": "2MB", "limit": 0},
                    {"pageSize": "1GB", "limit": 0},
                ],
                "network": {"classID": 4},
                "unified": {"memory.high": "1000", "io.max": "8:0 rbps=1", "cpuset.cpus": "0"},
                "rdma": {},
            },
            "cgroupsPath": "kubepods-pod1.slice:cri-containerd:c1",
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc", "path": "/proc/77/ns/ipc"},
                {"type": "uts", "path": "/proc/77/ns/uts"},
                {"type": "mount"},
                {"type": "network", "path": "/proc/77/ns/net"},
                {"type": "time"},
            ],
            "devices": [
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 438},
                {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
                {"path": "/dev/xvda", "type": "b", "major": 253, "minor": 7},
                {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0},
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "listenerPath": "/run/listener",
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_ALLOW",
                        "errnoRet": 38,
                        "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "mountLabel": "label",
            "intelRdt": {"closID": "x"},
            "rootfsPropagation": "rslave",
        },
    }
