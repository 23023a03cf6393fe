package main

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkStorm is what others wait for while twenty services crash at once, again and
// again, and would be begun again without a wait: the 99th percentile, and the longest.
func BenchmarkStorm(b *testing.B) {
	const many = 20
	d := start(b)
	d.run("calm", []string{"sleep"})
	var names []string
	for n := range many {
		names = append(names, fmt.Sprintf("storm-%d", n))
		d.run(names[n], []string{"sleep"}, fields{"restart": fields{
			"policy": "always", "backoff": "0s", "max_backoff": "0s", "max_attempts": 1000, "deterministic": 0,
		}})
	}
	var took []time.Duration
	for b.Loop() {
		for _, name := range names {
			if pid := d.status(name).ProcessId; pid > 0 {
				_ = syscall.Kill(int(pid), syscall.SIGKILL)
			}
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			began := time.Now()
			d.status("calm")
			took = append(took, time.Since(began))
		}
	}
	require.NotEmpty(b, took)
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1])/1e6, "max-ms")
	b.ReportMetric(0, "ns/op")
}
