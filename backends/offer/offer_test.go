package offer

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/watch"
	"github.com/gladsheim/gladsheim/platform"
)

func TestChoose(t *testing.T) {
	has, lacks := platform.Ability{Has: true}, platform.Ability{Reason: "it is not there"}
	debian := platform.Facts{Systemd: has, Bus: has, Cgroup2: has, BornInside: has, Pidfd: has}
	old := debian // its kernel, or a seccomp filter, knows no clone3
	old.BornInside = lacks
	alpine := debian
	alpine.Systemd = lacks
	plain := alpine
	plain.Cgroup2 = lacks
	mute := debian // systemd runs and does not talk to us
	mute.Bus = lacks
	for _, tt := range []struct {
		name, wanted string
		facts        platform.Facts
		names        []string
		says         string
	}{
		{"systemd", "auto", debian, []string{"systemd", "cgroupfs"}, ""},
		{"systemd, cgroups first", "cgroupfs", debian, []string{"cgroupfs", "systemd"}, ""},
		{"systemd, named", "systemd", debian, []string{"systemd", "cgroupfs"}, ""},
		{"systemd, exec named", "exec", debian, []string{"exec"}, ""},
		{"old kernel", "auto", old, []string{"systemd"}, ""},
		{"old kernel, systemd named", "systemd", old, []string{"systemd"}, ""},
		{"old kernel, cgroups named", "cgroupfs", old, nil, "the cgroupfs backend is not to be had: it is not there"},
		{"no systemd", "auto", alpine, []string{"cgroupfs"}, ""},
		{"no systemd, but named", "systemd", alpine, nil, "the systemd backend is not to be had: it is not there"},
		{"neither", "auto", plain, []string{"exec"}, ""},
		{"systemd does not talk", "auto", mute, nil, "cgroups are systemd's on this host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names, err := choose(tt.wanted, tt.facts)
			if tt.says != "" {
				require.ErrorContains(t, err, tt.says)
			}
			require.Equal(t, tt.names, names)
		})
	}
}

func TestOneAgentForATreeOfCgroups(t *testing.T) {
	root := t.TempDir()
	open := func() *Offer {
		w, err := watch.New()
		require.NoError(t, err)
		o := &Offer{watcher: w}
		t.Cleanup(func() { _ = o.Close() })
		return o
	}
	first, second := open(), open()
	require.NoError(t, first.own(root))
	err := second.own(root)
	require.Equal(t, service.Conflict, service.KindOf(err))
	require.ErrorContains(t, err, "another agent has its services in "+root)
	require.NoError(t, open().own(t.TempDir()))
	require.NoError(t, first.Close())
	require.NoError(t, open().own(root))
}
