package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Route is a way to PID 1.
type Route uint8

// The routes.
const (
	RouteAuto    Route = iota // systemd's own socket for root, and the system bus where that fails
	RoutePrivate              // systemd's own socket; needs no dbus-daemon
	RouteBus                  // the system bus
)

// The sockets of the routes.
const (
	privateSocket = "/run/systemd/private"
	busSocket     = "/run/dbus/system_bus_socket"
)

const (
	firstPause   = 20 * time.Millisecond // before a second attempt; doubled for each further one
	longestPause = 500 * time.Millisecond
)

// link is one connection to systemd. Calls and signals share it. go-systemd
// would open one for each; then the one that carries the signals can die while
// calls still work, and nobody notices.
type link struct {
	raw   *net.UnixConn // below conn
	conn  *dbus.Conn
	route Route

	writing chan struct{} // held by the one who writes a message

	pidfds   bool // scopes take PIDFDs (systemd 255)
	knows253 bool // scopes take OOMPolicy and MemoryZSwapMax (systemd 253)
}

// lost is closed when the connection is.
func (l *link) lost() <-chan struct{} { return l.conn.Context().Done() }

// close frees who writes first: godbus waits for them.
func (l *link) close() {
	l.raw.Close()
	l.conn.Close()
}

// manager is the object that most calls go to.
const manager dbus.ObjectPath = "/org/freedesktop/systemd1"

// call calls a method of an object of PID 1 and stores its results in into.
func (l *link) call(ctx context.Context, object dbus.ObjectPath, method string, args []any, into ...any) error {
	call, err := l.send(ctx, ctx, object, method, args...)
	if err != nil {
		return err
	}
	answer := <-call.Done
	switch {
	case answer.Err != nil && ctx.Err() != nil:
		return fmt.Errorf("systemd has not answered yet: %w", answer.Err)
	case answer.Err != nil, len(into) == 0:
		return answer.Err
	}
	return answer.Store(into...)
}

// send writes a call. The answer comes in its Done, or why there is none: heed
// has ended, or the connection.
//
// godbus would write without a deadline, and holds locks meanwhile that its
// Close needs. So when PID 1 reads nothing any more and the socket is full, the
// one who writes ends the connection as soon as ctx ends.
func (l *link) send(ctx, heed context.Context, object dbus.ObjectPath, method string, args ...any) (*dbus.Call, error) {
	select {
	case l.writing <- struct{}{}:
		defer func() { <-l.writing }()
	case <-ctx.Done():
		return nil, fmt.Errorf("systemd reads nothing any more: %w", ctx.Err())
	}
	if ctx.Err() != nil { // or it would end the connection, which others use
		return nil, fmt.Errorf("systemd was not asked: %w", ctx.Err())
	}
	stop := context.AfterFunc(ctx, func() { l.raw.Close() })
	defer stop()
	to := l.conn.Object("org.freedesktop.systemd1", object)
	return to.GoWithContext(heed, "org.freedesktop."+method, 0, make(chan *dbus.Call, 1), args...), nil
}

// bus keeps one link, and makes another when it is lost.
type bus struct {
	sockets []socket // in order of preference
	ends    jobEnds

	turn chan struct{} // held by the one who dials

	mu      sync.Mutex
	current *link
	closed  bool
}

type socket struct {
	route Route
	path  string
}

func newBus(cfg Config) *bus {
	private := socket{RoutePrivate, cfg.PrivateSocket}
	if private.path == "" {
		private.path = privateSocket
	}
	public := socket{RouteBus, cfg.BusSocket}
	if public.path == "" {
		public.path = busSocket
	}
	b := &bus{turn: make(chan struct{}, 1)}
	switch {
	case cfg.Route == RoutePrivate:
		b.sockets = []socket{private}
	case cfg.Route == RouteBus, os.Geteuid() != 0:
		b.sockets = []socket{public}
	default:
		b.sockets = []socket{private, public}
	}
	return b
}

// present tells whether there is anything to connect to at all.
func (b *bus) present() error {
	var missing []error
	for _, s := range b.sockets {
		_, err := os.Stat(s.path)
		if err == nil {
			return nil
		}
		missing = append(missing, err)
	}
	return errors.Join(missing...)
}

