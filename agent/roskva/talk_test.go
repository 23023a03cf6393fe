package roskva

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// A server whose queue is full is connected with late, and then all goes on.
func TestAskLate(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 0))
	file := os.NewFile(uintptr(fd), "listener")
	l, err := net.FileListener(file)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, file.Close())
	for _, check := range []service.Check{
		{Type: service.CheckTCP, Address: l.Addr().String()},
		{Type: service.CheckHTTP, URL: "http://" + l.Addr().String()},
	} {
		var ahead []net.Conn
		for { // as many as there is room for
			conn, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
			if err != nil {
				break
			}
			ahead = append(ahead, conn)
		}
		require.NotEmpty(t, ahead)
		_, asked := prepare(check, nil)
		to, plain := asked.plain()
		require.True(t, plain)
		answer := make(chan error, 1)
		go func() { answer <- converse(t, asked, to, time.Minute) }()
		select {
		case err := <-answer:
			t.Fatalf("nobody has taken it, and it says %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			for range len(ahead) + 1 {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\nwell"))
					}
				}()
			}
		}()
		for _, conn := range ahead {
			conn.Close()
		}
		require.NoError(t, <-answer)
		<-served
	}
}

// A connection of a socket with itself is none with a server.
func TestAskNobodyButItself(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if host == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			continue // a host without IPv6
		}
		require.NoError(t, err)
		to := l.Addr().(*net.TCPAddr).AddrPort()
		family, address := sockaddr(to)
		other, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(other)
		require.NoError(t, unix.Connect(other, address))
		require.False(t, itself(other, to))
		require.NoError(t, l.Close())

		own, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(own)
		require.NoError(t, unix.SetsockoptInt(own, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		require.NoError(t, unix.Bind(own, address))
		require.NoError(t, unix.Connect(own, address))
		talk := newTalk(&server{}, to, nil)
		talk.fd = own
		_, err = talk.connected()
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
}

// A talk is for who is reached and judged without waiting for anybody else.
func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		check service.Check
		to    string // "" for none
	}{
		{service.Check{Type: service.CheckTCP, Address: "127.0.0.1:80"}, "127.0.0.1:80"},
		{service.Check{Type: service.CheckTCP, Address: "[::1]:80"}, "[::1]:80"},
		{service.Check{Type: service.CheckTCP, Address: "[::ffff:127.0.0.2]:80"}, "127.0.0.2:80"},
		{service.Check{Type: service.CheckTCP, Address: "localhost:80"}, ""},
		{service.Check{Type: service.CheckTCP, Address: "192.0.2.1:80"}, ""},
		{service.Check{Type: service.CheckTCP, Address: "192.0.2.1:80", Remote: true}, "192.0.2.1:80"},
		{service.Check{Type: service.CheckTCP, Address: "[fe80::1%lo]:80", Remote: true}, ""},
		{service.Check{Type: service.CheckHTTP, URL: "http://127.0.0.1/"}, "127.0.0.1:80"},
		{service.Check{Type: service.CheckHTTP, URL: "https://127.0.0.1/"}, ""},
		{service.Check{Type: service.CheckHTTP, URL: "http://127.0.0.1/", Body: "well"}, ""},
		{service.Check{Type: service.CheckGRPC, Address: "127.0.0.1:80"}, "127.0.0.1:80"},
		{service.Check{Type: service.CheckGRPC, Address: "127.0.0.1:80", TLS: &service.TLS{}}, ""},
	} {
		_, asked := prepare(tt.check, nil)
		to, plain := asked.plain()
		require.Equal(t, tt.to != "", plain, "%v", tt.check)
		if plain {
			require.Equal(t, tt.to, to.String())
		}
	}
}

// Who can not be reached is told of as net tells of him.
func TestAskNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	for _, check := range []service.Check{
		{Type: service.CheckTCP, Address: address}, {Type: service.CheckHTTP, URL: "http://" + address}, {Type: service.CheckGRPC, Address: address},
	} {
		err := ask(t, time.Minute, check)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.EqualError(t, err, fmt.Sprintf("dial tcp %s: connect: connection refused", address))
	}
}

// A server that waits until it is replied to gets its reply, if it is not at once.
func TestOwedToAServer(t *testing.T) {
	acknowledged := make(chan []http2.FrameType, 2)
	address := answering(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		_, _ = in.Discard(len(http2.ClientPreface))
		f := http2.NewFramer(conn, in)
		settings(f)
		ping(f)
		var acks []http2.FrameType
		for len(acks) < 2 {
			frame, err := f.ReadFrame()
			if err != nil {
				break
			}
			h := frame.Header()
			if (h.Type == http2.FrameSettings || h.Type == http2.FramePing) && h.Flags.Has(http2.FlagSettingsAck) {
				acks = append(acks, h.Type)
			}
		}
		acknowledged <- acks
		_, _ = conn.Write(frames(ok, data(serving), done))
		_, _ = io.Copy(io.Discard, in)
	})
	require.NoError(t, ask(t, time.Minute, service.Check{Type: service.CheckGRPC, Address: address}))
	for range 2 {
		require.Equal(t, []http2.FrameType{http2.FrameSettings, http2.FramePing}, <-acknowledged)
	}
}

