package api

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Group is the group whose members may use the agent's socket.
const Group = "gladsheim"

// Peer is who is at the other end of a connection, as the kernel told when it
// was accepted. It is never read from anything the peer sends. The zero Peer is
// nobody.
type Peer struct {
	credentials.CommonAuthInfo
	transport transport
	UID, GID  uint32
	PID       int32    // at connect; the process may be gone
	Groups    []uint32 // supplementary ones
}

type transport uint8

const (
	noTransport transport = iota
	unixSocket
	loopback // TCP: the kernel vouches for the host only
)

// AuthType names the kind of AuthInfo, as gRPC wants.
func (Peer) AuthType() string { return "peercred" }

// String names the peer as an actor, e.g. "uid 0 (root)".
func (p Peer) String() string {
	switch p.transport {
	case unixSocket:
		id := strconv.FormatUint(uint64(p.UID), 10)
		if u, err := user.LookupId(id); err == nil {
			return fmt.Sprintf("uid %s (%s)", id, u.Username)
		}
		return "uid " + id
	case loopback:
		return "tcp"
	}
	return "nobody"
}

// peerOf finds the Peer of a call; nobody when there is none.
func peerOf(ctx context.Context) Peer {
	if p, ok := peer.FromContext(ctx); ok {
		if known, ok := p.AuthInfo.(Peer); ok {
			return known
		}
	}
	return Peer{}
}

// policy decides who may call. It is asked at each call, so that a change of
// the group's number is seen; who is in it was fixed when the peer connected.
type policy struct {
	self  uint32                // the agent's own user
	group func() (uint32, bool) // the number of Group, if there is such a group
}

// groupNumber looks Group up on this host.
func groupNumber() (uint32, bool) {
	g, err := user.LookupGroup(Group)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err == nil
}

// admits tells whether p may call anything at all: root, the agent's own user
// and members of Group over the socket, and whoever reaches the loopback
// address if the host's owner configured one. TCP has no authentication yet.
func (y policy) admits(p Peer) bool {
	switch p.transport {
	case loopback:
		return true
	case unixSocket:
		if y.owns(p) {
			return true
		}
		group, ok := y.group()
		return ok && (p.GID == group || slices.Contains(p.Groups, group))
	}
	return false
}

// owns tells whether p is root or the agent's own user, which can do to the
// host whatever the agent can.
func (y policy) owns(p Peer) bool {
	return p.transport == unixSocket && (p.UID == 0 || p.UID == y.self)
}

// identify asks the kernel who is at the other end of conn. Whatever goes wrong
// makes the peer nobody.
func identify(conn net.Conn) Peer {
	switch c := conn.(type) {
	case *net.UnixConn:
		return identifyUnix(c)
	case *net.TCPConn:
		if addr, ok := c.RemoteAddr().(*net.TCPAddr); ok && addr.IP.IsLoopback() {
			return Peer{
				CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity},
				transport:      loopback,
			}
		}
	}
	return Peer{}
}

// identifyUnix reads SO_PEERCRED and SO_PEERGROUPS (unix(7), socket(7)): the
// credentials at connect(2), which the peer can not change afterwards.
func identifyUnix(conn *net.UnixConn) Peer {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}
	}
	var p Peer
	var known error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, known = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); known != nil {
			return
		}
		p.UID, p.GID, p.PID = cred.Uid, cred.Gid, cred.Pid
		p.Groups, known = peerGroups(fd)
	})
	// A socket without a peer has uid and gid -1 and pid 0.
	if err != nil || known != nil || p.UID == ^uint32(0) || p.GID == ^uint32(0) {
		return Peer{}
	}
	p.SecurityLevel, p.transport = credentials.PrivacyAndIntegrity, unixSocket
	return p
}

// peerGroups reads SO_PEERGROUPS, which x/sys/unix has no function for. The
// kernel answers ERANGE and the size it needs when the buffer is too small.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == syscall.ERANGE && int(size)/4 > len(groups):
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil, fmt.Errorf("getsockopt SO_PEERGROUPS: %w", errno)
		default:
			return groups[:size/4], nil
		}
	}
}
