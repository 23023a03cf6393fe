package api

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const testGroup = 7777

func hasGroup() (uint32, bool) { return testGroup, true }
func noGroup() (uint32, bool)  { return 0, false }

func TestAdmits(t *testing.T) {
	y := policy{self: 500, group: hasGroup}
	for name, c := range map[string]struct {
		peer  Peer
		group func() (uint32, bool)
		want  bool
	}{
		"nobody":                   {Peer{}, hasGroup, false},
		"uid 0 of nobody":          {Peer{UID: 0, GID: 0, PID: 1}, hasGroup, false},
		"root":                     {Peer{transport: unixSocket}, hasGroup, true},
		"the agent's user":         {Peer{transport: unixSocket, UID: 500, GID: 9}, hasGroup, true},
		"a stranger":               {Peer{transport: unixSocket, UID: 501, GID: 9, Groups: []uint32{1, 2}}, hasGroup, false},
		"primary group":            {Peer{transport: unixSocket, UID: 501, GID: testGroup}, hasGroup, true},
		"supplementary group":      {Peer{transport: unixSocket, UID: 501, GID: 9, Groups: []uint32{1, testGroup}}, hasGroup, true},
		"group 0 without a group":  {Peer{transport: unixSocket, UID: 501, GID: 0, Groups: []uint32{0}}, noGroup, false},
		"loopback":                 {Peer{transport: loopback}, hasGroup, true},
		"overflow uid of a nested": {Peer{transport: unixSocket, UID: 65534, GID: 65534}, hasGroup, false},
	} {
		t.Run(name, func(t *testing.T) {
			y.group = c.group
			require.Equal(t, c.want, y.admits(c.peer))
		})
	}
}

func TestPeerNames(t *testing.T) {
	require.Equal(t, "nobody", Peer{}.String())
	require.Equal(t, "uid 0 (root)", Peer{transport: unixSocket}.String())
	require.Equal(t, "uid 4123456789", Peer{transport: unixSocket, UID: 4123456789}.String())
	require.Equal(t, "tcp", Peer{transport: loopback}.String())
}

// dialAs connects as somebody else: the kernel takes the credentials of the
// thread that calls connect.
func dialAs(t *testing.T, path string, uid, gid int, groups []uint32) net.Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := become(uid, gid, groups); err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := net.Dial("unix", path)
		done <- result{conn, err}
	}()
	r := <-done
	require.NoError(t, r.err)
	return r.conn
}

// become changes this thread only, as the raw calls do.
func become(uid, gid int, groups []uint32) error {
	var first uintptr
	if len(groups) > 0 {
		first = uintptr(unsafe.Pointer(&groups[0]))
	}
	for _, call := range [][4]uintptr{
		{syscall.SYS_SETGROUPS, uintptr(len(groups)), first},
		{syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	goruntime.KeepAlive(groups)
	return nil
}

// openSocket is a server whose socket anybody may connect to.
func openSocket(t *testing.T) *fixture {
	f := newFixtureWith(t, policy{self: uint32(os.Geteuid()), group: hasGroup})
	require.NoError(t, os.Chmod(filepath.Dir(f.path), 0o755))
	require.NoError(t, os.Chmod(f.path, 0o666))
	return f
}

func (f *fixture) clientAs(t *testing.T, uid, gid int, groups []uint32) gladsheimv1.GladsheimServiceClient {
	conn := dialAs(t, f.path, uid, gid, groups)
	return gladsheimv1.NewGladsheimServiceClient(f.dial("passthrough:///as", grpc.WithContextDialer(
		func(context.Context, string) (net.Conn, error) { return conn, nil })))
}

func TestTheKernelSaysWhoCalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	f := openSocket(t)
	many := make([]uint32, 300) // more than the first buffer holds
	for i := range many {
		many[i] = uint32(10_000 + i)
	}
	for name, c := range map[string]struct {
		uid, gid int
		groups   []uint32
		want     codes.Code
	}{
		"stranger":                 {1234, 1234, nil, codes.PermissionDenied},
		"stranger of other groups": {1234, 1234, many, codes.PermissionDenied},
		"by primary group":         {1234, testGroup, nil, codes.OK},
		"by supplementary group":   {1234, 1234, append(many, testGroup), codes.OK},
		"root":                     {0, 0, nil, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.clientAs(t, c.uid, c.gid, c.groups).ListServices(callContext(t), &gladsheimv1.ListServicesRequest{})
			if c.want == codes.OK {
				require.NoError(t, err)
				return
			}
			s := refused(t, err, c.want, "DENIED")
			require.Contains(t, s.Message(), "uid 1234")
			require.Contains(t, s.Message(), Group)
		})
	}
	require.Contains(t, f.log.String(), "uid 1234")
}

