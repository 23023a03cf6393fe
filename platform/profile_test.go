package platform

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestProfiles(t *testing.T) {
	t.Setenv("HOME", "/home/u")
	t.Setenv("XDG_DATA_HOME", "")
	for name, c := range map[string]struct {
		services    int
		memory, cpu string
		file        string
	}{
		"midgard":  {15, "512MiB", "25%", "/home/u/.edda/midgard/gladsheim.json"},
		"alfheim":  {5, "256MiB", "25%", "/home/u/.local/share/alfheim/gladsheim.json"},
		"asgard":   {25, "2GiB", "75%", "/etc/edda/asgard/gladsheim.json"},
		"ragnarok": {8, "512MiB", "30%", "/home/u/.edda/ragnarok/gladsheim.json"},
	} {
		p, err := Choose(name, Facts{UID: 0})
		require.NoError(t, err)
		require.Equal(t, name, p.Name)
		require.Equal(t, c.services, p.MaxServices)
		require.Equal(t, c.memory, service.MemoryMax.Format(p.Memory))
		require.Equal(t, c.cpu, service.CPUMax.Format(p.CPU))
		require.Equal(t, "512", service.PidsMax.Format(p.Pids))
		require.Equal(t, c.file, p.ConfigFile())
		for r, q := range map[service.Resource]service.Quota{service.MemoryMax: p.Memory, service.CPUMax: p.CPU, service.PidsMax: p.Pids} {
			require.NoError(t, r.Check(q))
		}
	}
	require.Equal(t, []string{"auto", "midgard", "alfheim", "asgard", "ragnarok"}, Names())
}

func TestAuto(t *testing.T) {
	for uid, want := range map[int]string{0: "asgard", 1000: "midgard"} {
		p, err := Choose(Auto, Facts{UID: uid})
		require.NoError(t, err)
		require.Equal(t, want, p.Name)
		require.Zero(t, p.MaxServices, "a guess caps nothing")
		require.True(t, p.Memory.Set && p.CPU.Set && p.Pids.Set)
	}
}

func TestRefusedPlatforms(t *testing.T) {
	for name, want := range map[string]string{
		"jotunheim": "cannot choose the platform: Gladsheim does not run on Jotunheim: its small devices have no services to manage",
		"Asgard":    `cannot choose the platform: "Asgard" is not a platform; it is one of auto, midgard, alfheim, asgard, ragnarok`,
		"":          `cannot choose the platform: "" is not a platform; it is one of auto, midgard, alfheim, asgard, ragnarok`,
	} {
		_, err := Choose(name, Facts{})
		require.EqualError(t, err, want)
		require.Equal(t, service.Invalid, service.KindOf(err))
	}
}

func TestConfigFile(t *testing.T) {
	alfheim, err := Choose("alfheim", Facts{})
	require.NoError(t, err)
	t.Setenv("XDG_DATA_HOME", "/data")
	require.Equal(t, "/data/alfheim/gladsheim.json", alfheim.ConfigFile())
	t.Setenv("XDG_DATA_HOME", "relative")
	t.Setenv("HOME", "/home/u")
	require.Equal(t, "/home/u/.local/share/alfheim/gladsheim.json", alfheim.ConfigFile())
	t.Setenv("HOME", "nowhere")
	require.Empty(t, alfheim.ConfigFile())
	t.Setenv("HOME", "")
	require.NotEqual(t, "alfheim/gladsheim.json", alfheim.ConfigFile(), "the account has a home directory, or there is none")
}
