package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/journal"
)

// Output is where the output of a launch goes. A launch that is tried twice has one,
// for a stream to the journal is told by the one mark that it begins with.
type Output struct{ sinks }

// OpenOutput opens what l says. An error is a *service.Error of Kind Unlaunchable.
func OpenOutput(l service.Launch) (*Output, error) {
	s, err := openOutput(nil, l)
	if err != nil {
		return nil, resourceFailure(l.Name, err)
	}
	return &Output{s}, nil
}

// Close lets go of it; services that have it keep it.
func (o *Output) Close() { o.close() }

// sinks are descriptors 0, and 1 and 2, of a child; unless pour is gate.PourNot, out
// is the log that the shim pours a pipe into instead.
type sinks struct {
	in, out uintptr
	pour    byte
}

// openOutput opens /dev/null, and the log file, a stream to the journal or
// /dev/null again.
func openOutput(fault faults, l service.Launch) (sinks, error) {
	in, err := open(fault, os.DevNull, unix.O_RDONLY, 0)
	if err != nil {
		return sinks{}, err
	}
	out, pour := -1, byte(gate.PourNot)
	switch {
	case !l.Stream.IsZero():
		err = fault.call("connect to the journal", func() error {
			out, err = journal.Host().Connect(l.Name.String(), l.Stream.Unit, l.Stream.Mark)
			return err
		})
	case l.LogFile != "":
		out, err = openLog(fault, l.LogFile)
		pour = pours[l.Spec.LogFull]
	default:
		out, err = open(fault, os.DevNull, unix.O_WRONLY, 0)
	}
	if err != nil {
		unix.Close(in)
		return sinks{}, err
	}
	return sinks{uintptr(in), uintptr(out), pour}, nil
}

// pours are what the shim does for a service.
var pours = [...]byte{service.LogFullFail: gate.PourNot, service.LogFullDrop: gate.PourDrop, service.LogFullBlock: gate.PourBlock}

// isPoured tells whether the output of a launch goes through the shim.
func isPoured(l *service.Launch) bool {
	return l.LogFile != "" && pours[l.Spec.LogFull] != gate.PourNot
}

func (s sinks) close() {
	unix.Close(int(s.in))
	unix.Close(int(s.out))
}

// openLog opens a log file for appending. It must be a regular file with one
// name, and no link is followed at its end, so that whoever can write into the
// directory can not make us write elsewhere or block us with a FIFO.
func openLog(fault faults, path string) (int, error) {
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := open(fault, path, flags, 0o640)
	if err != nil {
		return -1, fmt.Errorf("open the log: %w", err)
	}
	var stat unix.Stat_t
	err = fault.call("stat", func() error { return unix.Fstat(fd, &stat) })
	switch {
	case err != nil:
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("it is not a regular file")
	case stat.Nlink != 1:
		err = fmt.Errorf("it has %d names; a log has one", stat.Nlink)
	default:
		err = fault.call("set to block", func() error { return unix.SetNonblock(fd, false) })
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open the log %s: %w", path, err)
	}
	return fd, nil
}

func open(fault faults, path string, flags int, mode uint32) (fd int, err error) {
	for {
		err := fault.call("open", func() error { fd, err = unix.Open(path, flags|unix.O_CLOEXEC, mode); return err })
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// socketPair makes the line between the agent and a gate: our end waits in the
// runtime's poller, theirs blocks.
func socketPair(fault faults) (ours *os.File, theirs int, err error) {
	var pair [2]int
	err = fault.call("make a socket pair", func() error {
		pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, -1, err
	}
	if err := fault.call("set not to block", func() error { return unix.SetNonblock(pair[0], true) }); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, -1, err
	}
	return os.NewFile(uintptr(pair[0]), "gate"), pair[1], nil
}
