package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func weightLaws() []law {
	return []law{
		{says: "io_weight shares out the disks for which iocost is enabled", only: caged, alone: true, check: lawIOWeight},
		{says: "io_device_weight shares out a disk, and changes while the service runs", only: caged, alone: true, check: lawDeviceWeight},
		{says: "a weight of a disk that nothing shares out is refused, with what to do", only: caged, alone: true, check: lawDeviceWeightRefused},
		{says: "a weight of a disk that the host has not is refused by its name", only: caged, check: lawDeviceWeightNoDisk},
	}
}

// number is MAJOR:MINOR of a disk.
func (b *bench) number(disk string) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk), "dev"))
	require.NoError(b, err)
	return strings.TrimSpace(string(text))
}

// shared has iocost share out the disk, until the law is done. What the disk can do is
// said, lest iocost measure a machine that is emulated.
func (b *bench) shared(disk string) {
	b.Helper()
	number := b.number(disk)
	tell := func(file, what string) {
		b.Helper()
		require.NoError(b, os.WriteFile(filepath.Join(b.CgroupRoot, file), []byte(number+" "+what), 0o600))
	}
	tell("io.cost.model", "ctrl=user model=linear rbps=16777216 rseqiops=128 rrandiops=128 wbps=16777216 wseqiops=128 wrandiops=128")
	tell("io.cost.qos", "enable=1 ctrl=user rpct=0.00 wpct=0.00 min=100.00 max=100.00")
	b.Cleanup(func() {
		tell("io.cost.qos", "enable=0")
		tell("io.cost.model", "ctrl=auto")
	})
}

func lawIOWeight(b *bench) {
	disk := Disk(b)
	if !b.agent.Enforces().Limits[service.IOWeight] {
		return
	}
	b.shared(disk)
	reads := func(weight uint64) *incarnation {
		return b.launch(limited(b.plan("read-disk", disk, fmt.Sprint(900*mebi)), service.Limits{service.IOWeight: service.Of(weight)}))
	}
	one, other := reads(800), reads(100)
	b.readsTimes(one, other, 5, 12)
	for i, weight := range map[*incarnation]uint64{one: 50, other: 400} {
		_, err := i.Limit(b.within(), service.Limits{service.IOWeight: service.Of(weight)})
		require.NoError(b, err)
	}
	b.readsTimes(other, one, 5, 12)
}

func (b *bench) weighed(disk string, weight int, mode ...string) service.Launch {
	return limited(b.plan(mode...), service.Limits{service.IODeviceWeight: service.OfText(fmt.Sprintf("%s:%d", disk, weight))})
}

func lawDeviceWeight(b *bench) {
	disk := Disk(b)
	if !b.agent.Enforces().Limits[service.IODeviceWeight] {
		return
	}
	b.shared(disk)
	reads := func(weight int) *incarnation {
		return b.launch(b.weighed(disk, weight, "read-disk", disk, fmt.Sprint(900*mebi)))
	}
	one, other := reads(800), reads(100)
	report := one.limits()[service.IODeviceWeight]
	q := service.OfText(disk + ":800")
	require.Equal(b, service.LimitReport{Requested: q, Applied: q, Effective: q, Enforced: true}, report)
	b.readsTimes(one, other, 5, 12)

	for i, weight := range map[*incarnation]string{one: "50", other: "400"} {
		q := service.OfText(disk + ":" + weight)
		applied, err := i.Limit(b.within(), service.Limits{service.IODeviceWeight: q})
		require.NoError(b, err)
		require.Equal(b, q, applied[service.IODeviceWeight].Applied)
	}
	b.readsTimes(other, one, 5, 12)

	for _, i := range []*incarnation{one, other} {
		applied, err := i.Limit(b.within(), service.Limits{service.IODeviceWeight: service.Of(service.Unlimited)})
		require.NoError(b, err)
		require.Equal(b, service.Of(service.Unlimited), applied[service.IODeviceWeight].Applied)
		require.Equal(b, "default 100", b.cgroupFile(i.Ref(), "io.weight"))
	}
	b.readsTimes(one, other, 0.6, 1.7)
}

// readsTimes wants one to read so many times as much as the other. There are several
// tries, for a machine that is emulated may stall.
func (b *bench) readsTimes(one, other *incarnation, low, high float64) {
	b.Helper()
	read := func(i *incarnation) float64 { return float64(i.usage().IO.ReadBytes.Value) }
	var tries []float64
	for start := time.Now(); time.Since(start) < patience; {
		was, wasOther := read(one), read(other)
		b.eventually(func() bool { return read(one)+read(other)-was-wasOther > 40*mebi }, "nobody reads")
		ratio := (read(one) - was) / max(read(other)-wasOther, 1)
		if low <= ratio && ratio <= high {
			return
		}
		tries = append(tries, ratio)
	}
	b.Fatalf("one reads %.1f times as much as the other; %v to %v is right", tries, low, high)
}

func lawDeviceWeightRefused(b *bench) {
	if !b.agent.Enforces().Limits[service.IODeviceWeight] {
		return
	}
	disk := Disk(b)
	l := b.weighed(disk, 200, "sleep")
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	b.wantError(err, service.Unenforceable)
	require.ErrorContains(b, err, fmt.Sprintf("io_device_weight: nothing shares %s out by weight, enable iocost for it: write \"%s enable=1\" into ", disk, b.number(disk)))
	b.nothingOf(l)

	l.Spec.BestEffort = true
	i := b.launch(l)
	require.Equal(b, []service.Resource{service.IODeviceWeight}, i.limits().Unenforced())
	require.Equal(b, "default 100", b.cgroupFile(i.Ref(), "io.weight"))
	_, err = i.Limit(b.within(), l.Limits)
	b.wantError(err, service.Unenforceable)
}

func lawDeviceWeightNoDisk(b *bench) {
	if !b.agent.Enforces().Limits[service.IODeviceWeight] {
		return
	}
	l := b.weighed("/dev/nothing", 200, "sleep")
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	b.wantError(err, service.Unenforceable)
	require.ErrorContains(b, err, "io_device_weight: /dev/nothing: no such file or directory")
	b.nothingOf(l)
}
