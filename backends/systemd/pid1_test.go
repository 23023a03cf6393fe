package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// pid1 answers on a socket as systemd would, in the order and at the moment
// that a test wants.
type pid1 struct {
	t        *testing.T
	path     string
	listener *net.UnixListener
	answer   func(c *caller, method string, call *dbus.Message)

	serving sync.WaitGroup
	mu      sync.Mutex
	callers []*caller
	calls   []string // the methods that were called, but for the greeting
}

// caller is one connection to it.
type caller struct {
	*net.UnixConn
	in *bufio.Reader
}

func newPID1(t *testing.T, answer func(c *caller, method string, call *dbus.Message)) *pid1 {
	t.Helper()
	p := &pid1{t: t, path: filepath.Join(t.TempDir(), "private"), answer: answer}
	var err error
	p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"})
	require.NoError(t, err)
	p.serving.Go(p.accept)
	t.Cleanup(func() {
		p.listener.Close()
		p.hangUp()
		p.serving.Wait()
	})
	return p
}

func (p *pid1) accept() {
	for {
		conn, err := p.listener.AcceptUnix()
		if err != nil {
			return
		}
		c := &caller{conn, bufio.NewReader(conn)}
		p.mu.Lock()
		p.callers = append(p.callers, c)
		p.mu.Unlock()
		p.serving.Go(func() {
			defer c.Close()
			if c.authenticate() {
				p.serve(c)
			}
		})
	}
}

func (p *pid1) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.callers {
		c.Close()
	}
}

// authenticate speaks the text before the messages; no descriptors are passed.
func (c *caller) authenticate() bool {
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return false
		}
		say := map[string]string{"AUTH": "REJECTED EXTERNAL", "AUTH EXTERNAL": "OK 0123", "NEGOTIATE_UNIX_FD": "ERROR"}
		line = strings.Trim(line, "\x00\r\n")
		if line == "BEGIN" {
			return true
		}
		if strings.HasPrefix(line, "AUTH EXTERNAL") {
			line = "AUTH EXTERNAL"
		}
		if _, err := c.Write([]byte(say[line] + "\r\n")); err != nil {
			return false
		}
	}
}

func (p *pid1) serve(c *caller) {
	for first := true; ; first = false {
		call, err := dbus.DecodeMessage(c.in)
		if err != nil {
			return
		}
		var text bytes.Buffer
		if _ = call.EncodeTo(&text, binary.LittleEndian); first && text.Len() <= 256 {
			continue // systemd lets it lie
		}
		method, _ := call.Headers[dbus.FieldMember].Value().(string)
		switch {
		case method == "Subscribe":
			c.reply(call)
			continue
		case method == "StartTransientUnit" && call.Body[0] == probeScope:
			c.refuse(call, "org.freedesktop.DBus.Error.InvalidArgs")
			continue
		}
		p.mu.Lock()
		p.calls = append(p.calls, method)
		p.mu.Unlock()
		p.answer(c, method, call)
	}
}

// called lists what was called so far.
func (p *pid1) called() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

func (c *caller) reply(call *dbus.Message, results ...any) {
	c.say(dbus.TypeMethodReply, map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}, results...)
}

func (c *caller) refuse(call *dbus.Message, name string) {
	c.say(dbus.TypeError, map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()), dbus.FieldErrorName: dbus.MakeVariant(name),
	})
}

func (c *caller) ended(job dbus.ObjectPath, unit, result string) {
	c.say(dbus.TypeSignal, map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(manager), dbus.FieldInterface: dbus.MakeVariant(managerInterface),
		dbus.FieldMember: dbus.MakeVariant(jobRemoved),
	}, uint32(1), job, unit, result)
}

