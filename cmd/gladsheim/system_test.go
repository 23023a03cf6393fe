package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestSayServices(t *testing.T) {
	said := func(info *gladsheimv1.HostInfo) string {
		s := &sheet{}
		sayServices(s, info)
		return s.String()
	}
	require.Contains(t, said(&gladsheimv1.HostInfo{ServicesUncounted: "no cgroup holds them"}), "Services: not counted together: no cgroup holds them\n")
	require.Contains(t, said(&gladsheimv1.HostInfo{ServicesUsage: &gladsheimv1.ResourceUsage{MemoryBytes: 1 << 20}}),
		"Services: 1 MiB, CPU 0%, 0s in all\n", "what is not counted is not said")
}
