// Package journal has services write into the journal of systemd, and reads what
// they wrote: a connection to journald for each incarnation, and journalctl(1)
// for the way back, since there is no other way without libsystemd.
//
// What a connection carries is told from everything else in the journal by
// _STREAM_ID, which journald makes up for each connection and nobody can forge.
// It tells it to nobody either. So the first line of a connection is a mark,
// which the agent writes before anybody else has the descriptor; the journal
// tells by the mark, and by the process that wrote it, what the stream is called.
package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Journal is where journald listens, and the program that reads its files.
type Journal struct {
	Stdout  string // socket of streams
	Varlink string // socket of questions
	Program string
}

// Host is the journal of this host, if there is one.
func Host() Journal {
	return Journal{"/run/systemd/journal/stdout", "/run/systemd/journal/io.systemd.journal", "journalctl"}
}

// NewStream is a stream that is still to be connected.
func NewStream(whose, bootID string) service.Stream {
	return service.Stream{Mark: fmt.Sprintf("%s writes from here on (%s)", whose, rand.Text()), PID: os.Getpid(), BootID: bootID}
}

// sendBuffer is what a connection may hold that journald has not taken yet, in
// bytes; systemd gives its own services as much.
const sendBuffer = 8 << 20

// Connect makes a stream to journald and writes its mark; the descriptor is the
// caller's, blocking and for writing. Lines are of no priority but "info", and
// are kept as they are. Who looks with `journalctl -t` finds them by identifier;
// unit is told by journald of lines whose writer has ended before it could look,
// if it is valid and this process is root.
//
// The protocol is that of sd_journal_stream_fd(3).
func (j Journal) Connect(identifier, unit, mark string) (fd int, err error) {
	fd, err = j.dial()
	if err != nil {
		return -1, err
	}
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF} { // the first is for root
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, sendBuffer) == nil {
			break
		}
	}
	const info, keepPrefix, forwardNowhere = "6\n", "0\n", "0\n0\n0\n"
	header := []byte(identifier + "\n" + unit + "\n" + info + keepPrefix + forwardNowhere + mark + "\n")
	for len(header) > 0 {
		n, err := unix.SendmsgN(fd, header, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("write to %s: %w", j.Stdout, err)
		}
		header = header[n:]
	}
	// The service waits as long as it takes.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("unbound the waiting for journald: %w", err)
	}
	return fd, nil
}

// patience is how long a journald that is there and hangs may keep a launch waiting.
var patience = unix.Timeval{Sec: 5}

// dial connects; until the descriptor is somebody else's, nothing waits on it for ever.
func (j Journal) dial() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bound the waiting for journald: %w", err)
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: j.Stdout})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		err = unix.Shutdown(fd, unix.SHUT_RD)
	}
	if err == unix.EAGAIN { // nobody takes up those that wait already
		err = unix.ETIMEDOUT
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to journald at %s: %w", j.Stdout, err)
	}
	return fd, nil
}

// Reachable tells whether journald takes connections.
func (j Journal) Reachable() error {
	fd, err := j.dial()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Ended tells whether descriptor 1 of a process is a socket whose other end is gone:
// what it writes there is lost, since journald was stopped. Of a process that can
// not be looked at it says no.
func Ended(pid int) bool {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 1, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return false // it has turned to something else
	}
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1 && poll[0].Revents&unix.POLLHUP != 0
}

// Probe writes a line into the journal and reads it back. A host that is too busy to
// tell within ten seconds is context.DeadlineExceeded, which says nothing of its
// journal.
func (j Journal) Probe(ctx context.Context, bootID string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	try := NewStream("gladsheimd, which tries the journal,", bootID)
	fd, err := j.Connect("gladsheimd", "", try.Mark)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		synced := j.Sync(ctx)
		found, err := j.Find(ctx, []service.Stream{try})
		switch {
		case err != nil:
			return err
		case found[try.Mark] != "":
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case synced == nil && pause > time.Second, os.Geteuid() != 0 && pause > 2*time.Second:
			return errors.New("what was written to journald can not be read with journalctl")
		}
		select { // who may not ask journald for order waits for it
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

const (
	probeTime = 10 * time.Second
	syncTime  = 3 * time.Second
)

// Sync returns once everything that was written to journald before is in the
// journal. Only root may ask for it (varlink: io.systemd.Journal.Synchronize).
func (j Journal) Sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", j.Varlink)
	if err != nil {
		return fmt.Errorf("ask journald: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte(`{"method":"io.systemd.Journal.Synchronize"}` + "\x00")); err != nil {
		return fmt.Errorf("ask journald: %w", err)
	}
	var answer []byte
	for b := make([]byte, 512); !bytes.HasSuffix(answer, []byte{0}) && len(answer) < 4096; {
		n, err := conn.Read(b)
		if err != nil {
			return fmt.Errorf("hear journald: %w", err)
		}
		answer = append(answer, b[:n]...)
	}
	var said struct{ Error string }
	if err := json.Unmarshal(bytes.TrimRight(answer, "\x00"), &said); err != nil {
		return fmt.Errorf("hear journald: %w", err)
	}
	if said.Error != "" {
		return fmt.Errorf("journald answered %s", said.Error)
	}
	return nil
}

// Find asks what streams are called, by their marks. A mark that is not in the
// journal, yet or any more, has no entry in the answer.
func (j Journal) Find(ctx context.Context, streams []service.Stream) (ids map[string]string, err error) {
	byMark := map[string]service.Stream{}
	matches := []string{"_TRANSPORT=stdout"}
	for _, s := range streams {
		byMark[s.Mark] = s
		matches = append(matches, "MESSAGE="+s.Mark)
	}
	ids = map[string]string{}
	err = j.run(ctx, matches, func(e *entry) error {
		s, known := byMark[string(e.message)]
		if known && e.markOf(s) && ids[s.Mark] == "" { // the first: later ones are copies
			ids[s.Mark] = e.stream
		}
		return nil
	})
	return ids, err
}
