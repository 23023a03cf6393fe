package sockets

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listen makes a socket that listens and accepts nothing by itself.
func listen(t testing.TB, network, address string) (net.Listener, uint64) {
	t.Helper()
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	raw, err := l.(interface{ File() (*os.File, error) }).File()
	require.NoError(t, err)
	defer raw.Close()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(raw.Fd()), &st))
	return l, st.Ino
}

func dial(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{Timeout: time.Minute}).DialContext(context.Background(), l.Addr().Network(), l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// queueOf is that of the socket with an inode; nil when nobody waits there.
func queueOf(t testing.TB, inode uint64) *Queue {
	t.Helper()
	all, err := Queues()
	require.NoError(t, err)
	for _, q := range all {
		if q.Inode == inode {
			return &q
		}
	}
	return nil
}

func TestWhoWaits(t *testing.T) {
	abstract := fmt.Sprintf("@gladsheim-test-%d", os.Getpid())
	for _, at := range []struct{ name, network, address string }{
		{"tcp", "tcp4", "127.0.0.1:0"}, {"everywhere", "tcp4", "0.0.0.0:0"}, {"tcp6", "tcp6", "[::1]:0"}, {"both", "tcp", ":0"},
		{"unix", "unix", filepath.Join(t.TempDir(), "s")}, {"abstract", "unix", abstract},
	} {
		t.Run(at.name, func(t *testing.T) {
			if at.name == "tcp6" {
				if l, err := net.Listen(at.network, at.address); err != nil {
					t.Skip("this host has no IPv6: ", err)
				} else {
					l.Close()
				}
			}
			l, inode := listen(t, at.network, at.address)
			require.Nil(t, queueOf(t, inode), "nobody waits")
			dial(t, l)
			before := queueOf(t, inode)
			require.NotNil(t, before)
			require.Equal(t, 1, before.Waiting)
			require.Positive(t, before.Limit)
			require.Equal(t, l.Addr().String(), before.Address)
			first, err := before.Clients()
			require.NoError(t, err)
			require.Len(t, first, 1)

			dial(t, l)
			require.Equal(t, 2, queueOf(t, inode).Waiting)
			both, err := before.Clients()
			require.NoError(t, err)
			require.Len(t, both, 2)
			require.Subset(t, both, first)

			accepted, err := l.Accept()
			require.NoError(t, err)
			defer accepted.Close()
			require.Equal(t, 1, queueOf(t, inode).Waiting)
			left, err := before.Clients()
			require.NoError(t, err)
			require.Len(t, left, 1)
			require.NotEqual(t, first, left, "the first one was accepted")

			require.NoError(t, l.Close())
			require.Nil(t, queueOf(t, inode))
			none, err := before.Clients()
			require.NoError(t, err)
			require.Empty(t, none, "it listens no more")
		})
	}
}

// TestAClientThatLeaves: it waits still, and is named as long as the kernel knows it.
func TestAClientThatLeaves(t *testing.T) {
	l, inode := listen(t, "tcp4", "127.0.0.1:0")
	c := dial(t, l)
	require.NoError(t, c.Close())
	q := queueOf(t, inode)
	require.NotNil(t, q)
	require.Equal(t, 1, q.Waiting)
	left, err := q.Clients()
	require.NoError(t, err)
	require.Len(t, left, 1)
}

// TestAnswersOfOddLengths: what is cut off, or says a wrong length, is an error or left
// out, and nothing is read beyond it.
func TestAnswersOfOddLengths(t *testing.T) {
	message := make([]byte, headerSize)
	order.PutUint32(message, 64)
	_, err := answers(message, func([]byte) { t.Error("there is nothing in it") })
	require.ErrorContains(t, err, "cut off")
	done, err := answers(message[:headerSize-1], func([]byte) { t.Error("there is nothing in it") })
	require.NoError(t, err)
	require.False(t, done)
	for n := range 80 {
		_, ok := parseInet(make([]byte, n))
		require.Equal(t, n >= 72, ok)
		_, ok = parseUnix(make([]byte, n))
		require.Equal(t, n >= 16, ok)
	}
	attributes([]byte{200, 0, 1, 0, 1}, func(uint16, []byte) { t.Error("it is longer than all there is") })
	attributes([]byte{5, 0, 1, 0, 1}, func(kind uint16, value []byte) { require.Equal(t, []byte{1}, value) })
	refused := make([]byte, headerSize+4)
	order.PutUint32(refused, headerSize+4)
	order.PutUint16(refused[4:], unix.NLMSG_ERROR)
	order.PutUint32(refused[headerSize:], ^uint32(unix.EPERM)+1)
	_, err = answers(refused, nil)
	require.ErrorIs(t, err, unix.EPERM)
}

// BenchmarkQueues is one look at all listening sockets of the host.
func BenchmarkQueues(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_, err := Queues()
		require.NoError(b, err)
	}
}

// BenchmarkClients is one look at who waits in one of them, through all connections
// of the host.
func BenchmarkClients(b *testing.B) {
	l, inode := listen(b, "tcp4", "127.0.0.1:0")
	dial(b, l)
	q := queueOf(b, inode)
	for b.Loop() {
		_, err := q.Clients()
		require.NoError(b, err)
	}
}
