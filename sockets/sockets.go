// Package sockets reads which connections wait to be accepted, from the kernel's
// tables of listening sockets (sock_diag(7)): of TCP, and of Unix sockets that have
// connections. It sees those of the network namespace that it is called in.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Queue is a listening socket in which connections wait to be accepted.
type Queue struct {
	Address string // host:port, a path, or @ and an abstract name
	Inode   uint64 // of the socket, by which /proc/PID/fd names it
	Cgroup  uint64 // ID of the cgroup of who made it, 0 where the kernel does not tell
	Waiting int    // connections
	Limit   int    // most that may wait

	family byte
	local  netip.AddrPort // of TCP
}

// Queues lists the listening sockets in which connections wait. An error says of which
// kind they can not be read, for want of a module of the kernel or since somebody confines
// us; then those of other kinds are listed all the same.
func Queues() ([]Queue, error) {
	d, err := open()
	if err != nil {
		return nil, err
	}
	defer d.close()
	var all []Queue
	var faults []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := d.dump(inetRequest(family, 0, listening), func(m []byte) {
			if s, ok := parseInet(m); ok && s.waiting > 0 {
				all = append(all, Queue{
					Address: s.local.String(), Inode: uint64(s.inode), Cgroup: s.cgroup, Waiting: int(s.waiting), Limit: int(s.limit),
					family: family, local: s.local,
				})
			}
		})
		if err != nil {
			faults = append(faults, fmt.Errorf("list the listening sockets of TCP: %w", err))
			break // it is one module for both
		}
	}
	err = d.dump(unixRequest(0, listening, showName|showQueue), func(m []byte) {
		if s, ok := parseUnix(m); ok && s.waiting > 0 {
			all = append(all, Queue{Address: s.name, Inode: uint64(s.inode), Waiting: int(s.waiting), Limit: int(s.limit), family: unix.AF_UNIX})
		}
	})
	if err != nil {
		faults = append(faults, fmt.Errorf("list the listening Unix sockets: %w", err))
	}
	return all, errors.Join(faults...)
}

// Clients names the connections that wait in q now, by numbers that no other gets while
// it waits. One whose other end is gone may be missing, although it waits still.
func (q Queue) Clients() ([]uint64, error) {
	d, err := open()
	if err != nil {
		return nil, err
	}
	defer d.close()
	var all []uint64
	if q.family == unix.AF_UNIX {
		err = d.ask(unixRequest(uint32(q.Inode), listening, showClients), func(m []byte) {
			if s, ok := parseUnix(m); ok {
				all = s.clients
			}
		})
		return all, err
	}
	// Nobody has a file of those: that is how they are told from the accepted ones.
	err = d.dump(inetRequest(q.family, q.local.Port(), established), func(m []byte) {
		s, ok := parseInet(m)
		if ok && s.inode == 0 && (q.local.Addr().IsUnspecified() || s.local.Addr() == q.local.Addr()) {
			all = append(all, s.cookie)
		}
	})
	return all, err
}

// States of sockets, as bits (tcp_states.h); Unix sockets use the same.
const (
	listening   = 1 << 10
	established = 1<<1 | 1<<8 // or, as the other end has closed it, CLOSE_WAIT
)

var order = binary.NativeEndian

// inetRequest is struct inet_diag_req_v2 for TCP.
func inetRequest(family byte, port uint16, states uint32) []byte {
	b := make([]byte, 56)
	b[0], b[1] = family, unix.IPPROTO_TCP
	order.PutUint32(b[4:], states)
	binary.BigEndian.PutUint16(b[8:], port)
	order.PutUint64(b[48:], noCookie)
	return b
}

const noCookie = 1<<64 - 1

// What to show of Unix sockets (unix_diag.h).
const (
	showName    = 0x1
	showClients = 0x8
	showQueue   = 0x10
)

// unixRequest is struct unix_diag_req, for one socket if inode is not 0.
func unixRequest(inode, states, show uint32) []byte {
	b := make([]byte, 24)
	b[0] = unix.AF_UNIX
	order.PutUint32(b[4:], states)
	order.PutUint32(b[8:], inode)
	order.PutUint32(b[12:], show)
	order.PutUint64(b[16:], noCookie)
	return b
}

// socket is what the kernel tells of one.
type socket struct {
	local          netip.AddrPort // TCP
	name           string         // Unix
	inode          uint32
	cookie, cgroup uint64
	waiting, limit uint32
	clients        []uint64
}

// Attributes (inet_diag.h, unix_diag.h).
const (
	inetCgroup  = 21
	unixName    = 0
	unixClients = 3
	unixQueue   = 4
)

// parseInet reads a struct inet_diag_msg and its attributes.
func parseInet(m []byte) (s socket, ok bool) {
	const size = 72
	if len(m) < size {
		return socket{}, false
	}
	address, _ := netip.AddrFromSlice(m[8:12])
	if m[0] == unix.AF_INET6 {
		address, _ = netip.AddrFromSlice(m[8:24])
	}
	s = socket{
		local: netip.AddrPortFrom(address, binary.BigEndian.Uint16(m[4:])), cookie: order.Uint64(m[44:]),
		waiting: order.Uint32(m[56:]), limit: order.Uint32(m[60:]), inode: order.Uint32(m[68:]),
	}
	attributes(m[size:], func(kind uint16, value []byte) {
		if kind == inetCgroup && len(value) >= 8 {
			s.cgroup = order.Uint64(value)
		}
	})
	return s, true
}

// parseUnix reads a struct unix_diag_msg and its attributes.
func parseUnix(m []byte) (s socket, ok bool) {
	const size = 16
	if len(m) < size {
		return socket{}, false
	}
	s = socket{inode: order.Uint32(m[4:]), cookie: order.Uint64(m[8:])}
	attributes(m[size:], func(kind uint16, value []byte) {
		switch {
		case kind == unixName && len(value) > 0 && value[0] == 0: // abstract (unix(7))
			s.name = "@" + string(value[1:])
		case kind == unixName:
			s.name = strings.TrimRight(string(value), "\x00")
		case kind == unixQueue && len(value) >= 8:
			s.waiting, s.limit = order.Uint32(value), order.Uint32(value[4:])
		case kind == unixClients:
			for ; len(value) >= 4; value = value[4:] {
				if inode := order.Uint32(value); inode != 0 {
					s.clients = append(s.clients, uint64(inode))
				}
			}
		}
	})
	return s, true
}

// attributes calls see with each netlink attribute in b (netlink(7)).
func attributes(b []byte, see func(kind uint16, value []byte)) {
	const header = 4
	for len(b) >= header {
		size := int(order.Uint16(b))
		if size < header || size > len(b) {
			return
		}
		see(order.Uint16(b[2:]), b[header:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}
