package main

import (
	"testing"

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
