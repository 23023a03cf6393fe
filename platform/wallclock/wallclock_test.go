package wallclock

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// What it tells needs a clock that may be set; see test/e2e.
func TestNobodyIsLeft(t *testing.T) {
	defer goleak.VerifyNone(t)
	var log bytes.Buffer
	c := Open(slog.New(slog.NewTextHandler(&log, nil)))
	c.Close()
	require.Empty(t, c.Set())
	require.Empty(t, log.String())
}
