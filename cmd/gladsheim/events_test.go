package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestStorySaysNothingTwice(t *testing.T) {
	for _, tt := range []struct{ reason, detail, want string }{
		{"cpu-warning", "cpu-warning: throttled to cpu_percent 16%", "cpu-warning: throttled to cpu_percent 16%"},
		{"memory_max", "memory_max (memory.max) was 256MiB and is 100MiB", "memory_max (memory.max) was 256MiB and is 100MiB"},
		{"cpu-warning", "18.7% of a core", "cpu-warning: 18.7% of a core"},
		{"stop", "stopped by alice", "stop: stopped by alice"},
		{"", "the main process runs", "the main process runs"},
		{"asked", "", "asked"},
	} {
		require.Equal(t, tt.want, story(&gladsheimv1.Event{Kind: "enforced", Reason: tt.reason, Detail: tt.detail}))
	}
}
