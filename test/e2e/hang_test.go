package e2e

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestAStopIsSeen: SIGSTOP of a server without any check is seen within seconds, and told
// once, until it goes on; so is one in the absence of an agent. What is frozen is not hung.
func TestAStopIsSeen(t *testing.T) {
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) { newWorld(t).seeStop(mode) })
	}
}

const allStopped = "all threads are stopped (SIGSTOP)"

// hung waits until a service hangs, or does not, and tells how long that took.
func (w *world) hung(name string, hangs bool) (took time.Duration, s *gladsheimv1.ServiceStatus) {
	w.t.Helper()
	took = stopwatch(func() {
		eventually(w.t, fmt.Sprintf("%s hangs: %v", name, hangs), func() bool {
			s = byGRPC{w}.status(name)
			return (s.Hung != nil) == hangs
		})
	})
	return took, s
}

func (w *world) seeStop(mode string) {
	t, d := w.t, byGRPC{w}
	w.register(workload(t, "plain", "plain", "sleep").with(fields{"launch": mode}))
	was := d.start("plain")
	pid := int(was.ProcessId)
	time.Sleep(3 * time.Second) // it is nothing new
	token := w.sequence()

	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	took, s := w.hung("plain", true)
	t.Logf("seen after %v", took)
	require.Less(t, took, 5*time.Second)
	require.Equal(t, allStopped, s.Hung.Why)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
	require.Contains(t, w.mustCLI("list"), "hangs: "+allStopped)
	require.Contains(t, w.mustCLI("status", "plain"), "HANGS")
	require.Contains(t, d.health("plain").Message, allStopped)
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	w.hung("plain", false)
	kinds, token := w.resume(token)
	require.Equal(t, 1, count(kinds, "hung"), "%v", kinds)
	require.Equal(t, 1, count(kinds, "hung-over"), "%v", kinds)

	w.leave(syscall.SIGKILL)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	w.begin()
	took, _ = w.hung("plain", true)
	t.Logf("what was stopped without an agent is seen by the next after %v", took)
	require.Less(t, took, 5*time.Second)
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	w.hung("plain", false)
	require.Equal(t, was.Incarnation, d.status("plain").Incarnation)

	if limited(t) {
		_, token = w.resume(token)
		w.mustCLI("freeze", "plain")
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		time.Sleep(6 * time.Second)
		kinds, _ = w.resume(token)
		require.Zero(t, count(kinds, "hung"), "%v", kinds)
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		w.mustCLI("thaw", "plain")
	}
	require.Empty(t, d.exits("plain").Exits)
}

// TestAHangIsEnded: one whose definition has it count as unhealthy is ended and begun
// again (P5), unless somebody has stopped it with a signal of ours.
func TestAHangIsEnded(t *testing.T) {
	anywhere(t)
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) { newWorld(t).endHang(mode) })
	}
}

func (w *world) endHang(mode string) {
	t, d := w.t, byGRPC{w}
	w.register(workload(t, "stuck", "stuck", "stop-self").with(fields{
		"launch": mode, "hang": "unhealthy", "restart": fields{"policy": "on-failure", "max_attempts": 1, "backoff": "100ms"},
	}))
	d.start("stuck")
	eventually(t, "it was begun again", func() bool { return len(d.exits("stuck").Exits) > 0 })
	x := d.exits("stuck").Exits
	x0 := x[len(x)-1]
	require.Equal(t, gladsheimv1.Verdict_VERDICT_UNHEALTHY, x0.Verdict)
	require.EqualValues(t, syscall.SIGTERM, x0.GetSignal(), "it could heed that")
	require.Contains(t, x0.Message, "ended because it hung: "+allStopped)
	eventually(t, "it is given up", func() bool { return d.status("stuck").State == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED })

	w.register(workload(t, "wanted", "wanted", "sleep").with(fields{"launch": mode, "hang": "unhealthy"}))
	d.start("wanted")
	w.mustCLI("signal", "wanted", "STOP")
	_, s := w.hung("wanted", true)
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_UNHEALTHY, s.HealthStatus.Status)
	time.Sleep(3 * time.Second)
	require.Empty(t, d.exits("wanted").Exits, "somebody wants it so")
	w.mustCLI("signal", "wanted", "CONT")
	w.hung("wanted", false)
	d.stop("wanted")
}

