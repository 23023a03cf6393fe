package client

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/api/apitest"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server with a scripted agent, and gives a Client of it.
func serve(t *testing.T, agent *apitest.Agent) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	address := "unix://" + filepath.Join(dir, "s")
	l, err := api.Listen(address)
	require.NoError(t, err)
	server := api.New(api.Config{Agent: agent, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	c, err := Dial(address)
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		server.Stop(context.Background())
		require.NoError(t, <-done)
	})
	return c
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{
		"", "x", "unix://rel/s", "http://localhost:1", "tcp://localhost", "tcp://192.0.2.1:1", "tcp://example.org:1", "tcp://0.0.0.0:1",
	} {
		_, err := Dial(bad)
		require.ErrorContains(t, err, "cannot use the address", bad)
	}
	for _, good := range []string{DefaultAddress, "tcp://localhost:1", "tcp://127.0.0.9:1", "tcp://[::1]:1"} {
		c, err := Dial(good)
		require.NoError(t, err)
		require.Equal(t, good, c.Address())
		require.NoError(t, c.DialError())
		require.NoError(t, c.Close())
	}
}

// A kind that crosses the wire stays what it is.
func TestKindsCrossTheWire(t *testing.T) {
	agent := &apitest.Agent{}
	c := serve(t, agent)
	for kind := service.Kind(0); kind < service.NumKinds; kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			agent.Before = func(context.Context, string) error {
				return &service.Error{Op: "show", Service: service.MustName("web"), Kind: kind, Err: errors.New("EIO"), Faults: []service.Fault{
					{File: "f", Line: 1, Column: 2, Field: "g", Message: "h"},
				}}
			}
			_, err := c.GetServiceStatus(t.Context(), &gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
			require.Error(t, err)
			require.Equal(t, kind, KindOf(err))
			require.Equal(t, kind.DefaultReason(), ReasonOf(err))
			require.Equal(t, "web", ServiceOf(err))
			require.Equal(t, "cannot show web: EIO; f:1:2: g: h", Message(err))
			require.Equal(t, []service.Fault{{File: "f", Line: 1, Column: 2, Field: "g", Message: "h"}}, Faults(err))
			require.False(t, Unreachable(err))
		})
	}
	agent.Before = func(context.Context, string) error {
		return &service.Error{Kind: service.Timeout, Reason: service.ReasonStartupTimeout}
	}
	_, err := c.GetServiceStatus(t.Context(), &gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.Equal(t, service.ReasonStartupTimeout, ReasonOf(err))
	require.Equal(t, service.Timeout, KindOf(err))
}

func TestErrorsOfNoAgent(t *testing.T) {
	require.Equal(t, service.Cancelled, KindOf(context.Canceled))
	require.Equal(t, service.Timeout, KindOf(context.DeadlineExceeded))
	require.Equal(t, service.Internal, KindOf(errors.New("x")))
	require.Equal(t, "x", Message(errors.New("x")))
	require.Empty(t, ReasonOf(errors.New("x")))
	require.Empty(t, Faults(nil))

	c := serve(t, &apitest.Agent{})
	_, err := c.Register(t.Context(), &gladsheimv1.RegisterRequest{Definition: make([]byte, 2<<20)}) // gRPC itself refuses
	require.Equal(t, service.Exhausted, KindOf(err))
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err = c.ListServices(ctx, &gladsheimv1.ListServicesRequest{})
	require.Equal(t, service.Timeout, KindOf(err))
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	c, err := Dial("unix://" + filepath.Join(dir, "none"))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.ListServices(t.Context(), &gladsheimv1.ListServicesRequest{})
	require.True(t, Unreachable(err), "%v", err)
	require.Equal(t, service.HostUnavailable, KindOf(err))
	require.ErrorIs(t, c.DialError(), fs.ErrNotExist)
}

func TestItComesBack(t *testing.T) {
	dir, err := os.MkdirTemp("", "client")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	c, err := Dial("unix://" + path)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.ListServices(t.Context(), &gladsheimv1.ListServicesRequest{})
	require.True(t, Unreachable(err))
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := api.New(api.Config{Agent: &apitest.Agent{}, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() { server.Stop(context.Background()); require.NoError(t, <-done) }()
	require.Eventually(t, func() bool {
		_, err := c.ListServices(t.Context(), &gladsheimv1.ListServicesRequest{})
		return err == nil && c.DialError() == nil
	}, 20*time.Second, 10*time.Millisecond)
}
