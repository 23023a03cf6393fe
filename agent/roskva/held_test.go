package roskva

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// silent is a server that answers every request with the same bytes, and then neither
// says more nor hangs up.
func silent(t *testing.T, reply string) (url string) {
	return "http://" + answering(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = conn.Write([]byte(reply))
		}
		_, _ = io.Copy(io.Discard, conn) // until the check hangs up
	})
}

// Whatever a server says before it falls silent, a check of it ends in its time.
func TestAskTheSilent(t *testing.T) {
	for name, reply := range map[string]string{
		"nothing":          "",
		"half a head":      "HTTP/1.1 200 O",
		"half a body":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwell",
		"half a chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nwell",
		"a body of no end": "HTTP/1.1 200 OK\r\n\r\nwell",
		"to be continued":  "HTTP/1.1 100 Continue\r\n\r\n",
		"another protocol": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: well\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			check := service.Check{Type: service.CheckHTTP, URL: silent(t, reply), Body: "well", Status: []service.StatusRange{{Low: 100, High: 599}}}
			answer := make(chan error, 1)
			go func() { answer <- ask(t, 200*time.Millisecond, check) }()
			select {
			case err := <-answer:
				require.Error(t, err)
			case <-time.After(10 * time.Second):
				t.Fatal("the check outlives its timeout")
			}
		})
	}
}

// What says all that is wanted, or what can not be understood, is not waited for.
func TestAskTheBrief(t *testing.T) {
	for reply, want := range map[string]string{
		"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n": "",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n":        "",
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell, and more":    "",
		"220 mail.example ready\r\n":                                    "malformed HTTP",
		"SSH-2.0-hall\r\n":                                              "malformed HTTP",
		"HTTP/1.1 OK\r\n\r\n":                                           "malformed HTTP",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwell\r\n": "invalid byte in chunk length",
	} {
		t.Run(strings.Fields(reply)[0], func(t *testing.T) {
			check := service.Check{Type: service.CheckHTTP, URL: silent(t, reply), Status: []service.StatusRange{{Low: 200, High: 399}}}
			if err := ask(t, time.Minute, check); want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

// A file that is none can neither hold up a check nor fill the memory.
func TestAskByAStrangeFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, file := range []string{pipe, "/dev/zero"} {
		check := service.Check{Type: service.CheckHTTP, URL: "https://127.0.0.1:1", TLS: &service.TLS{CA: file}}
		answer := make(chan error, 1)
		go func() { answer <- ask(t, 200*time.Millisecond, check) }()
		select {
		case err := <-answer:
			require.ErrorContains(t, err, "is no regular file")
		case <-time.After(10 * time.Second):
			t.Fatalf("the check waits for %s", file)
		}
	}
}