// connections counts the sockets of this process that are connected with an address.
func connections(t *testing.T, to netip.AddrPort) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, name := range fds {
		fd, err := strconv.Atoi(name.Name())
		require.NoError(t, err)
		if peer, err := unix.Getpeername(fd); err == nil {
			if peer, ok := peer.(*unix.SockaddrInet4); ok && netip.AddrPortFrom(netip.AddrFrom4(peer.Addr), uint16(peer.Port)) == to {
				n++
			}
		}
	}
	return n
}

// Those who wait for an answer have no goroutine; when their time is over, or they are left,
// nothing of them is left.
func TestTalksThatHang(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() { // has no goroutine for each either
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close() // with the listener
		}
	}()
	var timedOut atomic.Int32
	r := newRoskva(t, func(_ service.Name, h service.Health) {
		if h.Status == service.CheckTimedOut {
			timedOut.Add(1)
		}
	})
	to, goroutines := l.Addr().(*net.TCPAddr).AddrPort(), runtime.NumGoroutine()
	check := service.Check{Type: service.CheckHTTP, URL: "http://" + l.Addr().String(), Interval: time.Hour, Threshold: 1}
	const many = atOnce * 2 / 3 // twice as many would not be asked, were the first not forgotten
	attend := func(timeout time.Duration) (leaves []func(string)) {
		check.Timeout = timeout
		for n := range many {
			leaves = append(leaves, r.Attend(service.MustName(fmt.Sprintf("web-%d", n)), check, nil, noExcuse, func() {}))
		}
		require.Eventually(t, func() bool { return connections(t, to) == many }, time.Minute, time.Millisecond)
		return leaves
	}
	leaves := attend(time.Minute)
	require.Less(t, runtime.NumGoroutine(), goroutines+many/2)
	for _, leave := range leaves {
		leave("it ended")
	}
	require.Zero(t, connections(t, to))
	require.Zero(t, timedOut.Load())

	leaves = attend(time.Second)
	require.Eventually(t, func() bool { return timedOut.Load() == many && connections(t, to) == 0 }, time.Minute, time.Millisecond)
	for _, leave := range leaves {
		leave("it ended")
	}
}

// An answer that came in time counts, though nobody listened while there was time.
func TestHeardTooLate(t *testing.T) {
	for name, tt := range map[string]struct {
		says string
		want error
	}{
		"an answer": {"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n" + strings.Repeat("well", 2000), nil},
		"half":      {"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\nwell", context.DeadlineExceeded},
		"nothing":   {"", context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer l.Close()
			asked, err := httpServer(service.Check{Type: service.CheckHTTP, URL: "http://" + l.Addr().String()})
			require.NoError(t, err)
			to, _ := asked.plain()
			over := make(chan error, 1)
			talk := newTalk(asked, to, func(err error, _ time.Duration) { over <- err })
			talk.begin(time.Hour)
			conn, err := l.Accept()
			require.NoError(t, err)
			defer conn.Close()
			n, err := conn.Write([]byte(tt.says))
			require.NoError(t, err)
			require.Eventually(t, func() bool { // on its way through the loopback
				there, err := unix.IoctlGetInt(talk.fd, unix.TIOCINQ)
				return err == nil && there == n
			}, time.Minute, time.Millisecond)
			talk.expire()
			require.ErrorIs(t, <-over, tt.want)
		})
	}
}

// A server that answers, and leaves without having read all, has answered.
func TestAskWhoLeaves(t *testing.T) {
	address := answering(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1)) // a reset follows, for the rest was not read
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + strings.Repeat("well.", 180)))
	})
	for _, pattern := range []string{"", "well"} {
		require.NoError(t, ask(t, time.Minute, service.Check{Type: service.CheckHTTP, URL: "http://" + address, Body: pattern}))
	}
}

// Whoever is left before his talk began is not asked.
func TestATalkThatEndedBefore(t *testing.T) {
	var over []error
	talk := newTalk(&server{}, netip.AddrPort{}, func(err error, _ time.Duration) { over = append(over, err) })
	talk.end(io.EOF)
	talk.begin(time.Second)
	require.True(t, talk.look())
	talk.await(nil)
	talk.end(nil)
	require.Equal(t, []error{io.EOF}, over)
}
