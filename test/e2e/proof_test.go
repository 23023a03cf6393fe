package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// patient is a real program that a check is to find well, ill when it is, and well
// again once it was restarted.
type patient struct {
	name   string
	def    func(t *testing.T, dir string) fields
	check  fields // ready and health
	trusts string // file in dir of the certificates that the check believes, "" for none
	harm   func(t *testing.T, dir string, pid int)
	says   string // of the ill one
}

var patients = []patient{
	{
		name: "nginx", def: defineNginx, check: fields{"type": "http", "url": nginxURL, "status": []any{200, "301-302"}, "body": "^well$"},
		harm: otherwise, says: "body",
	},
	{
		name: "redis", def: defineRedis, check: fields{"type": "tcp", "address": "127.0.0.1:" + redisPort},
		harm: func(t *testing.T, _ string, _ int) { require.NoError(t, redis("config", "set", "port", "0")) },
		says: "connection refused",
	},
	{
		name: "redis-asked", def: defineRedis, check: fields{"type": "exec", "exec": []string{"/usr/bin/redis-cli", "-e", "-p", redisPort, "ping"}},
		harm: func(t *testing.T, _ string, _ int) {
			require.NoError(t, redis("config", "set", "requirepass", "secret"))
		},
		says: "NOAUTH",
	},
	{
		name: "postgres", def: definePostgres,
		check: fields{"type": "exec", "exec": []string{postgres("pg_isready"), "-h", "127.0.0.1", "-p", postgresPort, "-t", "2"}},
		harm:  func(t *testing.T, _ string, pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP)) },
		says:  "no response",
	},
	{
		name: "hall", def: defineHealthServer, check: fields{"type": "grpc", "address": healthAddress, "service": "hall.Door"},
		harm: func(t *testing.T, _ string, pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGUSR1)) },
		says: "NOT_SERVING",
	},
	{
		name: "hall-behind-tls", def: defineSecureHealthServer, trusts: hallCertificate,
		check: fields{"type": "grpc", "address": healthAddress, "service": "hall.Door"},
		harm:  func(t *testing.T, _ string, pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGUSR1)) },
		says:  "NOT_SERVING",
	},
}

// otherwise has nginx answer 200 with other words, and its next instance as ever.
func otherwise(t *testing.T, dir string, pid int) {
	conf := filepath.Join(dir, "nginx.conf")
	well, err := os.ReadFile(conf)
	require.NoError(t, err)
	writeFile(t, conf, []byte(strings.Replace(string(well), "'well'", "'so so'", 1)))
	require.NoError(t, syscall.Kill(pid, syscall.SIGHUP))
	eventually(t, "nginx says so", func() bool {
		answer, err := http.Get(nginxURL)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return string(text) == "so so"
	})
	writeFile(t, conf, well)
}

// TestRealProgramsAreChecked: each check finds a real program well, sees that it is ill
// when it is, and tells how; it is restarted for that, and well again.
func TestRealProgramsAreChecked(t *testing.T) {
	anywhere(t)
	w := newWorld(t)
	for n, p := range patients {
		t.Run(p.name, func(t *testing.T) {
			w, dir := w.in(t), w.path("sick-"+p.name)
			require.NoError(t, os.Mkdir(dir, 0o755))
			check := p.check
			if p.trusts != "" {
				check = check.with(fields{"tls": fields{"ca": filepath.Join(dir, p.trusts), "server_name": hallName}})
			}
			w.register(p.def(t, dir).with(fields{
				"name": p.name, "launch": modes(t)[n%len(modes(t))],
				"ready":   check.with(fields{"timeout": "2m"}),
				"health":  check.with(fields{"interval": "1s", "timeout": "10s", "threshold": 2}),
				"restart": fields{"policy": "on-failure", "backoff": "10ms"},
			}))
			t.Cleanup(func() { w.cli("kill", p.name) }) // a story that breaks off shall not spoil the next
			w.mustCLI("start", p.name)
			healthy := func() bool { return byGRPC{w}.health(p.name).Status == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY }
			eventually(t, "it is well", healthy)
			before := byGRPC{w}.status(p.name)

			p.harm(t, dir, int(before.ProcessId))
			var after *gladsheimv1.ServiceStatus
			eventually(t, "it is restarted", func() bool {
				after = byGRPC{w}.status(p.name)
				return after.Incarnation > before.Incarnation && after.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
			})
			x := byGRPC{w}.exits(p.name).Exits[0]
			require.Equal(t, gladsheimv1.Verdict_VERDICT_UNHEALTHY, x.Verdict, "%v", x)
			require.Contains(t, x.Message, p.says)
			require.EqualValues(t, 1, after.RestartCount)
			eventually(t, "it is well again", healthy)
			w.mustCLI("health", p.name, "--now")
			require.Contains(t, w.mustCLI("health", p.name, "--checks"), "the check succeeded")
			var told bool
			for _, line := range strings.Split(w.mustCLI("events", "-n", "100", p.name), "\n") {
				told = told || strings.Contains(line, p.says)
			}
			require.True(t, told, "the events tell %q:\n%s", p.says, w.mustCLI("events", "-n", "100", p.name))
			w.mustCLI("stop", p.name)
		})
	}
}

// healthServer is where this program is to be a server with grpc.health.v1, if it is;
// see TestMain.
const healthServer = "GLADSHEIM_TEST_HEALTH_SERVER"

var healthAddress = fmt.Sprintf("127.0.0.1:%d", port(18443))

func defineHealthServer(t *testing.T, _ string) fields {
	self, err := os.Executable()
	require.NoError(t, err)
	return fields{"exec": []string{self}, "environment": fields{healthServer: healthAddress}}
}

// The server speaks TLS with the certificate and the key of the file that this names.
const healthCertificate = "GLADSHEIM_TEST_HEALTH_CERTIFICATE"

const hallName, hallCertificate = "hall.example", "hall.pem"

func defineSecureHealthServer(t *testing.T, dir string) fields {
	file := filepath.Join(dir, hallCertificate)
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	about := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{hallName}, NotAfter: time.Now().Add(24 * time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writeFile(t, file, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...))
	def := defineHealthServer(t, dir)
	def["environment"] = fields{healthServer: healthAddress, healthCertificate: file}
	return def
}

func TestMain(m *testing.M) {
	if address := os.Getenv(healthServer); address != "" {
		fmt.Fprintln(os.Stderr, serveHealth(address))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveHealth serves what has no door, and a door that SIGUSR1 shuts.
func serveHealth(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	security := insecure.NewCredentials()
	if file := os.Getenv(healthCertificate); file != "" {
		if security, err = credentials.NewServerTLSFromFile(file, file); err != nil {
			return err
		}
	}
	state, server := health.NewServer(), grpc.NewServer(grpc.Creds(security))
	state.SetServingStatus("hall.Door", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, state)
	shut := make(chan os.Signal, 1)
	signal.Notify(shut, syscall.SIGUSR1)
	go func() {
		<-shut
		state.SetServingStatus("hall.Door", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}()
	return server.Serve(l)
}
