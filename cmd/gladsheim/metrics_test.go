package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Figures that can not be written are no success, also of no service at all.
func TestMetricsOnAFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	a := &app{surroundings: surroundings{out: full}}
	require.ErrorIs(t, a.showMetrics(&gladsheimv1.ServiceList{}), unix.ENOSPC)
}
