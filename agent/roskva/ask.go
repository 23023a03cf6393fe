package roskva

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxAnswer is as much of an answer as is read; the rest is of no interest.
const maxAnswer = 64 << 10

// question carries out one check; nil means that the service is well. A check that
// took too long fails with an error that wraps context.DeadlineExceeded.
type question func(ctx context.Context) error

// prepare makes the question of a check.
func prepare(check service.Check, exec Exec) question {
	var ask question
	switch check.Type {
	case service.CheckProcess:
		return func(context.Context) error { return nil } // its end is an event
	case service.CheckHTTP:
		ask = askHTTP(check)
	case service.CheckGRPC:
		ask = askGRPC(check)
	case service.CheckTCP:
		ask = func(ctx context.Context) error { return askTCP(ctx, check) }
	case service.CheckExec:
		ask = func(ctx context.Context) error { return exec(ctx, check.Exec) }
	case service.CheckWatchdog:
		return silence(check)
	default:
		return func(context.Context) error { return fmt.Errorf("a check of type %s asks nobody", check.Type) }
	}
	return func(ctx context.Context) error {
		err := ask(ctx)
		if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) && !errors.Is(err, errHolds) {
			return fmt.Errorf("%s %s did not answer in time: %w", check.Type, check.Target(), context.DeadlineExceeded)
		}
		return err
	}
}

// dialer reaches who a check may ask. A name is looked up at each check, so what it
// stands for is known here alone. No connection lives long enough for keep-alives, which
// would take as many system calls as the rest.
func dialer(check service.Check) *net.Dialer {
	if check.Remote {
		return &net.Dialer{KeepAlive: -1}
	}
	return &net.Dialer{KeepAlive: -1, Control: func(_, address string, _ syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(address); err != nil || !to.Addr().Unmap().IsLoopback() {
			return fmt.Errorf("%s is not on this host; a check asks others only with \"remote\": true", address)
		}
		return nil
	}}
}

func askTCP(ctx context.Context, check service.Check) error {
	conn, err := dialer(check).DialContext(ctx, "tcp", check.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// reach connects to an address, with TLS if there is a config for it.
func reach(ctx context.Context, check service.Check, address string, config *tls.Config) (net.Conn, error) {
	conn, err := dialer(check).DialContext(ctx, "tcp", address)
	if err != nil || config == nil {
		return conn, err
	}
	if host, _, err := net.SplitHostPort(address); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot speak TLS with %s: %w", check.Target(), err)
	}
	return secure, nil
}

// tlsOf reads the certificates at each check: they may be renewed while a service runs.
func tlsOf(ctx context.Context, t *service.TLS) (*tls.Config, error) {
	config := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.Insecure}
	if t.CA != "" {
		text, err := certificates.text(ctx, t.CA)
		if err != nil {
			return nil, fmt.Errorf("cannot read tls.ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s, which is tls.ca, holds no certificate (PEM)", t.CA)
		}
	}
	return config, nil
}
