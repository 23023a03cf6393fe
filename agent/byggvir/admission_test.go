package byggvir

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestAdmit(t *testing.T) {
	share := func(name string, mib uint64) Share { return Share{service.MustName(name), mib << 20} }
	others := []Share{share("small", 1), share("db", 1024), share("api", 256), share("cache", 512), share("free", 0)}
	b := Budget{Services: 6, Memory: 2 << 30, Percent: 50}
	require.NoError(t, b.Admit("start", share("web", 255), nil, others))
	err := b.Admit("start", share("web", 256), nil, others)
	require.Equal(t, service.Exhausted, service.KindOf(err))
	require.EqualError(t, err, "cannot start web: its memory_max, 256MiB, does not fit: services that run may use 1793MiB (most of it db 1GiB, cache 512MiB, api 256MiB), and the configuration allows 2GiB together, 50% of this host's memory (resource_limits.memory_overcommit_percent)")
	require.NoError(t, b.Admit("start", share("web", 0), nil, others), "max is not counted")
	require.ErrorContains(t, b.Admit("start", share("web", 4096), nil, nil), "services that run may use 0, and")
	require.ErrorContains(t, b.Admit("start", share("web", 4096), nil, others[:1]), "may use 1MiB (small 1MiB), and")

	had := share("web", 256)
	require.NoError(t, b.Admit("restart", share("web", 256), &had, others), "it has that")
	require.Error(t, b.Admit("restart", share("web", 257), &had, others))
	b.Services = 5
	require.NoError(t, b.Admit("restart", share("web", 256), &had, others))
	require.ErrorContains(t, b.Admit("start", share("web", 0), nil, others), "5 services run, and the configuration allows 5 (resource_limits.max_services)")
	require.NoError(t, Budget{}.Admit("start", share("web", 1<<40), nil, others))
}

// What is admitted one after another never has more than the budget together.
func TestAdmitLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Budget{Memory: rapid.Uint64Range(1, 1<<40).Draw(t, "budget")}
		var taken []Share
		for range rapid.IntRange(0, 20).Draw(t, "starts") {
			want := Share{Memory: rapid.OneOf(rapid.Uint64Range(0, 1<<40), rapid.Uint64()).Draw(t, "memory")}
			fits := want.Memory == 0 || want.Memory <= b.Memory-Taken(taken)
			require.Equal(t, fits, b.Admit("start", want, nil, taken) == nil)
			if fits {
				taken = append(taken, want)
			}
			require.LessOrEqual(t, Taken(taken), b.Memory)
		}
	})
}
