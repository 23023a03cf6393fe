package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func diskLaws() []law {
	return []law{
		{says: "io_max makes reads of a disk take their time", only: real, check: lawIOMax},
		{says: "io_max changes and is lifted while the service runs", only: caged, check: lawIOMaxChange},
		{says: "io_max of a disk named by its file is no drift, and holds when that file is gone", only: caged, check: lawIOMaxByPath},
		{says: "a disk that the host has not is refused by its name", only: caged, check: lawIOMaxRefused},
	}
}

// Disk is the first of the host's disks that is one.
func Disk(t testing.TB) string {
	disks, err := filepath.Glob("/sys/block/[a-z]*")
	require.NoError(t, err)
	for _, disk := range disks {
		if size, err := os.ReadFile(filepath.Join(disk, "size")); err == nil && strings.TrimSpace(string(size)) != "0" {
			return "/dev/" + filepath.Base(disk)
		}
	}
	return "/dev/nothing"
}

func lawIOMax(b *bench) {
	const total, rate = 8 * mebi, 2 * mebi
	disk := Disk(b)
	takes := func(q service.Quota) (time.Duration, bool) {
		l := limited(b.plan("read-disk", disk, fmt.Sprint(total)), service.Limits{service.IOMax: q})
		if q.Value != service.Unlimited && !b.enforces(l) {
			return 0, false
		}
		i := b.launch(l)
		began := time.Now()
		i.ready()
		return time.Since(began), true
	}
	slow, ok := takes(service.OfText(fmt.Sprintf("%s:read_bps=%s", disk, service.FormatSize(rate))))
	if !ok {
		return
	}
	free, _ := takes(service.Of(service.Unlimited))
	// The launch is over when its time begins, and a little may have been read by then.
	const due = total / rate * time.Second
	require.Greater(b, slow, due*8/10, "without a limit it takes %v", free)
	require.Less(b, free, slow)
}

func lawIOMaxChange(b *bench) {
	if !b.agent.Enforces().Limits[service.IOMax] {
		return
	}
	disk := Disk(b)
	i := b.start("sleep")
	require.Equal(b, service.Of(service.Unlimited), i.limits()[service.IOMax].Applied)
	number, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk), "dev"))
	require.NoError(b, err)
	for _, rates := range []string{"read_bps=1MiB,write_iops=10", "write_bps=1MiB", "write_bps=2MiB,read_iops=7"} {
		q := service.OfText(disk + ":" + rates)
		applied, err := i.Limit(b.within(), service.Limits{service.IOMax: q})
		require.NoError(b, err)
		require.Equal(b, q, applied[service.IOMax].Applied)
		require.Equal(b, q, applied[service.IOMax].Effective)
	}
	held := strings.Fields(b.cgroupFile(i.Ref(), "io.max"))
	slices.Sort(held)
	want := []string{strings.TrimSpace(string(number)), "rbps=max", "riops=7", "wbps=2097152", "wiops=max"}
	require.Equal(b, want, held)

	applied, err := i.Limit(b.within(), service.Limits{service.IOMax: service.Of(service.Unlimited)})
	require.NoError(b, err)
	require.Equal(b, service.Of(service.Unlimited), applied[service.IOMax].Applied)
}

func lawIOMaxByPath(b *bench) {
	if !b.agent.Enforces().Limits[service.IOMax] {
		return
	}
	var st unix.Stat_t
	require.NoError(b, unix.Stat(Disk(b), &st))
	node := filepath.Join(b.TempDir(), "disk")
	require.NoError(b, unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)))
	i := b.start("sleep")
	i.limits()
	asked := service.OfText(node + ":read_bps=1MiB")
	_, err := i.Limit(b.within(), service.Limits{service.IOMax: asked})
	require.NoError(b, err)
	require.Empty(b, i.drift(always))
	require.Equal(b, asked, i.limits()[service.IOMax].Applied)

	require.NoError(b, os.Remove(node))
	require.Empty(b, i.drift(always))
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	holds := service.OfText(number + ":read_bps=1MiB")
	report := i.limits()[service.IOMax]
	require.Equal(b, service.LimitReport{Requested: asked, Applied: holds, Effective: holds, Enforced: true}, report)

	i.scribble("io.max", number+" rbps=max wbps=max riops=max wiops=max")
	require.Len(b, i.drift(always), 1)
	require.Equal(b, report, i.limits()[service.IOMax])
}

func lawIOMaxRefused(b *bench) {
	if !b.agent.Enforces().Limits[service.IOMax] {
		return
	}
	for device, why := range map[string]string{
		"/dev/nothing": "no such file or directory",
		"/proc":        "is no disk and lies on none",
		"77:7":         "is no disk and lies on none",
	} {
		l := limited(b.plan("sleep"), service.Limits{service.IOMax: service.OfText(device + ":read_bps=1MiB")})
		_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
		b.wantError(err, service.Unenforceable)
		require.ErrorContains(b, err, "io_max: "+device)
		require.ErrorContains(b, err, why)
		b.nothingOf(l)
	}
}
