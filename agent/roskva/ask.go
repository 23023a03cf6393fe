package roskva

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
)

// question carries out one check; nil means that the service is well. A check that
// took too long fails with an error that wraps context.DeadlineExceeded.
type question func(ctx context.Context) error

// prepare makes the question of a check, and tells whom it asks over a connection, nil for
// nobody.
func prepare(check service.Check, exec Exec) (question, *server) {
	var ask question
	var asked *server
	var err error
	switch check.Type {
	case service.CheckProcess:
		return func(context.Context) error { return nil }, nil // its end is an event
	case service.CheckHTTP:
		asked, err = httpServer(check)
	case service.CheckGRPC:
		asked, err = grpcServer(check)
	case service.CheckTCP:
		asked = &server{check: check, address: check.Address}
	case service.CheckExec:
		ask = func(ctx context.Context) error { return exec(ctx, check.Exec) }
	case service.CheckWatchdog:
		return silence(check), nil
	default:
		err = fmt.Errorf("a check of type %s asks nobody", check.Type)
	}
	if err != nil {
		return func(context.Context) error { return err }, nil
	}
	if asked != nil {
		ask = asked.ask
	}
	return func(ctx context.Context) error {
		err := ask(ctx)
		if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) && !errors.Is(err, errHolds) {
			return late(check)
		}
		return err
	}, asked
}

// late is how a check fails whose time is over.
func late(check service.Check) error {
	return fmt.Errorf("%s %s did not answer in time: %w", check.Type, check.Target(), context.DeadlineExceeded)
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
