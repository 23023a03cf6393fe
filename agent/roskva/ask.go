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

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

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
		ask = func(ctx context.Context) error { return askGRPC(ctx, check) }
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

func askGRPC(ctx context.Context, check service.Check) error {
	security := insecure.NewCredentials()
	if check.TLS != nil {
		config, err := tlsOf(ctx, check.TLS)
		if err != nil {
			return err
		}
		security = credentials.NewTLS(config)
	}
	reach := dialer(check)
	conn, err := grpc.NewClient("passthrough:///"+check.Address, grpc.WithTransportCredentials(security),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return reach.DialContext(ctx, "tcp", address)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: check.Service})
	if err != nil {
		return err
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s answered %s", check.Address, resp.GetStatus())
	}
	return nil
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
