package byggvir

import (
	"context"
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
func (still) Close() error                      { return nil }

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