func (c *caller) say(kind dbus.Type, headers map[dbus.HeaderField]dbus.Variant, body ...any) {
	if len(body) > 0 {
		headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	m := &dbus.Message{Type: kind, Headers: headers, Body: body}
	_ = m.EncodeTo(c, binary.LittleEndian) // fails when the test has hung up
}

// fixture is a cgroup tree of plain files that gives the controllers.
func fixture(t *testing.T, controllers string) (root string) {
	t.Helper()
	root = t.TempDir()
	write(t, root, "cgroup.controllers", controllers)
	write(t, root, "init.scope/cgroup.controllers", "")
	return root
}

func write(t *testing.T, root, file, text string) {
	t.Helper()
	full := filepath.Join(root, file)
	require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
	require.NoError(t, os.WriteFile(full, []byte(text+"\n"), 0o644))
}

// rig is a backend whose host is made of files.
type rig struct {
	*Backend
	proc string
}

// backendOf is a backend that talks to p, with the cgroups below root.
func backendOf(t *testing.T, p *pid1, root string) rig {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	proc := filepath.Join(t.TempDir(), "proc") // nobody is in a scope, unless a test writes so
	write(t, proc, "sys/kernel/random/boot_id", "of-this-boot")
	fs, err := procfs.New(proc)
	require.NoError(t, err)
	tree, err := cgroup.OpenFixture(root)
	require.NoError(t, err)
	made, err := New(within(t), Config{Watcher: w, Procfs: fs, Tree: tree, Route: RoutePrivate, PrivateSocket: p.path})
	require.NoError(t, err)
	b := rig{made, proc}
	b.bus.current.pidfds = false // the socket passes no descriptors
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		require.NoError(t, w.Close())
	})
	return b
}

// TestConnectionThatEndsAtOnce ends each connection right after the
// authentication. Nothing may be left of it, and the next one is made.
func TestConnectionThatEndsAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	var serving sync.WaitGroup
	var hungUp int
	serving.Go(func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			hungUp++
			(&caller{conn, bufio.NewReader(conn)}).authenticate()
			conn.Close()
		}
	})
	b := newBus(Config{Route: RoutePrivate, PrivateSocket: path})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = b.link(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	b.close()
	listener.Close()
	serving.Wait()
	require.Greater(t, hungUp, 1)
}

// TestPID1ReadsNothingAnyMore: no call outlasts its context, and what comes
// after gets a new connection.
func TestPID1ReadsNothingAnyMore(t *testing.T) {
	stuck := make(chan struct{})
	var asked atomic.Bool
	p := newPID1(t, func(c *caller, _ string, call *dbus.Message) {
		if asked.CompareAndSwap(false, true) {
			<-stuck
		}
		c.reply(call)
	})
	defer close(stuck)
	b := newBus(Config{Route: RoutePrivate, PrivateSocket: p.path})
	l, err := b.link(within(t))
	require.NoError(t, err)
	require.NoError(t, l.raw.SetWriteBuffer(1))
	many := limitsAsProperties(service.Limits{service.MemoryMax: service.Of(1), service.CPUMax: service.Of(1), service.PidsMax: service.Of(1)}, true)
	var wait sync.WaitGroup
	for range 100 {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := b.set(ctx, "some.scope", many)
			if took := time.Since(began); took > soonAfter {
				t.Errorf("it took %v: %v", took, err)
			}
		})
	}
	wait.Wait()
	select {
	case <-l.lost():
	case <-time.After(soonAfter):
		t.Fatal("the connection that takes nothing is kept")
	}
	require.NoError(t, b.set(within(t), "some.scope", many))
	b.close()
}

// TestCallerWhoseTimeIsUp: a call that comes too late does not end the connection
// of the others.
func TestCallerWhoseTimeIsUp(t *testing.T) {
	p := newPID1(t, func(c *caller, _ string, call *dbus.Message) { c.reply(call) })
	b := newBus(Config{Route: RoutePrivate, PrivateSocket: p.path})
	defer b.close()
	l, err := b.link(within(t))
	require.NoError(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // either case of a select may be taken
		require.ErrorIs(t, l.call(over, manager, "systemd1.Manager.Reload", nil), context.Canceled)
	}
	require.NoError(t, l.call(within(t), manager, "systemd1.Manager.Reload", nil))
	select {
	case <-l.lost():
		t.Fatal("the connection has ended")
	default:
	}
}

// web is a launch that would be of /bin/true.
func web() service.Launch {
	spec := service.Defaults()
	spec.Name, spec.Exec = service.MustName("web"), []string{"/bin/true"}
	return service.Launch{Name: spec.Name, Incarnation: 1, Spec: spec}
}

