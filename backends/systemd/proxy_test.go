package systemd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// proxy stands between a backend and systemd's own socket, and does to the
// messages what networks do in bad dreams.
type proxy struct {
	t        *testing.T
	path     string
	listener *net.UnixListener
	pumps    sync.WaitGroup

	dropSignals atomic.Bool  // JobRemoved never arrives
	twice       atomic.Bool  // every signal arrives twice
	dropReplies atomic.Int64 // that many answers never arrive
	cutAt       atomic.Int64 // the connection breaks after that many more requests; 0: never
	requests    atomic.Int64 // requests for scopes that were let through

	mu     sync.Mutex
	frozen chan struct{} // not nil: no message passes until it is closed
	conns  map[*net.UnixConn]struct{}
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{t: t, path: filepath.Join(t.TempDir(), "private"), conns: make(map[*net.UnixConn]struct{})}
	var err error
	p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"})
	require.NoError(t, err)
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		p.thaw()
		p.listener.Close()
		p.cut()
		p.pumps.Wait()
	})
	return p
}

func (p *proxy) config() Config { return Config{Route: RoutePrivate, PrivateSocket: p.path} }

// freeze stops all messages, as a PID 1 would that is busy with other things.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.AcceptUnix()
		if err != nil {
			return
		}
		server, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: privateSocket, Net: "unix"})
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		p.mu.Unlock()
		var speaks atomic.Bool // the text of the authentication is over
		p.pumps.Go(func() { p.pump(client, server, &speaks, p.request) })
		p.pumps.Go(func() { p.pump(server, client, &speaks, p.answer) })
	}
}

// pump carries bytes and descriptors from one to the other, message by message
// once messages are spoken. judge tells how often a message is to be sent.
func (p *proxy) pump(from, to *net.UnixConn, speaks *atomic.Bool, judge func([]byte) (int, bool)) {
	defer from.Close()
	defer to.Close()
	var pending []byte
	var fds []int
	buffer, control := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		n, oobn, _, _, err := from.ReadMsgUnix(buffer, control)
		if err != nil || n == 0 {
			return
		}
		fds = append(fds, received(control[:oobn])...)
		pending = append(pending, buffer[:n]...)
		if !speaks.Load() {
			text := pending
			pending = nil
			if at := bytes.Index(text, []byte("BEGIN\r\n")); at >= 0 {
				speaks.Store(true)
				pending = append(pending, text[at+7:]...)
				text = text[:at+7]
			}
			if _, err := to.Write(text); err != nil {
				return
			}
		}
		for size := messageSize(pending); speaks.Load() && size > 0 && len(pending) >= size; size = messageSize(pending) {
			message := pending[:size]
			pending = pending[size:]
			p.wait()
			times, goes := judge(message)
			for range times {
				if _, _, err := to.WriteMsgUnix(message, syscall.UnixRights(fds...), nil); err != nil {
					goes = false
				}
			}
			for _, fd := range fds {
				syscall.Close(fd)
			}
			fds = nil
			if !goes {
				return
			}
		}
	}
}

func (p *proxy) wait() {
	p.mu.Lock()
	frozen := p.frozen
	p.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (p *proxy) request(message []byte) (times int, goes bool) {
	if bytes.Contains(message, []byte("StartTransientUnit")) && !bytes.Contains(message, []byte(probeScope)) {
		p.requests.Add(1)
	}
	return 1, p.cutAt.Load() == 0 || p.cutAt.Add(-1) != 0
}

func (p *proxy) answer(message []byte) (times int, goes bool) {
	const reply, failed, signal = 2, 3, 4
	switch kind := message[1]; {
	case kind == signal && p.dropSignals.Load() && bytes.Contains(message, []byte("JobRemoved")):
		return 0, true
	case kind == signal && p.twice.Load():
		return 2, true
	case (kind == reply || kind == failed) && p.dropReplies.Load() > 0:
		p.dropReplies.Add(-1)
		return 0, true
	}
	return 1, true
}

// messageSize is how long the first message in text is, 0 while that is
// unknown (the message format of the D-Bus specification; all little-endian).
func messageSize(text []byte) int {
	if len(text) < 16 {
		return 0
	}
	body := int(binary.LittleEndian.Uint32(text[4:]))
	fields := int(binary.LittleEndian.Uint32(text[12:]))
	return 16 + (fields+7)/8*8 + body
}

func received(control []byte) []int {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	var fds []int
	for _, m := range messages {
		if got, err := syscall.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		} else if !errors.Is(err, syscall.EINVAL) {
			return fds
		}
	}
	return fds
}

// soonAfter is a limit for things that must not wait for anything long.
const soonAfter = 20 * time.Second
