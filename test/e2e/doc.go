// Package e2e tells whole stories on real hosts: a person, by CLI and by gRPC,
// runs real programs under real limits. What the agent says is held against
// what /proc, /sys/fs/cgroup and systemctl say. It runs inside a test host
// (test/host) with gladsheimd, gladsheim, workload and wireclient in PATH.
package e2e
