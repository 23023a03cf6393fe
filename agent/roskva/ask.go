package roskva

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxAnswer is as much of an answer as is read; the rest is of no interest.
const maxAnswer = 64 << 10

// client follows no redirects, uses no proxy and keeps no connection, so that
// a check reaches what it names and nothing else.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxAnswer},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Ask carries out one check; nil means that the service is well. A check that
// took too long fails with an error that wraps context.DeadlineExceeded.
func Ask(ctx context.Context, check service.Check) error {
	var err error
	switch check.Type {
	case service.CheckProcess:
		return nil // its end is an event
	case service.CheckHTTP:
		err = askHTTP(ctx, check.URL)
	case service.CheckGRPC:
		err = askGRPC(ctx, check.Address, check.Service)
	case service.CheckTCP:
		err = askTCP(ctx, check.Address)
	default:
		return fmt.Errorf("a check of type %d is not known", check.Type)
	}
	if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("%s %s did not answer in time: %w", check.Type, check.Target(), context.DeadlineExceeded)
	}
	return err
}

func askHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "gladsheim-health")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return fmt.Errorf("cannot read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return nil
}

func askTCP(ctx context.Context, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func askGRPC(ctx context.Context, address, name string) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: name})
	if err != nil {
		return err
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s answered %s", address, resp.GetStatus())
	}
	return nil
}
