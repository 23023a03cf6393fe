package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Caps on what one caller can make the server hold. gRPC's own defaults are
// for friends: 2 GiB sent, 16 MiB of headers, any number of streams.
const (
	maxReceive        = 1 << 20 // a definition, or all of an apply
	maxSend           = 4 << 20
	maxHeaders        = 16 << 10
	maxCallsPerConn   = maxStreams + 256 // a stream never takes the place of a call
	connectionTimeout = 5 * time.Second  // from connect to the HTTP/2 preface
	keepaliveIdle     = 30 * time.Second
	keepaliveTimeout  = 10 * time.Second
	keepaliveMinimum  = 10 * time.Second // a client that pings more often is cut off
	maxStreams        = 512              // watches, tails and health subscriptions, of all callers
	maxStreamsPerUser = 256
)

// Config is what a Server is made of.
type Config struct {
	Agent Agent
	Log   *slog.Logger
	// Crash ends the process after a panic was logged: what a broken handler
	// leaves behind is worse than a restart, which services outlive. nil is
	// os.Exit(2), as Go's own end of a panic is.
	Crash func()
}

// Server serves the API on any number of listeners. Its methods may be called
// by many goroutines at once.
type Server struct {
	agent   Agent
	log     *slog.Logger
	crash   func()
	policy  policy
	streams *shares
	patrol  time.Duration // see patrol; shorter in tests
	health  *health.Server
	grpc    *grpc.Server

	leaving context.Context // ends when the server is stopped
	leave   context.CancelFunc
}

// New makes a Server. grpc.health.v1 answers SERVING until Stop.
func New(c Config) *Server {
	if c.Crash == nil {
		c.Crash = func() { os.Exit(2) }
	}
	return newServer(c, policy{self: uint32(os.Geteuid()), group: groupNumber})
}

func newServer(c Config, y policy) *Server {
	s := &Server{
		agent: c.Agent, log: c.Log, crash: c.Crash, policy: y,
		streams: newShares(maxStreams, maxStreamsPerUser), patrol: patrol,
		health: health.NewServer(),
	}
	s.leaving, s.leave = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(&gate{policy: y, open: newShares(maxConnections, maxConnectionsPerUser), log: c.Log}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxCallsPerConn),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinimum, PermitWithoutStream: true}),
	)
	gladsheimv1.RegisterGladsheimServiceServer(s.grpc, &gladsheim{Server: s})
	gladsheimv1.RegisterRuntimeServiceServer(s.grpc, &runtime{Server: s})
	gladsheimv1.RegisterCatalogServiceServer(s.grpc, &catalog{Server: s})
	gladsheimv1.RegisterEventServiceServer(s.grpc, &events{Server: s})
	gladsheimv1.RegisterLogServiceServer(s.grpc, &logs{Server: s})
	gladsheimv1.RegisterHostServiceServer(s.grpc, &host{Server: s})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	return s
}

// Serve answers on l until Stop, and closes it. An error says why it ended
// without one.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop takes no more calls, ends the streams with UNAVAILABLE, and waits for the
// calls under way until ctx ends. Then it cuts them off: their contexts end,
// and Stop does not wait for what ignores that, as a read of a host that hangs.
func (s *Server) Stop(ctx context.Context) {
	s.health.Shutdown()
	s.leave()
	cut := context.AfterFunc(ctx, s.grpc.Stop)
	s.grpc.GracefulStop()
	if !cut() {
		s.grpc.Stop() // is running already: wait for it
	}
}
