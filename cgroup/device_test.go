package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// disks makes a /sys with the disk vda, 254:0, and its part vda1, 254:1.
func disks(t *testing.T) {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"vda/uevent": "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n", "vda/vda1/uevent": "MAJOR=254\nMINOR=1\nDEVNAME=vda1\n", "vda/vda1/partition": "1\n",
		"vdb/uevent": "MAJOR=254\nMINOR=16\nDEVNAME=vdb\n", "odd/uevent": "",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	for number, to := range map[string]string{"254:0": "vda", "254:1": "vda/vda1", "254:16": "vdb", "254:32": "odd"} {
		require.NoError(t, os.Symlink(filepath.Join(root, to), filepath.Join(root, number)))
	}
	before := sysBlock
	sysBlock = root
	t.Cleanup(func() { sysBlock = before })
}

func TestFindDisk(t *testing.T) {
	disks(t)
	for device, want := range map[string]Disk{
		"254:0": {"254:0", "/dev/vda"}, "254:1": {"254:0", "/dev/vda"}, "254:16": {"254:16", "/dev/vdb"},
	} {
		got, err := FindDisk(device)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for device, fault := range map[string]string{
		"9:9": "9:9 is no disk and lies on none", "/proc": "/proc is no disk and lies on none",
		"/none": "/none: no such file or directory", "254:32": "does not say which device it is",
	} {
		_, err := FindDisk(device)
		require.ErrorContains(t, err, fault)
	}
}

func TestIOMax(t *testing.T) {
	disks(t)
	tree, root := fixture(t, map[string]string{
		"p/io.max":   "254:0 rbps=max wbps=max riops=50 wiops=max\n8:0 rbps=7 wbps=max riops=max wiops=max",
		"p/g/io.max": "254:0 rbps=1048576 wbps=max riops=90 wiops=9 later=1", "p/n/io.max": "", "p/bad/io.max": "254:0 rbps=x",
	})
	asked := service.Limits{service.IOMax: service.OfText("254:1:read_bps=1MiB,read_iops=90,write_iops=9")}
	a, err := tree.Group("/p/g").Limits(asked)
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{
		Requested: asked[service.IOMax], Applied: asked[service.IOMax], SetBy: "/p", Enforced: true,
		Effective: service.OfText("254:1:read_bps=1MiB,read_iops=50,write_iops=9 8:0:read_bps=7"),
	}, a[service.IOMax])
	a, err = tree.Group("/p/n").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.Of(service.Unlimited), a[service.IOMax].Applied)
	require.Equal(t, service.OfText("254:0:read_iops=50 8:0:read_bps=7"), a[service.IOMax].Effective)
	_, err = tree.Group("/p/bad").Limits(service.Limits{})
	require.ErrorContains(t, err, `bad/io.max holds "254:0 rbps=x"`)

	var lines []string
	tree = tree.WithFault(func(call, _ string) error {
		if call == "write" {
			lines = append(lines, content(t, root, "p/g/io.max"))
		}
		return nil
	})
	// A plain file keeps the last line, and what was longer.
	err = tree.Group("/p/g").Apply(service.Limits{service.IOMax: service.OfText("254:16:write_bps=1KiB")})
	require.Error(t, err)
	require.Len(t, lines, 2)
	require.Contains(t, lines[1], "254:0 rbps=max wbps=max riops=max wiops=max")
	require.Contains(t, content(t, root, "p/g/io.max"), "254:16 rbps=max wbps=1024 riops=max wiops=max")

	lacks := tree.Lacks(service.Limits{service.IOMax: service.OfText("254:0:read_bps=1 254:1:read_bps=2")})
	require.Equal(t, []Lack{{service.IOMax, "io_max: 254:0 and 254:1 are the same disk, /dev/vda"}}, lacks)
}

