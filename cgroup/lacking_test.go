package cgroup

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// What is missing is named where it is missing, with the remedy.
func TestLacking(t *testing.T) {
	tree, root := fixture(t, map[string]string{
		"cgroup.controllers": "cpu memory pids", "a/cgroup.controllers": "memory cpu",
		"a/b/cgroup.controllers": "memory", "a/b/memory.max": "max",
	})
	for r, want := range map[service.Resource]string{
		service.NoFile:     "",
		service.IOWeight:   "the kernel does not offer the controller io (" + root + "/cgroup.controllers)",
		service.PidsMax:    "the controller pids ends in /, which does not pass it on: write +pids into " + root + "/cgroup.subtree_control",
		service.CPUMax:     "the controller cpu ends in /a, which does not pass it on: write +cpu into " + root + "/a/cgroup.subtree_control",
		service.MemoryHigh: "the controller memory is there, but " + root + "/a/b/memory.high is not",
	} {
		why, err := tree.Group("/a/b").Lacking(r)
		require.NoError(t, err)
		require.Contains(t, why, want, "%v", r)
		require.Equal(t, want == "", why == "", "%v", r)
	}
	_, err := tree.Group("/gone").Lacking(service.CPUMax)
	require.Error(t, err)
}
