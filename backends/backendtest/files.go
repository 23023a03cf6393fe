package backendtest

import (
	"os"
	"strconv"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// cgroupFiles are the limits that a cgroup carries, each with an amount and
// how its file tells that.
var cgroupFiles = []struct {
	resource service.Resource
	value    uint64
	file     string
	text     string
}{
	{service.MemoryMax, 256 << 20, "memory.max", "268435456"},
	{service.MemoryHigh, 200 << 20, "memory.high", "209715200"},
	{service.MemoryLow, 32 << 20, "memory.low", "33554432"},
	{service.MemoryMin, 16 << 20, "memory.min", "16777216"},
	{service.MemorySwapMax, 64 << 20, "memory.swap.max", "67108864"},
	{service.CPUMax, 70 * service.UsecPerPercent, "cpu.max", "700000"},
	{service.CPUBurst, 20 * service.UsecPerPercent, "cpu.max.burst", "200000"},
	{service.CPUWeight, 50, "cpu.weight", "50"},
	{service.PidsMax, 200, "pids.max", "200"},
	{service.IOWeight, 50, "io.weight", "50"},
	{service.MemoryZswapMax, 8 << 20, "memory.zswap.max", "8388608"},
}

// HasZswap tells whether the kernel of this host has compressed swap, and so a limit of
// it: those for clouds do without.
func HasZswap() bool {
	_, err := os.Stat("/sys/module/zswap")
	return err == nil
}

// inUnit turns the text of a cgroup file into a number in the unit of its
// resource: cpu.max is a quota in a period, cpu.max.burst what is saved of one (of
// 100 ms), io.weight begins with "default".
func inUnit(file, text string) string {
	switch file {
	case "io.weight":
		return strings.TrimPrefix(strings.Split(text, "\n")[0], "default ")
	case "cpu.max.burst":
		return text + "0"
	case "cpu.max":
		quota, period, _ := strings.Cut(text, " ")
		q, err := strconv.ParseUint(quota, 10, 64)
		if err != nil {
			return quota
		}
		p, err := strconv.ParseUint(period, 10, 64)
		if err != nil || p == 0 {
			return text
		}
		return strconv.FormatUint(q*1_000_000/p, 10)
	}
	return text
}