// link returns the connection, made anew if it was lost. It tries until ctx
// ends.
func (b *bus) link(ctx context.Context) (*link, error) {
	if l, err := b.living(); l != nil || err != nil {
		return l, err
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to systemd: another attempt is under way: %w", ctx.Err())
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		if l, err := b.living(); l != nil || err != nil {
			return l, err
		}
		l, err := b.dialAny(ctx)
		if err == nil {
			return l, b.keep(l)
		}
		if sleep(ctx, pause) != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// living returns the link if it is not lost, or an error if the bus is closed.
func (b *bus) living() (*link, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, net.ErrClosed
	case b.current != nil && b.current.conn.Connected():
		return b.current, nil
	}
	return nil, nil
}

func (b *bus) keep(l *link) error {
	b.mu.Lock()
	closed := b.closed
	b.current = l
	b.mu.Unlock()
	if closed {
		l.close()
		return net.ErrClosed
	}
	return nil
}

// close ends the link.
func (b *bus) close() {
	b.mu.Lock()
	b.closed = true
	l := b.current
	b.mu.Unlock()
	if l != nil {
		l.close()
	}
}

func (b *bus) dialAny(ctx context.Context) (*link, error) {
	var failures []error
	for _, s := range b.sockets {
		l, err := b.dial(ctx, s)
		if err == nil {
			return l, nil
		}
		failures = append(failures, fmt.Errorf("connect to systemd through %s: %w", s.path, err))
	}
	return nil, errors.Join(failures...)
}

// dial makes a link through one socket: connect, authenticate, subscribe to
// the ends of jobs, and find out what this systemd can do.
func (b *bus) dial(ctx context.Context, s socket) (*link, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, err
	}
	// godbus has no deadline while it authenticates.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	// The connection outlives ctx, so it is not given to it.
	conn, err := dbus.DialUnix(raw.(*net.UnixConn), dbus.WithSignalHandler(&b.ends))
	if err != nil {
		raw.Close()
		return nil, err
	}
	l := &link{raw: raw.(*net.UnixConn), conn: conn, route: s.route, writing: make(chan struct{}, 1)}
	if err := l.greet(ctx); err != nil {
		l.close()
		return nil, errors.Join(ctx.Err(), err)
	}
	if !stop() {
		l.close()
		return nil, ctx.Err()
	}
	return l, nil
}

func (l *link) greet(ctx context.Context) error {
	if err := l.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	if l.route == RouteBus { // systemd's own socket knows neither
		if err := l.conn.Hello(); err != nil {
			return fmt.Errorf("say Hello: %w", err)
		}
		// From systemd alone: anybody may say on the bus that a job has ended.
		for _, signal := range []string{jobNew, jobRemoved} {
			err := l.conn.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.systemd1"), dbus.WithMatchInterface(managerInterface), dbus.WithMatchMember(signal))
			if err != nil {
				return fmt.Errorf("ask the bus for %s: %w", signal, err)
			}
		}
	}
	// The probe is long and comes first: on its own socket systemd reads up to
	// 256 bytes at a time while it authenticates, and if they hold the whole
	// first message it lets that lie until more comes.
	if err := l.probe(ctx); err != nil {
		return err
	}
	// Without a subscription systemd sends no signal, also on its own socket.
	if err := l.call(ctx, manager, "systemd1.Manager.Subscribe", nil); err != nil {
		return fmt.Errorf("subscribe to jobs: %w", err)
	}
	return nil
}

// probeScope is a unit that never is: its request lacks the processes.
const probeScope = "gladsheim-probe.scope"

// probe finds out which properties scopes take. Properties are looked at in
// order, so the one that is unknown is told from the list of no processes that
// ends every request, and nothing is started either way.
func (l *link) probe(ctx context.Context) error {
	var err error
	if l.conn.SupportsUnixFDs() {
		if l.pidfds, err = l.takes(ctx, property("PIDFDs", []dbus.UnixFD{})); err != nil {
			return err
		}
	}
	l.knows253, err = l.takes(ctx, property("OOMPolicy", "kill"), property("PIDs", []uint32{}))
	return err
}

func (l *link) takes(ctx context.Context, properties ...sd.Property) (bool, error) {
	err := l.call(ctx, manager, "systemd1.Manager.StartTransientUnit", []any{probeScope, "fail", properties, []sd.PropertyCollection{}})
	switch {
	case errorIs(err, "org.freedesktop.DBus.Error.PropertyReadOnly"):
		return false, nil
	case errorIs(err, "org.freedesktop.DBus.Error.InvalidArgs"):
		return true, nil
	}
	return false, fmt.Errorf("ask whether scopes take %s: %w", properties[0].Name, err)
}

// do makes a call that may be made twice, and makes it again whenever the link
// is lost under it, until ctx ends.
func (b *bus) do(ctx context.Context, call func(context.Context, *link) error) error {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		l, err := b.link(ctx)
		if err != nil {
			return err
		}
		err = call(ctx, l)
		if err == nil || !lostAnswer(err) {
			return err
		}
		if sleep(ctx, pause) != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// lostAnswer tells whether err says nothing about the call, only that no
// answer can come: the connection broke, or systemd is not on the bus, as
// during a restart of either.
func lostAnswer(err error) bool {
	for _, name := range []string{
		"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected",
		"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.DBus.Error.NoServer",
	} {
		if errorIs(err, name) {
			return true
		}
	}
	for _, cause := range []error{
		dbus.ErrClosed, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN,
	} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// errorIs tells whether err is the D-Bus error of that name.
func errorIs(err error, name string) bool {
	if e, ok := errors.AsType[dbus.Error](err); ok {
		return e.Name == name
	}
	e, ok := errors.AsType[*dbus.Error](err)
	return ok && e.Name == name
}

// sleep waits for d, or less if ctx ends first; then it returns its error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
