package power

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// patience is how long anything may take on an emulated machine before a test
// gives up. No test waits that long when all is well.
const patience = 5 * time.Minute

// machine is a host that is on. It is a grpc.ClientConnInterface to its agent.
type machine struct {
	t      *testing.T
	host   string
	runner *exec.Cmd
	stderr bytes.Buffer
	orders *json.Encoder
	off    chan struct{} // closed when it is

	mu      sync.Mutex
	last    int
	waiting map[int]chan answer
}

// programs is the folder of what the machines are to have.
func programs(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("GLADSHEIM_TEST_POWER")
	if dir == "" {
		t.Skip("this switches machines on and off: go run ./test/floors -only power")
	}
	return dir
}

// switchOn wakes a host, or boots it from a disk of its own, if one is given. bin
// is put into its PATH.
func switchOn(t *testing.T, host, bin, disk string) *machine {
	t.Helper()
	args := []string{host, "-timeout", "1h", "-stdin", "-bin", bin, "-copy", "../../units/files:/root/units", "-env", asHand + "=1"}
	if disk != "" {
		args = append(args, "-disk", disk)
	}
	m := &machine{t: t, host: host, runner: exec.Command("../host/run", append(args, "--", "test-power.test")...),
		off: make(chan struct{}), waiting: map[int]chan answer{}}
	m.runner.Stderr = &m.stderr
	in, err := m.runner.StdinPipe()
	require.NoError(t, err)
	out, err := m.runner.StdoutPipe()
	require.NoError(t, err)
	m.orders = json.NewEncoder(in)
	require.NoError(t, m.runner.Start())
	go m.listen(out)
	t.Cleanup(m.switchOff)
	m.sh("true") // it is on
	return m
}

// listen hands out answers until the machine is off.
func (m *machine) listen(out io.Reader) {
	defer close(m.off)
	for answers := json.NewDecoder(out); ; {
		var a answer
		if err := answers.Decode(&a); err != nil {
			break
		}
		m.mu.Lock()
		m.waiting[a.ID] <- a // there is room for one
		delete(m.waiting, a.ID)
		m.mu.Unlock()
	}
	_ = m.runner.Wait() // its code is looked at
}

// switchOff cuts the power, and returns when it is off.
func (m *machine) switchOff() {
	_ = m.runner.Process.Signal(syscall.SIGTERM) // it may be off
	<-m.off
}

// cut is switchOff of a machine that has to be on.
func (m *machine) cut() {
	m.t.Helper()
	m.switchOff()
	require.Equal(m.t, 128+int(syscall.SIGINT), m.runner.ProcessState.ExitCode(), "it broke before: %s", m.stderr.String())
}

// pause stops the machine for a time.
func (m *machine) pause(d time.Duration) {
	m.t.Helper()
	require.NoError(m.t, m.runner.Process.Signal(syscall.SIGUSR1))
	time.Sleep(d) // that is the pause
	require.NoError(m.t, m.runner.Process.Signal(syscall.SIGUSR2))
}

// errOff tells that the machine went off before it answered.
var errOff = errors.New("the machine is off")

// ask gives an order and waits for the answer.
func (m *machine) ask(ctx context.Context, o order) (answer, error) {
	got := make(chan answer, 1)
	m.mu.Lock()
	m.last++
	o.ID = m.last
	m.waiting[o.ID] = got
	err := m.orders.Encode(o)
	m.mu.Unlock()
	if err != nil {
		return answer{}, errors.Join(errOff, err)
	}
	select {
	case a := <-got:
		return a, nil
	case <-m.off:
		select {
		case a := <-got:
			return a, nil
		default:
			return answer{}, errOff
		}
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// Invoke calls the agent.
func (m *machine) Invoke(ctx context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	body, err := proto.Marshal(request.(proto.Message))
	if err != nil {
		return err
	}
	a, err := m.ask(ctx, order{Method: method, Body: body})
	switch {
	case err != nil:
		return err
	case a.Code != 0:
		return status.Error(codes.Code(a.Code), a.Message)
	}
	return proto.Unmarshal(a.Body, response.(proto.Message))
}

// NewStream is not needed.
func (m *machine) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "the hand passes no streams on")
}

// try runs a script in the machine.
func (m *machine) try(script string) (code int, out string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := m.ask(ctx, order{Script: script})
	require.NoError(m.t, err, "%s\n%s", script, m.stderr.String())
	return a.Code, strings.TrimSpace(string(a.Body))
}

// sh is try for what has to succeed.
func (m *machine) sh(script string) string {
	m.t.Helper()
	code, out := m.try(script)
	require.Zero(m.t, code, "%s\n%s", script, out)
	return out
}

// install installs the agent as docs/installing.md says, and has it run.
func (m *machine) install() {
	m.t.Helper()
	m.sh(`install -m 755 "$(command -v gladsheimd)" "$(command -v gladsheim)" /usr/bin/
		install -d -m 755 /etc/gladsheim/services.d`)
	if m.systemd() {
		m.sh(`cd /root/units
			install -D -m 644 gladsheim.conf /etc/sysusers.d/gladsheim.conf
			systemd-sysusers /etc/sysusers.d/gladsheim.conf
			install -m 644 gladsheimd.service gladsheim.slice /etc/systemd/system/
			systemctl daemon-reload
			systemctl enable --now gladsheimd`)
	}
	m.sh("sync")
}

func (m *machine) systemd() bool { return strings.HasPrefix(m.host, "systemd") }

// awaitAgent waits until the agent answers. Where there is no systemd to start it,
// it does.
func (m *machine) awaitAgent() {
	m.t.Helper()
	if !m.systemd() {
		m.sh("setsid gladsheimd </dev/null >>/var/log/gladsheimd.log 2>&1 &")
	}
	eventually(m.t, "the agent answers", func() bool { code, _ := m.try("gladsheim list"); return code == 0 })
}

// agentLog is what agents have said in this boot.
func (m *machine) agentLog() string {
	if m.systemd() {
		_, out := m.try("journalctl -b -u gladsheimd --no-pager -o cat")
		return out
	}
	_, out := m.try("cat /var/log/gladsheimd.log")
	return out
}

func (m *machine) services() gladsheimv1.GladsheimServiceClient {
	return gladsheimv1.NewGladsheimServiceClient(m)
}
func (m *machine) catalog() gladsheimv1.CatalogServiceClient {
	return gladsheimv1.NewCatalogServiceClient(m)
}

// contextFor ends with the test, or when its patience does.
func contextFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return ctx
}

// pause is the time between two looks.
const pause = 200 * time.Millisecond

// eventually polls a condition that nothing tells of, on the test's own goroutine,
// where it may end the test.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); <-time.After(pause) {
		require.True(t, time.Now().Before(end), "in vain: %s", what)
	}
}

// diskOf is a file for the disk of a machine.
func diskOf(t *testing.T) string { return filepath.Join(t.TempDir(), "disk") }