// atGate is an attempt for a scope whose child waits at its gate.
func atGate(t *testing.T, b *Backend) *attempt {
	t.Helper()
	a := b.newAttempt(web(), service.Limits{})
	var err error
	a.child, err = launch.StartPause(b.watcher, -1)
	require.NoError(t, err)
	t.Cleanup(a.child.Abandon)
	return a
}

// TestEndsOfOtherJobs: only the job that was asked for can have failed.
func TestEndsOfOtherJobs(t *testing.T) {
	const scope = "gladsheim-web-00000001.scope"
	for name, tell := range map[string]func(c *caller, call *dbus.Message){
		"before the answer": func(c *caller, call *dbus.Message) {
			c.ended("/job/1", scope, "canceled")
			c.ended("/job/2", scope, "failed")
			c.reply(call, dbus.ObjectPath("/job/2"))
		},
		"after the answer": func(c *caller, call *dbus.Message) {
			c.reply(call, dbus.ObjectPath("/job/2"))
			c.ended("/job/1", scope, "canceled")
			c.ended("/job/2", "gladsheim-other-00000001.scope", "canceled")
			c.ended("/job/2", scope, "failed")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPID1(t, func(c *caller, _ string, call *dbus.Message) { tell(c, call) })
			b := backendOf(t, p, fixture(t, "memory"))
			require.ErrorContains(t, atGate(t, b.Backend).ask(within(t), b.bus.current), `"failed"`)
		})
	}
}

// TestUnitOfSomebodyElse: systemd says that the unit is there, made by another
// agent at the same moment. It is not ours to stop.
func TestUnitOfSomebodyElse(t *testing.T) {
	l := web()
	_, cell, _ := plan(l)
	for name, lives := range map[string]bool{"whose process is in it": true, "whose process is to come": false} {
		t.Run(name, func(t *testing.T) {
			root := fixture(t, "memory")
			p := newPID1(t, func(c *caller, method string, call *dbus.Message) {
				switch method {
				case "StartTransientUnit":
					if lives {
						write(t, root, "gladsheim.slice/"+cell+"/cgroup.events", "populated 1")
						write(t, root, "gladsheim.slice/"+cell+"/cgroup.procs", "4711")
					}
					c.refuse(call, unitExists)
				case "GetUnit":
					c.reply(call, unitPath("gladsheim-web-00000001.scope"))
				case "Get":
					c.reply(call, jobOf(call, lives))
				default:
					c.reply(call, dbus.ObjectPath("/job/1"))
				}
			})
			b := backendOf(t, p, root)
			_, err := b.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
			require.Equal(t, service.Conflict, service.KindOf(err), "%v", err)
			require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err))
			require.NotContains(t, p.called(), "StopUnit")
			require.Empty(t, b.slots)
		})
	}
}

// jobOf answers for a unit: with a start job, or none when its process is
// there already.
func jobOf(call *dbus.Message, lives bool) dbus.Variant {
	switch name := call.Body[1]; {
	case name == "JobType":
		return dbus.MakeVariant("start")
	case lives:
		return dbus.MakeVariant(job{0, "/"})
	}
	return dbus.MakeVariant(job{5, "/org/freedesktop/systemd1/job/5"})
}

