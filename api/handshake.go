package api

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"
)

// Caps on connections. For root and the agent's own user some are reserved, and
// no share binds them, so that nobody can lock them out.
const (
	maxConnections        = 256
	maxConnectionsPerUser = 32
)

var (
	errTooMany    = errors.New("too many connections")
	errServerSide = errors.New("peer credentials are for the server's side only")
)

// gate is the transport credentials of the server: it learns who a new
// connection is from, and counts connections.
type gate struct {
	policy policy
	open   *shares
	log    *slog.Logger
}

// ServerHandshake asks the kernel who conn is from. It reads nothing from conn.
func (g *gate) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p := identify(conn)
	leave, ok, first := g.open.take(p.account(), !g.policy.owns(p))
	if first {
		g.log.Warn("connections are refused: too many are open", "from", p.String())
	}
	if !ok {
		conn.Close()
		return nil, nil, errTooMany
	}
	return &countedConn{Conn: conn, leave: leave}, p, nil
}

// countedConn leaves the gate's count when it closes.
type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// ClientHandshake refuses: the gate is for servers.
func (g *gate) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerSide
}

// Info names the protocol.
func (g *gate) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone gives the gate itself: its counts are of the whole server.
func (g *gate) Clone() credentials.TransportCredentials { return g }

// OverrideServerName does nothing: there is no name to check.
func (g *gate) OverrideServerName(string) error { return nil }
