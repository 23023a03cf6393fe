// Package dbusproxy stands between a program and systemd's own socket or the
// system bus, and does to their messages what a test wants: it delays, drops,
// repeats and reorders them, or breaks the connection. Descriptors stay with the
// message that they belong to.
package dbusproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The sockets there are.
const (
	Private = "/run/systemd/private"
	Bus     = "/run/dbus/system_bus_socket"
)

// Proxy is one socket in front of another. Its methods may be called by many
// goroutines at once.
type Proxy struct {
	t        testing.TB
	path     string
	upstream string
	listener *net.UnixListener
	pumps    sync.WaitGroup
	mu       sync.Mutex
	rules    []*Rule
	frozen   chan struct{} // not nil: no message passes until it is closed
	links    map[*link]struct{}
}

// New listens until the test is over.
func New(t testing.TB, upstream string) *Proxy {
	t.Helper()
	p := &Proxy{t: t, path: filepath.Join(t.TempDir(), "socket"), upstream: upstream, links: map[*link]struct{}{}}
	var err error
	if p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		p.listener.Close()
		p.Cut()
		p.pumps.Wait()
	})
	return p
}

// Path is of the socket.
func (p *Proxy) Path() string { return p.path }

// Script sets what is done from now on. Of the rules that a message meets the
// first one counts. What meets none passes.
func (p *Proxy) Script(rules ...*Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rules {
		r.mu = &p.mu
	}
	p.rules = rules
}

// Freeze stops all messages, as a PID 1 would that is busy with other things.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

// Thaw lets them pass again.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// Cut breaks all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptUnix()
		if err != nil {
			return
		}
		server, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.upstream, Net: "unix"})
		if err != nil { // it restarts
			client.Close()
			continue
		}
		l := &link{p: p, client: client, server: server, gone: make(chan struct{}), calls: map[uint32]message{}}
		p.mu.Lock()
		p.links[l] = struct{}{}
		p.mu.Unlock()
		p.pumps.Go(func() { l.pump(client, server) })
		p.pumps.Go(func() { l.pump(server, client) })
	}
}

// link is one connection through the proxy.
type link struct {
	p              *Proxy
	client, server *net.UnixConn
	once           sync.Once
	gone           chan struct{} // closed when it is cut

	mu         sync.Mutex
	speaks     bool               // the text of the authentication is over
	subscribed bool               // the client has, which ends what it says first
	calls      map[uint32]message // that wait for their answers, by serial
}

func (l *link) cut() {
	l.once.Do(func() {
		close(l.gone)
		l.client.Close()
		l.server.Close()
	})
}

// pump carries bytes and descriptors from one to the other, message by message
// once messages are spoken.
func (l *link) pump(from, to *net.UnixConn) {
	defer l.cut()
	var pending []byte
	var fds []int
	var held *message
	defer func() { closeAll(fds); held.close() }()
	buffer, control := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		n, oobn, _, _, err := from.ReadMsgUnix(buffer, control)
		if err != nil || n == 0 {
			return
		}
		got, err := received(control[:oobn])
		if err != nil {
			l.p.t.Errorf("descriptors were lost: %v", err)
			return
		}
		fds, pending = append(fds, got...), append(pending, buffer[:n]...)
		if pending, err = l.greet(pending, to); err != nil {
			return
		}
		for size := messageSize(pending); size > 0 && len(pending) >= size; size = messageSize(pending) {
			m, err := l.read(pending[:size], from == l.client)
			if err != nil || m.descriptors > len(fds) {
				l.p.t.Errorf("a message with %d descriptors of %d: %v", m.descriptors, len(fds), err)
				return
			}
			m.fds, fds = fds[:m.descriptors:m.descriptors], fds[m.descriptors:]
			pending = pending[size:]
			var goes bool
			if held, goes = l.pass(m, held, to); !goes {
				return
			}
		}
	}
}

