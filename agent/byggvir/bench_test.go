package byggvir

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// still is a service that uses little, at no cost: what is measured is ours.
type still struct{}

func (still) Hear(func(string)) (func(), error) { return func() {}, nil }
func (still) Gauge() (backends.Gauge, error)    { return still{}, nil }
func (still) Tally() (service.Tally, error)     { return service.Tally{}, nil }
func (still) Read() (service.Gauge, error)      { return service.Gauge{Memory: service.Of(1 << 20)}, nil }
func (still) Cache() (service.Quota, error)     { return service.Quota{}, nil }
func (still) Close() error                      { return nil }

func (still) AwaitStop(func()) (func(), error)  { return func() {}, nil }
func (still) Threads() (service.Threads, error) { return service.Threads{}, nil }

func (still) Usage(context.Context) (service.Usage, error) { return service.Usage{}, nil }

func (still) Press(service.PressureOf, bool, time.Duration, time.Duration, func()) (func(), error) {
	return func() {}, nil
}

// BenchmarkLooks is one look at each of a thousand services that are idle, of which
// there is one in 16 s (beside the reading of two files of each).
func BenchmarkLooks(b *testing.B) {
	spec := service.Defaults()
	status := service.Status{Spec: &spec, Machine: service.Machine{State: service.Running, Incarnation: 1}, Warnings: spec.Warnings}
	for _, r := range []service.Resource{service.MemoryMax, service.CPUMax} {
		status.Applied[r].Effective = service.Of(512 << 20)
	}
	m := NewMonitor(MonitorConfig{
		Status: func(service.Name) (*service.Status, bool) { return &status, true },
		Tell:   func(News) { b.Error("an idle service is told to use too much") },
	})
	m.Close() // the looks are ours
	for range 1000 {
		m.Attend(web, 1, still{}, true)
	}
	b.ReportAllocs()
	for now := time.Now(); b.Loop(); now = now.Add(latest) {
		due, _, _ := m.due(now.Add(time.Hour))
		for _, w := range due {
			w.look(now)
		}
		m.next(now)
	}
}

// BenchmarkSamplingRound is one reading of each of a thousand services with a history,
// of which there is one a second, into files (beside the reading of a dozen files of
// each, see BenchmarkHostUsage of package cgroup).
func BenchmarkSamplingRound(b *testing.B) {
	dir, booted := b.TempDir(), time.Now()
	h := NewHistory(HistoryConfig{
		SinceBoot: func() time.Duration { return time.Since(booted) },
		Open: func(name service.Name, _ func(io.ReaderAt) error, _ bool) (Room, error) {
			f, err := os.Create(filepath.Join(dir, name.String()))
			if err == nil {
				err = f.Truncate(HistorySize)
			}
			return f, err
		},
		Lost: func(_ service.Name, _ bool, err error) { b.Error(err) },
	})
	defer h.Close()
	m := NewMonitor(MonitorConfig{Status: func(service.Name) (*service.Status, bool) { return nil, false }, History: h})
	m.Close() // the rounds are ours
	var all []*watch
	for i := range 1000 {
		all = append(all, &watch{monitor: m, name: service.MustName(fmt.Sprintf("s%d", i)), incarnation: 1, subject: still{}})
	}
	round := func() {
		for _, w := range all {
			w.used.at = time.Now().Add(-time.Second) // it passes faster here
			w.sample(b.Context())
		}
	}
	round() // opens the files
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
}