func TestIODeviceWeight(t *testing.T) {
	disks(t)
	const r = service.IODeviceWeight
	tree, root := fixture(t, map[string]string{
		"io.cost.qos": "254:0 enable=1 ctrl=auto\n254:16 enable=0 ctrl=auto", "g/io.weight": "default 100\n254:0 50", "n/io.weight": "default 70", "bad/io.weight": "default 100\n254:0",
	})
	asked := service.Limits{r: service.OfText("254:1:50")}
	a, err := tree.Group("/g").Limits(asked)
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{Requested: asked[r], Applied: asked[r], Effective: asked[r], Enforced: true}, a[r], "by the name it was asked with")
	require.Equal(t, service.Of(100), a[service.IOWeight].Applied)
	a, err = tree.Group("/n").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.Of(service.Unlimited), a[r].Applied)
	require.Equal(t, service.Of(70), a[service.IOWeight].Applied)
	_, err = tree.Group("/bad").Limits(service.Limits{})
	require.ErrorContains(t, err, "bad/io.weight holds")

	var lines []string
	faulty := tree.WithFault(func(call, _ string) error {
		if call == "write" {
			lines = append(lines, content(t, root, "g/io.weight"))
		}
		return nil
	})
	require.Error(t, faulty.Group("/g").Apply(service.Limits{r: service.OfText("254:16:7")}), "a plain file keeps what was longer")
	require.Len(t, lines, 2)
	require.Contains(t, lines[1], "254:0 default")
	require.Contains(t, content(t, root, "g/io.weight"), "254:16 7")

	faulty = tree.WithFault(func(call, _ string) error {
		if call == "write" {
			return unix.EOPNOTSUPP
		}
		return nil
	})
	err = faulty.Group("/n").Apply(service.Limits{r: service.OfText("254:16:7")})
	require.ErrorContains(t, err, `nothing shares 254:16 out by weight, enable iocost for it: write "254:16 enable=1" into`)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)

	require.Empty(t, tree.Lacks(asked))
	for text, why := range map[string]string{
		"254:16:7":          `io_device_weight: nothing shares /dev/vdb out by weight, enable iocost for it: write "254:16 enable=1" into /sys/fs/cgroup/io.cost.qos`,
		"254:0:1 254:1:2":   "io_device_weight: 254:0 and 254:1 are the same disk, /dev/vda",
		"/none:5 254:1:100": "io_device_weight: /none: no such file or directory",
	} {
		require.Equal(t, []Lack{{r, why}}, tree.Lacks(service.Limits{r: service.OfText(text)}))
	}
}

// A disk whose device file is gone is limited all the same, and told so by its number; one
// that is gone itself is not.
func TestIOMaxOfADeviceFileThatIsGone(t *testing.T) {
	disks(t)
	tree, _ := fixture(t, map[string]string{"g/io.max": "254:0 rbps=1048576 wbps=max riops=max wiops=max\n254:16 rbps=7 wbps=max riops=max wiops=max"})
	report := func(asked string) service.LimitReport {
		a, err := tree.Group("/g").Limits(service.Limits{service.IOMax: service.OfText(asked)})
		require.NoError(t, err)
		return a[service.IOMax]
	}
	r := report("/dev/none:read_bps=1MiB 254:16:read_bps=7")
	require.True(t, r.Enforced)
	require.Equal(t, service.OfText("254:0:read_bps=1MiB 254:16:read_bps=7"), r.Applied)
	require.False(t, report("/dev/none:read_bps=7 254:16:read_bps=7").Enforced, "that is the other's")
	require.False(t, report("/dev/none:read_bps=2MiB").Enforced)
}

func TestNumbered(t *testing.T) {
	disks(t)
	require.Equal(t, service.OfText("254:0:read_bps=1"), Numbered(service.IOMax, service.OfText("254:1:read_bps=1")))
	require.Equal(t, service.OfText("254:0:5"), Numbered(service.IODeviceWeight, service.OfText("254:1:5")))
	require.Equal(t, service.OfText("/none:read_bps=1"), Numbered(service.IOMax, service.OfText("/none:read_bps=1")))
	require.Equal(t, service.Of(service.Unlimited), Numbered(service.IOMax, service.Of(service.Unlimited)))
}