// greet passes the text of the authentication on, and returns what is no text.
func (l *link) greet(pending []byte, to *net.UnixConn) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speaks {
		return pending, nil
	}
	text, rest := pending, []byte(nil)
	if at := bytes.Index(pending, []byte("BEGIN\r\n")); at >= 0 {
		l.speaks = true
		text, rest = pending[:at+7], append(rest, pending[at+7:]...)
	}
	_, err := to.Write(text)
	return rest, err
}

// message is one of them as it came.
type message struct {
	raw         []byte
	kind        dbus.Type
	member      string // that is called or told of; of an answer that of its call
	early       bool   // the client had not subscribed yet; of an answer when it called
	descriptors int
	fds         []int
}

func (m *message) send(to *net.UnixConn) error {
	_, _, err := to.WriteMsgUnix(m.raw, syscall.UnixRights(m.fds...), nil)
	return err
}

// close lets go of its descriptors, which were sent or are not to be.
func (m *message) close() {
	if m != nil {
		closeAll(m.fds)
	}
}

// read tells what a message is. An answer is told by the call that it is of.
func (l *link) read(raw []byte, fromClient bool) (message, error) {
	m := message{raw: bytes.Clone(raw)}
	decoded, err := dbus.DecodeMessage(bytes.NewReader(raw))
	if err != nil {
		return m, fmt.Errorf("cannot read a message: %w", err)
	}
	m.kind = decoded.Type
	m.member, _ = decoded.Headers[dbus.FieldMember].Value().(string)
	count, _ := decoded.Headers[dbus.FieldUnixFDs].Value().(uint32)
	m.descriptors = int(count)
	l.mu.Lock()
	defer l.mu.Unlock()
	m.early = !l.subscribed
	switch {
	case fromClient && m.kind == dbus.TypeMethodCall:
		l.calls[decoded.Serial()] = message{member: m.member, early: m.early}
		l.subscribed = l.subscribed || m.member == "Subscribe"
	case m.kind == dbus.TypeMethodReply || m.kind == dbus.TypeError:
		m.kind = dbus.TypeMethodReply
		serial, _ := decoded.Headers[dbus.FieldReplySerial].Value().(uint32)
		m.member, m.early = l.calls[serial].member, l.calls[serial].early
		delete(l.calls, serial)
	}
	return m, nil
}

// pass does to a message what the script says, and sends with it what was held
// back for it. It tells whether the connection goes on.
func (l *link) pass(m message, held *message, to *net.UnixConn) (still *message, goes bool) {
	deed := l.p.judge(&m)
	if !l.wait(deed.delay) {
		m.close()
		return held, false
	}
	if deed.what == swap && held == nil {
		return &m, true
	}
	defer m.close()
	times := map[what]int{drop: 0, cut: 0, repeat: 2}
	n, less := times[deed.what]
	if !less {
		n = 1
	}
	for range n {
		if m.send(to) != nil {
			return held, false
		}
	}
	if held != nil && n > 0 {
		defer held.close()
		if held.send(to) != nil {
			return nil, false
		}
		held = nil
	}
	return held, deed.what != cut && deed.what != cutAfter
}

// wait waits for d, and as long as messages are frozen. It tells whether the
// connection is still there.
func (l *link) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.gone:
		return false
	}
	l.p.mu.Lock()
	frozen := l.p.frozen
	l.p.mu.Unlock()
	if frozen == nil {
		return true
	}
	select {
	case <-frozen:
		return true
	case <-l.gone:
		return false
	}
}

// messageSize is how long the first message in text is, 0 while that is
// unknown (the message format of the D-Bus specification).
func messageSize(text []byte) int {
	if len(text) < 16 {
		return 0
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if text[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := int(order.Uint32(text[4:])), int(order.Uint32(text[12:]))
	return 16 + (fields+7)/8*8 + body
}

// received takes the descriptors out of what came with bytes.
func received(control []byte) (fds []int, err error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		got, err := syscall.ParseUnixRights(&m)
		fds = append(fds, got...)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it holds something else
			return fds, err
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