// TestScopeThatSystemdLetsGoOf: systemd takes the scope for empty right after
// its start. It is tried once more, and given up the second time.
func TestScopeThatSystemdLetsGoOf(t *testing.T) {
	const scope = "gladsheim-web-00000001.scope"
	var b rig
	p := newPID1(t, func(c *caller, method string, call *dbus.Message) {
		switch method {
		case "StartTransientUnit":
			for _, property := range call.Body[2].([][]any) {
				if property[0] == "PIDs" {
					pid := property[1].(dbus.Variant).Value().([]uint32)[0]
					write(t, b.proc, fmt.Sprintf("%d/cgroup", pid), "0::/gladsheim.slice/a.slice/"+scope)
				}
			}
			c.reply(call, dbus.ObjectPath("/job/1"))
			c.ended("/job/1", scope, "done")
		case "Get":
			c.reply(call, dbus.MakeVariant("inactive"))
		case "GetUnit", "StopUnit":
			c.refuse(call, noSuchUnit)
		}
	})
	b = backendOf(t, p, fixture(t, "memory"))
	_, err := b.Launch(within(t), web(), backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
	require.ErrorIs(t, err, errLetGo)
	once := []string{"StartTransientUnit", "Get", "GetUnit", "StopUnit", "StopUnit"}
	require.Equal(t, append(once, once...), p.called())
	require.Empty(t, gates(t))
	require.Empty(t, b.slots)
}

// TestStartThatWaits: systemd is to end the agent first, so that it neither starts
// nor stops the scope of a launch that is given up. The start is taken back.
func TestStartThatWaits(t *testing.T) {
	ctx, giveUp := context.WithCancel(within(t))
	defer giveUp()
	var cancelled atomic.Bool
	p := newPID1(t, func(c *caller, method string, call *dbus.Message) {
		switch {
		case method == "StartTransientUnit":
			c.reply(call, dbus.ObjectPath("/org/freedesktop/systemd1/job/5"))
			giveUp()
		case method == "Cancel":
			cancelled.Store(true)
			c.reply(call)
		case cancelled.Load(), method == "StopUnit" && call.Body[0] != "gladsheim-web-00000001.scope":
			c.refuse(call, noSuchUnit)
		case method == "GetUnit":
			c.reply(call, unitPath("gladsheim-web-00000001.scope"))
		case method == "Get":
			c.reply(call, jobOf(call, false))
		default:
			c.reply(call, dbus.ObjectPath("/org/freedesktop/systemd1/job/6")) // it waits, too
		}
	})
	b := backendOf(t, p, fixture(t, "memory"))
	_, err := b.Launch(ctx, web(), backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
	require.Equal(t, service.Cancelled, service.KindOf(err), "%v", err)
	require.Empty(t, b.slots, "it still waits for systemd")
	require.Equal(t, []string{"StartTransientUnit", "GetUnit", "Get", "Get", "Cancel", "StopUnit", "StopUnit"}, p.called())
	require.Empty(t, gates(t))
}

// TestWithoutAController: a limit that the kernel can not keep is refused
// before systemd, which would say nothing, is asked for it.
func TestWithoutAController(t *testing.T) {
	p := newPID1(t, func(c *caller, _ string, call *dbus.Message) { c.reply(call) })
	b := backendOf(t, p, fixture(t, "memory pids"))
	require.True(t, b.Enforces().Limits[service.MemoryMax])
	require.True(t, b.Enforces().Limits[service.NoFile])
	require.False(t, b.Enforces().Limits[service.CPUMax])

	l := web()
	l.Limits[service.MemoryMax], l.Limits[service.CPUMax] = service.Of(1<<20), service.Of(service.UsecPerPercent)
	_, err := b.Launch(within(t), l, unrecorded)
	require.Equal(t, service.Unenforceable, service.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "cpu_percent")
	require.NotContains(t, err.Error(), "memory_max")

	h := b.newHandle(b.Plan(l), service.Launch{})
	h.main = process.Lead(&process.Process{}) // has not ended
	_, err = h.Limit(within(t), l.Limits)
	require.Equal(t, service.Unenforceable, service.KindOf(err), "%v", err)
	require.Empty(t, p.called())

	l.Spec.BestEffort = true
	limits, err := b.enforceable(l)
	require.NoError(t, err)
	require.Equal(t, service.Limits{service.MemoryMax: service.Of(1 << 20)}, limits)
}

// TestAncestorsOfWhoIsAdopted: what they have counted may be of long ago.
func TestAncestorsOfWhoIsAdopted(t *testing.T) {
	root := fixture(t, "memory")
	p := newPID1(t, func(c *caller, _ string, call *dbus.Message) { c.reply(call) })
	b := backendOf(t, p, root)
	ref := b.Plan(web())
	cell := filepath.Dir(ref.Cgroup)
	write(t, root, "gladsheim.slice/memory.events", "oom 7\noom_kill 7")
	write(t, root, "gladsheim.slice/memory.events.local", "oom 7")
	write(t, root, cell+"/memory.events", "oom 0\noom_kill 1")
	write(t, root, cell+"/memory.events.local", "oom 0")
	adopted, err := b.Adopt(within(t), ref, service.Launch{})
	require.NoError(t, err)
	h := adopted.(*handle)
	verdict, level, _, err := h.cell.OOMSince(h.before)
	require.NoError(t, err)
	require.Equal(t, service.OOMNone, verdict)
	require.Equal(t, cgroup.UnknownLevel, level)
}
