package roskva

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Other hosts are asked only where the definition says so.
func TestAskOthers(t *testing.T) {
	for _, check := range []service.Check{
		{Type: service.CheckTCP, Address: "192.0.2.1:80"}, // TEST-NET-1 of RFC 5737
		{Type: service.CheckHTTP, URL: "http://192.0.2.1/"},
		{Type: service.CheckGRPC, Address: "192.0.2.1:80"},
	} {
		t.Run(check.Type.String(), func(t *testing.T) {
			require.ErrorContains(t, ask(t, 10*time.Second, check), "is not on this host")
			check.Remote = true
			err := ask(t, 50*time.Millisecond, check)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "is not on this host")
		})
	}
}

// A password in a URL is used, and told nobody.
func TestAskKeepsASecret(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	check := service.Check{Type: service.CheckHTTP, URL: "http://hall:secret@" + web.Listener.Addr().String()}
	require.NoError(t, ask(t, 10*time.Second, check))
	check.Body = "well"
	err := ask(t, 10*time.Second, check)
	require.ErrorContains(t, err, "does not match")
	require.NotContains(t, err.Error(), "secret")
	web.Close()
	require.NotContains(t, ask(t, 10*time.Second, check).Error(), "secret")
	require.NotContains(t, check.Target(), "secret")
}

func TestAskTLS(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	rpc := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: web.TLS.Certificates})))
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	go func() { _ = rpc.Serve(l) }()
	defer rpc.Stop()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, check := range []service.Check{
		{Type: service.CheckHTTP, URL: web.URL},
		{Type: service.CheckGRPC, Address: l.Addr().String()},
	} {
		t.Run(check.Type.String(), func(t *testing.T) {
			with := func(security service.TLS) error {
				check.TLS = &security
				return ask(t, 10*time.Second, check)
			}
			require.ErrorContains(t, with(service.TLS{}), "certificate")
			require.NoError(t, with(service.TLS{CA: ca}))
			require.NoError(t, with(service.TLS{CA: ca, ServerName: "example.com"}))
			require.ErrorContains(t, with(service.TLS{CA: ca, ServerName: "elsewhere.org"}), "elsewhere.org")
			require.NoError(t, with(service.TLS{Insecure: true}))
			require.ErrorIs(t, with(service.TLS{CA: ca + "x"}), os.ErrNotExist)
			require.ErrorContains(t, with(service.TLS{CA: empty}), "holds no certificate")
			require.ErrorContains(t, with(service.TLS{CA: "/dev/null"}), "is no regular file")
		})
	}
}

// FuzzReply has a server answer with anything, in pieces of any length: that ends, is the
// same as in one, and is well only if it is an answer with status 200 and the body that is
// wanted, to whoever reads it.
func FuzzReply(f *testing.F) {
	for _, reply := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwe",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nwell",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nwe\r\n2 \r\nll\r\n0\r\nX: y\r\n\r\nmore", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n",
		"HTTP/1.0 200\n\nwell", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "HTTP/1.1 503 No\r\n\r\nwell", "200 OK", "", "\r\n\r\n",
		"HTTP/1.1 204 No\r\nContent-Length: 4\r\n\r\nwell", "HTTP/1.1 101 Switching Protocols\r\n\r\nwell", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 7),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nwell", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nwell",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10004\r\nwell" + strings.Repeat(".", maxAnswer) + "\r\n0\r\n\r\n",
	} {
		f.Add([]byte(reply), 1)
		f.Add([]byte(reply), 30)
	}
	asked, err := httpServer(service.Check{Type: service.CheckHTTP, URL: "http://127.0.0.1:1", Body: "well"})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, reply []byte, piece int) {
		want, got := heard(t, asked, reply, piece)
		if want == nil {
			require.NoError(t, got)
			require.True(t, bytes.HasPrefix(reply, []byte("HTTP/")), "%q", reply)
			require.Contains(t, string(reply), " 200", "%q", reply)
		} else {
			require.Error(t, got, "in one piece: %v", want)
		}
	})
}
