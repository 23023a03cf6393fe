package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
	"github.com/gladsheim/gladsheim/backends/offer"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
)

// BenchmarkAdoption is the time from the beginning of an agent until it has taken up
// all services that an earlier one left: with their records, and after all was lost.
// The fake backend shows what the agent adds; exec launches real processes.
func BenchmarkAdoption(b *testing.B) {
	for _, lost := range []bool{false, true} {
		for _, many := range []int{100, 1000} {
			b.Run(fmt.Sprintf("backend=fake/services=%d/lost=%t", many, lost), func(b *testing.B) {
				benchmarkAdoption(b, []backends.Backend{fake.New(fake.Config{})}, many, lost)
			})
			b.Run(fmt.Sprintf("backend=exec/services=%d/lost=%t", many, lost), func(b *testing.B) {
				proc, err := procfs.New("/proc")
				require.NoError(b, err)
				o, err := offer.Open(b.Context(), offer.Config{Backend: "exec", Facts: platform.Detect(), Procfs: proc, AgentID: b.Name(), Log: slog.New(slog.DiscardHandler)})
				require.NoError(b, err)
				defer func() { require.NoError(b, o.Close()) }()
				benchmarkAdoption(b, o.Backends, many, lost)
			})
		}
	}
}

func benchmarkAdoption(b *testing.B, offered []backends.Backend, many int, lost bool) {
	dir := b.TempDir()
	profile, err := platform.Choose("asgard", platform.Facts{})
	require.NoError(b, err)
	proc, err := procfs.New("/proc")
	require.NoError(b, err)
	settings := config.DefaultAgent(profile)
	settings.MaxServices = many
	cfg := Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"), ServicesDir: filepath.Join(dir, "services.d"),
		Backends: offered, Procfs: proc, SinceBoot: procfs.SinceBoot, Power: &plug{}, Platform: "asgard", Settings: settings, Log: slog.New(slog.DiscardHandler),
	}
	require.NoError(b, os.Mkdir(cfg.ServicesDir, 0o755))
	for i := range many {
		name := fmt.Sprintf("s%d", i)
		text := fmt.Sprintf(`{"name": %q, "exec": ["/bin/sleep", "1000"], "log": "null", "limits": {"best_effort": true}}`, name)
		require.NoError(b, os.WriteFile(filepath.Join(cfg.ServicesDir, name+".json"), []byte(text), 0o644))
	}
	a, err := Open(b.Context(), cfg)
	require.NoError(b, err)
	each := func(do func(service.Name) error) {
		var wg sync.WaitGroup
		turns := make(chan struct{}, 16)
		for _, s := range a.List() {
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				if err := do(s.Name); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(name service.Name) error {
		_, err := a.Start(context.Background(), name, service.StartOptions{})
		return err
	})
	for b.Loop() {
		b.StopTimer()
		a.Close()
		if lost {
			require.NoError(b, os.RemoveAll(cfg.StateDir))
			require.NoError(b, os.RemoveAll(cfg.RunDir))
		}
		b.StartTimer()
		a, err = Open(b.Context(), cfg)
		require.NoError(b, err)
		for len(a.List(service.PublicRunning)) < many {
			time.Sleep(time.Millisecond) // nothing is faster to look at
		}
	}
	each(func(name service.Name) error {
		_, err := a.Stop(context.Background(), name, service.StopOptions{Force: true})
		return err
	})
	a.Close()
}
