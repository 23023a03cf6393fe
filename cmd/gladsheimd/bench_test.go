package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/health/grpc_health_v1"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// BenchmarkCall is one call to an agent in another process, from beginning to end: one
// that has nothing to do, what one service uses, and the host with what all use.
func BenchmarkCall(b *testing.B) {
	d := start(b)
	d.run("asleep", []string{"sleep"})
	for _, call := range []struct {
		name string
		make func() error
	}{
		{"empty", func() error {
			_, err := d.Health.Check(b.Context(), &grpc_health_v1.HealthCheckRequest{})
			return err
		}},
		{"GetResourceUsage", func() error {
			_, err := d.GetResourceUsage(b.Context(), &gladsheimv1.ResourceUsageRequest{ServiceName: "asleep"})
			return err
		}},
		{"GetHost", func() error {
			_, err := d.GetHost(b.Context(), &gladsheimv1.GetHostRequest{})
			return err
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, call.make())
			}
		})
	}
}

// BenchmarkIdle is what an agent with a thousand services uses of a core, and how
// often its threads wake up, while nothing happens: without any limit, and with three
// limits each that it warns of.
func BenchmarkIdle(b *testing.B) {
	const window = 32 * time.Second // twice the longest time between two looks
	for _, with := range []struct {
		name   string
		limits fields
	}{
		{"defaults", fields{}},
		{"warnings", fields{"limits": fields{"memory_max": "64MiB", "cpu_percent": 50, "pids_max": 16, "best_effort": true}}},
	} {
		b.Run(with.name, func(b *testing.B) {
			d := start(b, func(d *gladsheimd) { d.settle(1000) })
			for n := range 1000 {
				name := fmt.Sprintf("idle-%d", n)
				d.register(name, d.mode("sleep"), fields{"log": "null"}, with.limits)
				d.start(name)
			}
			d.eventually("it has come to rest", func() bool { // its runtime too
				before := d.wakeups()
				<-time.After(10 * time.Second)
				return d.wakeups()-before < 100
			})
			for b.Loop() {
				began, cpu, woken := time.Now(), d.exactCPU(), d.wakeups()
				<-time.After(window)
				took := time.Since(began)
				b.ReportMetric(100*float64(d.exactCPU()-cpu)/float64(took), "%core")
				b.ReportMetric(float64(d.wakeups()-woken)/took.Seconds(), "wakeups/s")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wakeups is how often threads of the daemon have waited for something.
func (d *gladsheimd) wakeups() (sum int) {
	d.perThread("status", func(text string) {
		_, after, _ := strings.Cut(text, "\nvoluntary_ctxt_switches:")
		n, err := strconv.Atoi(strings.Fields(after)[0])
		require.NoError(d.t, err)
		sum += n
	})
	return sum
}

// exactCPU is the CPU time that the daemon's threads have used, by their schedstat
// (Documentation/scheduler/sched-stats.rst).
func (d *gladsheimd) exactCPU() (sum time.Duration) {
	d.perThread("schedstat", func(text string) {
		n, err := strconv.Atoi(strings.Fields(text)[0])
		require.NoError(d.t, err)
		sum += time.Duration(n)
	})
	return sum
}

func (d *gladsheimd) perThread(file string, read func(text string)) {
	d.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", d.process.Pid, file))
	require.NoError(d.t, err)
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil { // else the thread has ended
			read(string(text))
		}
	}
}
