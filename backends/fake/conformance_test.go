package fake_test

import (
	"strings"
	"testing"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestConformance(t *testing.T) {
	run := func(t *testing.T, enforces service.Enforcement) {
		host := fake.NewHost()
		backendtest.Run(t, backendtest.Subject{
			New: func(*testing.T) backends.Backend {
				return fake.New(fake.Config{Host: host, Program: fake.Workload, Enforces: &enforces})
			},
			Offers: enforces,
			Alive: func(token string) int {
				n := 0
				for _, p := range host.Processes() {
					if strings.Contains(p.Command, token) {
						n++
					}
				}
				return n
			},
		})
	}
	t.Run("everything enforced", func(t *testing.T) { run(t, fake.Everything()) })
	t.Run("nothing enforced", func(t *testing.T) { run(t, service.Enforcement{}) })
}
