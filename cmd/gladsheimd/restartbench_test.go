package main

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// BenchmarkCrash is what follows the kill of a main process by somebody else: how long it
// takes until the program of the next instance, which is to come at once, does something,
// here a shell that writes a byte; and until a watcher has heard of the end.
func BenchmarkCrash(b *testing.B) {
	d := start(b)
	require.NoError(b, unix.Mkfifo(d.path("alive"), 0o600))
	alive, err := os.OpenFile(d.path("alive"), os.O_RDWR, 0) // so that neither end waits for the other
	require.NoError(b, err)
	defer alive.Close()
	d.register("phoenix", []string{"/bin/sh", "-c", "echo $$ > " + d.path("alive") + "; exec " + d.workload + " -t " + d.token + " sleep"}, fields{
		"log": "null", "restart": fields{"policy": "always", "backoff": "0", "window": "1ms", "max_attempts": 1_000_000, "deterministic": 0},
	})
	risen := func() {
		_, err := alive.Read(make([]byte, 64))
		require.NoError(b, err)
	}
	pid := d.start("phoenix").ProcessId
	risen()
	stream, err := d.Watch(b.Context(), &gladsheimv1.WatchRequest{ServiceNames: []string{"phoenix"}})
	require.NoError(b, err)
	told := func() {
		for {
			ev, err := stream.Recv()
			require.NoError(b, err)
			if ev.GetEvent().GetExit() != nil {
				return
			}
		}
	}
	var heard, rose time.Duration
	for b.Loop() {
		b.StopTimer()
		<-time.After(150 * time.Millisecond) // a host has ten turns a second
		pid = d.status("phoenix").ProcessId
		b.StartTimer()
		began := time.Now()
		require.NoError(b, syscall.Kill(int(pid), syscall.SIGKILL))
		up := make(chan time.Duration, 1)
		go func() { risen(); up <- time.Since(began) }()
		told()
		heard += time.Since(began)
		rose += <-up
	}
	b.ReportMetric(float64(heard.Microseconds())/float64(b.N), "µs/event")
	b.ReportMetric(float64(rose.Microseconds())/float64(b.N), "µs/next")
	b.ReportMetric(0, "ns/op")
	d.stop("phoenix")
}
