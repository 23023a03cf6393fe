// Package client connects to a Gladsheim agent. A Client is the generated stubs
// of the API over one connection, and this package tells what their errors mean.
//
//	c, err := client.Dial(client.DefaultAddress)
//	if err != nil { … }
//	defer c.Close()
//	st, err := c.StartService(ctx, &gladsheimv1.StartServiceRequest{ServiceName: "web"})
//	if client.KindOf(err) == service.AlreadyRunning { … }
//
// A start, stop, restart or kill whose answer may be lost gets an id, and is sent
// again as it is until there is an answer; it happens once:
//
//	req := &gladsheimv1.StartServiceRequest{ServiceName: "web", RequestId: client.NewRequestID()}
package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// DefaultAddress is where the agent of a host listens.
const DefaultAddress = "unix:///run/gladsheim/gladsheim.sock"

const (
	// An agent that hangs is noticed after both, whatever it owes us.
	keepaliveIdle    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second

	// The pause after the first try to connect that fails, the longest after a
	// later one, and the least time that a try has.
	firstPause     = 100 * time.Millisecond
	longestPause   = 2 * time.Second
	connectTimeout = 20 * time.Second

	maxAnswer = 4 << 20 // as much as the agent sends
)

// Client talks to one agent. It may be used by many goroutines at once. A call
// fails at once, with an error of which Unreachable is true, while there is no
// agent; the connection is made anew by itself when there is one again.
type Client struct {
	gladsheimv1.GladsheimServiceClient
	gladsheimv1.RuntimeServiceClient
	gladsheimv1.CatalogServiceClient
	gladsheimv1.EventServiceClient
	gladsheimv1.LogServiceClient
	gladsheimv1.HostServiceClient
	Health grpc_health_v1.HealthClient

	address string
	conn    *grpc.ClientConn
	dialed  atomic.Pointer[dialResult]
}

// dialResult is how the latest attempt to connect went.
type dialResult struct{ err error }

// Dial prepares a Client of the agent at address, unix:///PATH or
// tcp://HOST:PORT. It does not connect yet, so it fails only for an address that
// can not be meant. TCP is not encrypted, and only a loopback host is taken; an
// agent far away is reached through ssh -L.
func Dial(address string) (*Client, error) {
	network, target, err := parse(address)
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %q: %w", address, err)
	}
	c := &Client{address: address}
	c.conn, err = grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, target)
			c.dialed.Store(&dialResult{err})
			return conn, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestPause},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveIdle, Timeout: keepaliveTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %q: %w", address, err)
	}
	c.GladsheimServiceClient = gladsheimv1.NewGladsheimServiceClient(c.conn)
	c.RuntimeServiceClient = gladsheimv1.NewRuntimeServiceClient(c.conn)
	c.CatalogServiceClient = gladsheimv1.NewCatalogServiceClient(c.conn)
	c.EventServiceClient = gladsheimv1.NewEventServiceClient(c.conn)
	c.LogServiceClient = gladsheimv1.NewLogServiceClient(c.conn)
	c.HostServiceClient = gladsheimv1.NewHostServiceClient(c.conn)
	c.Health = grpc_health_v1.NewHealthClient(c.conn)
	return c, nil
}

// NewRequestID is an id for the request_id of one request, and of its retries.
func NewRequestID() string { return rand.Text() }

// Address is the address the Client was made for.
func (c *Client) Address() string { return c.address }

// Close ends the connection, and every call under way.
func (c *Client) Close() error { return c.conn.Close() }

// DialError is why the latest attempt to connect failed, e.g. fs.ErrNotExist
// for a socket that is not there or fs.ErrPermission for one that the caller
// may not use; nil if it did not fail.
func (c *Client) DialError() error {
	if r := c.dialed.Load(); r != nil {
		return r.err
	}
	return nil
}

func parse(address string) (network, target string, err error) {
	scheme, rest, _ := strings.Cut(address, "://")
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return "", "", fmt.Errorf("the path of a socket must be absolute, as in %s", DefaultAddress)
		}
		return "unix", rest, nil
	case "tcp":
		host, _, err := net.SplitHostPort(rest)
		if err != nil {
			return "", "", err
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "", "", fmt.Errorf("%s is no loopback address, and TCP is not encrypted; use ssh -L and a local port", host)
		}
		return "tcp", rest, nil
	}
	return "", "", fmt.Errorf("it must be unix:///PATH or tcp://HOST:PORT")
}
