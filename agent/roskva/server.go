package roskva

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxAnswer is as much of an answer as is of interest, and maxHeard as much as is read to
// have it.
const (
	maxAnswer = 64 << 10
	maxHeard  = 2 * maxAnswer
)

// exchange is what one check says on its connection, and what it makes of what it hears.
type exchange interface {
	// opening is what it says at first.
	opening() []byte
	// hear is given all that was heard so far, a bit more each time and the whole in the end.
	// It tells whether that is enough, and then why the service is not well.
	hear(heard []byte, whole bool) (done bool, err error)
	// owed is what it has to reply to that, unless the answer is enough before.
	owed() []byte
}

// server is who is asked over a connection, which lives for one check.
type server struct {
	check   service.Check
	address string                                         // host:port
	secure  func(ctx context.Context) (*tls.Config, error) // nil for a connection without TLS
	begin   func() exchange                                // nil when it is enough that there is a connection
	hard    bool                                           // whether an answer may take long to judge
}

// plain is where a server is reached without asking a resolver or a certificate, and judged at
// once, as it has to be for a talk.
func (s *server) plain() (to netip.AddrPort, ok bool) {
	to, err := netip.ParseAddrPort(s.address)
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	return to, err == nil && s.secure == nil && !s.hard && to.Addr().Zone() == "" && (s.check.Remote || to.Addr().IsLoopback())
}

// ask carries out one check, and waits for it.
func (s *server) ask(ctx context.Context) error {
	conn, err := s.reach(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if s.begin == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	return s.converse(conn, s.begin())
}

func (s *server) converse(conn net.Conn, e exchange) error {
	if _, err := conn.Write(e.opening()); err != nil {
		return s.unasked(err)
	}
	var heard []byte
	for {
		heard = slices.Grow(heard, 512)
		n, err := conn.Read(heard[len(heard):cap(heard)])
		heard = heard[:len(heard)+n]
		if err != nil && !errors.Is(err, io.EOF) {
			return s.unread(err)
		}
		if done, err := e.hear(heard, err != nil || len(heard) >= maxHeard); done {
			return err
		}
		if owed := e.owed(); len(owed) > 0 { // for even nothing can not be said to who has left
			if _, err := conn.Write(owed); err != nil {
				return s.unasked(err)
			}
		}
	}
}

func (s *server) unasked(err error) error {
	return fmt.Errorf("cannot ask %s: %w", s.check.Target(), err)
}

func (s *server) unread(err error) error {
	return fmt.Errorf("cannot read the answer of %s: %w", s.check.Target(), err)
}

// dialer reaches who a check may ask. A name is looked up at each check, so what it
// stands for is known here alone. No connection lives long enough for keep-alives, which
// would take as many system calls as the rest.
func (s *server) dialer() *net.Dialer {
	if s.check.Remote {
		return &net.Dialer{KeepAlive: -1}
	}
	return &net.Dialer{KeepAlive: -1, Control: func(_, address string, _ syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(address); err != nil || !to.Addr().Unmap().IsLoopback() {
			return fmt.Errorf("%s is not on this host; a check asks others only with \"remote\": true", address)
		}
		return nil
	}}
}

// reach connects, with TLS where that is wanted.
func (s *server) reach(ctx context.Context) (net.Conn, error) {
	if s.secure == nil {
		return s.dialer().DialContext(ctx, "tcp", s.address)
	}
	config, err := s.secure(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := s.dialer().DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	if host, _, err := net.SplitHostPort(s.address); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot speak TLS with %s: %w", s.check.Target(), err)
	}
	return secure, nil
}