// TestAWaitInTheKernel: of threads that wait where no signal but SIGKILL reaches them (D) nobody
// tells, and disks may take long; still it is seen.
func TestAWaitInTheKernel(t *testing.T) {
	anywhere(t)
	w := newWorld(t)
	// What has called vfork(2) waits so for its child; this one sleeps.
	script := fmt.Sprintf("syscall(%d, %d, 0, 0, 0, 0) or sleep(10000)", unix.SYS_CLONE, unix.CLONE_VFORK|unix.SIGCHLD)
	w.register(fields{"name": "waits", "exec": []string{"/usr/bin/perl", "-e", script, mine("waits")}, "restart": fields{"policy": "never"}})
	byGRPC{w}.start("waits")
	took, s := w.hung("waits", true)
	t.Logf("seen after %v: %s", took, s.Hung.Why)
	require.Greater(t, took, 25*time.Second)
	require.Contains(t, s.Hung.Why, "all threads wait in the kernel (D)")
	byGRPC{w}.stop("waits")
	require.EqualValues(t, 1, byGRPC{w}.exits("waits").Exits[0].LeftoversKilled, "its child")
}

// TestAQueueThatNobodyServes: who accepts nobody and does nothing is seen within seconds,
// by its socket of TCP or its Unix socket; who has nothing to do, who is busy, and who is
// slow is never taken for it.
func TestAQueueThatNobodyServes(t *testing.T) {
	anywhere(t)
	for i, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) { newWorld(t).seeQueue(mode, 15080+10*i) })
	}
}

func (w *world) seeQueue(mode string, first int) {
	t, d := w.t, byGRPC{w}
	at := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", port(first+n)) }
	deaf, idle, busy, slow, path := at(0), at(1), at(2), at(3), w.path("deaf.sock")
	servers := map[string][]string{
		"deaf": {"deaf", "tcp", deaf}, "deaf-unix": {"deaf", "unix", path}, "idle": {"http", idle}, "busy": {"http", busy}, "slow": {"slow", slow, "1s"},
	}
	for name, server := range servers {
		w.register(workload(t, name, name, server...).with(fields{"launch": mode}))
		d.start(name)
	}
	token := w.sequence()
	crowd := newClients(t)
	defer crowd.leave()
	for range 4 {
		go crowd.ask(busy, 10*time.Millisecond)
		go crowd.ask(slow, 0)
	}
	crowd.wait("unix", path, 3)
	took, s := w.hung("deaf-unix", true)
	t.Logf("a Unix socket is seen after %v: %s", took, s.Hung.Why)
	require.Less(t, took, 30*time.Second)
	require.Contains(t, s.Hung.Why, path+" has 3 connections waiting")
	crowd.wait("tcp", deaf, 3)
	took, s = w.hung("deaf", true)
	t.Logf("a socket of TCP is seen after %v: %s", took, s.Hung.Why)
	require.Less(t, took, 30*time.Second)
	require.Contains(t, s.Hung.Why, deaf+" has 3 connections waiting")
	require.Contains(t, s.Hung.Why, "uses no CPU")
	time.Sleep(10 * time.Second)
	kinds, _ := w.resume(token)
	for _, name := range []string{"idle", "busy", "slow"} {
		require.Nil(t, d.status(name).Hung, name)
	}
	require.Equal(t, 2, count(kinds, "hung"), "%v", kinds)
	require.Zero(t, count(kinds, "hung-over"), "%v", kinds)
}

// clients connect to servers.
type clients struct {
	t    *testing.T
	done chan struct{}
	all  []net.Conn
}

func newClients(t *testing.T) *clients { return &clients{t: t, done: make(chan struct{})} }

// ask connects again and again, until the end.
func (c *clients) ask(address string, pause time.Duration) {
	for {
		select {
		case <-c.done:
			return
		case <-time.After(pause):
		}
		conn, err := net.DialTimeout("tcp", address, time.Minute)
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "GET /health HTTP/1.1\r\n\r\n")
		_, _ = conn.Read(make([]byte, 512))
		conn.Close()
	}
}

// wait has so many connect and wait.
func (c *clients) wait(network, address string, many int) {
	c.t.Helper()
	for range many {
		eventually(c.t, "it listens at "+address, func() bool {
			conn, err := net.Dial(network, address)
			if err == nil {
				c.all = append(c.all, conn)
			}
			return err == nil
		})
	}
}

func (c *clients) leave() {
	close(c.done)
	for _, conn := range c.all {
		conn.Close()
	}
}