// What the peer's own address says is of no interest.
func TestAPeersAddressIsNotRead(t *testing.T) {
	f := openSocket(t)
	local := filepath.Join(socketDir(t), "x;uid=0;")
	conn, err := net.DialUnix("unix", &net.UnixAddr{Name: local, Net: "unix"}, &net.UnixAddr{Name: f.path, Net: "unix"})
	require.NoError(t, err)
	defer conn.Close()
	p := identify(conn)
	require.Equal(t, uint32(os.Geteuid()), p.UID)
}

func TestPeersThatVanish(t *testing.T) {
	dir := socketDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Chmod(l.Addr().String(), 0o666))
	conn := dialAs(t, l.Addr().String(), 1234, 1234, nil)
	conn.Close() // before it is accepted
	accepted, err := l.Accept()
	require.NoError(t, err)
	defer accepted.Close()
	p := identify(accepted)
	require.Equal(t, uint32(1234), p.UID, "who connected does not change by leaving")
	require.False(t, policy{self: 0, group: noGroup}.admits(p))
}

func TestWhatHasNoPeerIsNobody(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	require.Equal(t, Peer{}, identify(a))

	l, err := net.Listen("unix", filepath.Join(socketDir(t), "s"))
	require.NoError(t, err)
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	conn.Close()
	require.Equal(t, Peer{}, identify(conn), "a closed connection")
	require.Equal(t, Peer{}, peerOf(context.Background()))
}

func TestConnectionsAreCounted(t *testing.T) {
	s := newShares(4, 2)
	a, b := account{unixSocket, 1}, account{unixSocket, 2}
	give, ok, _ := s.take(a, true)
	require.True(t, ok)
	_, ok, _ = s.take(a, true)
	require.True(t, ok)
	_, ok, first := s.take(a, true)
	require.False(t, ok)
	require.True(t, first)
	_, ok, first = s.take(a, true)
	require.False(t, ok || first, "told once")
	_, ok, _ = s.take(a, false)
	require.True(t, ok, "root is not bound by a share")
	_, ok, _ = s.take(b, true)
	require.True(t, ok, "others have theirs")
	_, ok, first = s.take(b, true)
	require.False(t, ok || first)
	give()
	give() // is once
	_, ok, _ = s.take(b, true)
	require.True(t, ok)
	_, ok, _ = s.take(account{loopback, 0}, false)
	require.False(t, ok, "all together are bound")
}

// Whoever comes over TCP has one account; together they have half of all, and
// with everybody else they leave some for root.
func TestSharesOverTCP(t *testing.T) {
	s := newShares(64, 8)
	tcp, user := account{loopback, 0}, account{unixSocket, 1}
	takes := func(who account, bound bool) (n int) {
		for {
			if _, ok, _ := s.take(who, bound); !ok {
				return n
			}
			n++
		}
	}
	require.Equal(t, 32, takes(tcp, true))
	require.Equal(t, 8, takes(user, true))
	for uid := uint32(2); uid < 5; uid++ {
		takes(account{unixSocket, uid}, true)
	}
	require.Equal(t, 4, takes(account{unixSocket, 0}, false), "reserved for root")
}

func TestConnectionsOfOneUserAreBound(t *testing.T) {
	f := openSocket(t)
	// The server greets a connection with its settings. The last one, beyond the
	// bound, is closed without a word; everybody else is served.
	for i := range maxConnectionsPerUser + 1 {
		c := dialAs(t, f.path, 1234, testGroup, nil)
		defer c.Close()
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := c.Read(make([]byte, 1))
		if i < maxConnectionsPerUser {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, io.EOF)
			require.Zero(t, n)
		}
	}
	_, err := f.clientAs(t, 1235, testGroup, nil).ListServices(callContext(t), &gladsheimv1.ListServicesRequest{})
	require.NoError(t, err)
	require.Contains(t, f.log.String(), "connections are refused")
}

func TestConnectAndVanish(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 250 {
				if c, err := net.Dial("unix", f.path); err == nil {
					c.Close()
				}
			}
		})
	}
	wg.Wait()
	// Those not closed yet may still fill the count of all.
	_, err := gladsheimv1.NewGladsheimServiceClient(f.conn).ListServices(callContext(t), &gladsheimv1.ListServicesRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
}
