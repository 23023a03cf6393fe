package roskva

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/vigil"
	"github.com/gladsheim/gladsheim/watch"
)

// byAndBy is how long an answer may take at most before what is owed to it is said: most come
// at once, and are over with that.
const byAndBy = 250 * time.Millisecond

// pieces are what talks hear at a time.
var pieces = sync.Pool{New: func() any { return new([4 << 10]byte) }}

// talk is one check of a server that is asked in plain text at an address: server.ask for
// many at once. It is begun, looked at, awaited, and may be ended at any time; while it waits
// for its answer it has a descriptor in the loop, and no goroutine.
type talk struct {
	server *server
	to     netip.AddrPort
	over   func(err error, slept time.Duration) // called once, on any goroutine

	mu       sync.Mutex // of all that follows; the loop's functions take it
	ended    bool
	vigil    *vigil.Vigil
	fd       int // -1 for none
	exchange exchange
	unsaid   []byte
	said     bool // all of it
	heard    []byte
	owed     []byte
	patience time.Duration // until that is said
	pay      *time.Timer   // for that
	loop     *watch.Watcher
	remove   func() // from the loop
}

func newTalk(with *server, to netip.AddrPort, over func(err error, slept time.Duration)) *talk {
	return &talk{server: with, to: to, over: over, fd: -1}
}

// begin connects, and says as much as can be said at once. Nothing here waits: the talk may
// be over before it returns.
func (t *talk) begin(timeout time.Duration) {
	t.step(func() (done bool, err error) {
		t.vigil = vigil.Begin(timeout, t.expire)
		t.patience = min(byAndBy, timeout/4)
		family, address := sockaddr(t.to)
		if t.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err != nil {
			return true, t.unreached(os.NewSyscallError("socket", err))
		}
		if err := unix.Connect(t.fd, address); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return true, t.unreached(os.NewSyscallError("connect", err))
		}
		if t.server.begin != nil {
			t.exchange = t.server.begin()
			t.unsaid = t.exchange.opening()
		}
		return t.say()
	})
}

// look hears what has come by now, and tells whether the talk is over.
func (t *talk) look() bool { return t.step(t.goOn) }

// goOn says what is to be said, or hears a piece of the answer.
func (t *talk) goOn() (done bool, err error) {
	if !t.said {
		return t.say()
	}
	return t.listen()
}

// await has the loop wait for the rest.
func (t *talk) await(loop *watch.Watcher) {
	t.step(func() (done bool, err error) {
		t.loop = loop
		err = t.attend()
		return err != nil, err
	})
}

// turn goes on, when something can be said or heard. It is called by the loop.
func (t *talk) turn() {
	t.step(func() (done bool, err error) {
		said := t.said
		done, err = t.goOn()
		if done || t.said == said {
			return done, err
		}
		t.remove()
		err = t.attend()
		return err != nil, err
	})
}

// expire ends a talk whose time is over. What has come in time counts, though nobody has
// listened: many may have to be heard at once.
func (t *talk) expire() {
	t.step(func() (done bool, err error) {
		for {
			said, heard := t.said, len(t.heard)
			if done, err := t.goOn(); done {
				return true, err
			}
			if t.said == said && len(t.heard) == heard {
				return true, late(t.server.check)
			}
		}
	})
}

// step does something in a talk that has not ended, and ends it when it is done with that. It
// tells whether the talk is over.
func (t *talk) step(do func() (done bool, err error)) (over bool) {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return true
	}
	done, err := do()
	t.ended = done
	t.mu.Unlock()
	if done {
		t.conclude(err)
	}
	return done
}

// end ends the talk with what came of it, if it has not ended yet.
func (t *talk) end(err error) {
	t.step(func() (bool, error) { return true, err })
}

// conclude lets go of all that a talk had, which has just ended: it is the caller's alone.
func (t *talk) conclude(err error) {
	if t.pay != nil {
		t.pay.Stop()
	}
	if t.remove != nil {
		t.remove()
	}
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	var slept time.Duration
	if t.vigil != nil {
		slept = t.vigil.Leave()
	}
	t.over(err, slept)
}

// attend has the loop take turns: when more can be heard, or said as long as not all is.
func (t *talk) attend() (err error) {
	events := uint32(unix.EPOLLIN)
	if !t.said {
		events = unix.EPOLLOUT
	}
	t.remove, err = t.loop.Add(t.fd, events, func(uint32) { t.turn() })
	return err
}

// say says what it can, for which there has to be a connection; that may be all that is
// wanted.
func (t *talk) say() (done bool, err error) {
	if t.exchange == nil {
		return t.connected()
	}
	for len(t.unsaid) > 0 {
		n, err := unix.Write(t.fd, t.unsaid)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
			return true, t.server.unasked(os.NewSyscallError("write", err))
		case err != nil && !errors.Is(err, unix.EINTR):
			return true, t.unreached(os.NewSyscallError("connect", err))
		}
		t.unsaid = t.unsaid[max(n, 0):]
	}
	t.said = true
	return false, nil
}

// connected asks again what came of connect, as connect(2) has it.
func (t *talk) connected() (done bool, err error) {
	_, address := sockaddr(t.to)
	switch err := unix.Connect(t.fd, address); {
	case errors.Is(err, unix.EALREADY), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil && !errors.Is(err, unix.EISCONN):
		return true, t.unreached(os.NewSyscallError("connect", err))
	}
	if itself(t.fd, t.to) {
		return true, t.unreached(os.NewSyscallError("connect", unix.ECONNREFUSED))
	}
	return true, nil
}

// listen hears a piece of the answer.
func (t *talk) listen() (done bool, err error) {
	piece := pieces.Get().(*[4 << 10]byte)
	defer pieces.Put(piece)
	n, err := unix.Read(t.fd, piece[:])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return true, t.server.unread(os.NewSyscallError("read", err))
	}
	heard := piece[:n]
	if len(t.heard) > 0 {
		t.heard = append(t.heard, heard...)
		heard = t.heard
	}
	if done, err := t.exchange.hear(heard, n == 0 || len(heard) >= maxHeard); done {
		return true, err
	}
	if len(t.heard) == 0 {
		t.heard = append(t.heard, heard...)
	}
	t.owed = append(t.owed, t.exchange.owed()...)
	if len(t.owed) > 0 && t.pay == nil {
		t.pay = time.AfterFunc(t.patience, func() { t.step(t.reply) })
	}
	return false, nil
}

// reply says what is owed.
func (t *talk) reply() (done bool, err error) {
	n, err := unix.Write(t.fd, t.owed)
	if err == nil && n < len(t.owed) { // who does not listen to so little
		err = unix.EAGAIN
	}
	if err != nil {
		return true, t.server.unasked(os.NewSyscallError("write", err))
	}
	t.owed, t.pay = nil, nil
	return false, nil
}

func (t *talk) unreached(err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(t.to), Err: err}
}

func sockaddr(to netip.AddrPort) (family int, address unix.Sockaddr) {
	if to.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// itself tells whether a socket is connected with itself, which happens when nobody listens
// on a port that the kernel then chooses for who asks (RFC 9293, figure 8).
func itself(fd int, to netip.AddrPort) bool {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch own := own.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port)) == to
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(own.Addr), uint16(own.Port)) == to
	}
	return false
}
