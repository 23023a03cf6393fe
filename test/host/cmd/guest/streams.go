package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

// streams are a command's input and outputs: our ends of them, and its own until it has started.
type streams struct {
	input   *os.File // nil when it has none
	outputs map[wire.Kind]*os.File
	theirs  []*os.File
	screen  bool
}

// onPipes gives the command a pipe for each output, and for its input if there is one.
func onPipes(cmd *exec.Cmd, stdin bool) (streams, error) {
	s := streams{outputs: map[wire.Kind]*os.File{}}
	for _, out := range []struct {
		kind wire.Kind
		to   *io.Writer
	}{{wire.Stdout, &cmd.Stdout}, {wire.Stderr, &cmd.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return s, err
		}
		*out.to, s.outputs[out.kind], s.theirs = w, r, append(s.theirs, w)
	}
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return s, err
		}
		cmd.Stdin, s.input, s.theirs = r, w, append(s.theirs, r)
	}
	return s, nil
}

// onTerminal gives the command a terminal of its own.
func onTerminal(cmd *exec.Cmd, size wire.Size) (streams, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return streams{}, err
	}
	var number int
	err = control(master, func(fd int) (err error) {
		if number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err != nil {
		return streams{}, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return streams{}, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	s := streams{input: master, outputs: map[wire.Kind]*os.File{wire.Stdout: master}, theirs: []*os.File{slave}, screen: true}
	return s, s.resize(size)
}

func (s streams) resize(size wire.Size) error {
	return control(s.input, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// started closes the command's ends, which it now has itself.
func (s streams) started() {
	for _, file := range s.theirs {
		file.Close()
	}
}

// feed gives the command what the runner sends for it.
func (s streams) feed(conn *wire.Conn) {
	for {
		kind, payload, err := conn.Receive()
		if err != nil {
			return
		}
		switch {
		case s.input == nil:
		case kind == wire.Stdin:
			_, _ = s.input.Write(payload) // it may have closed its end: as with any pipe
		case kind == wire.StdinEnd && !s.screen:
			s.input.Close()
		case kind == wire.Resize:
			var size wire.Size
			if json.Unmarshal(payload, &size) == nil {
				_ = s.resize(size)
			}
		}
	}
}

// forwarding is the outputs on their way.
type forwarding struct {
	streams streams
	conn    *wire.Conn
	copies  sync.WaitGroup
}

// forward sends the outputs on as they come.
func (s streams) forward(conn *wire.Conn) *forwarding {
	f := &forwarding{streams: s, conn: conn}
	for kind, file := range s.outputs {
		f.copies.Go(func() { _, _ = io.Copy(conn.Writer(kind), file) })
	}
	return f
}

// finish sends what the command had written when it ended. It does not wait for the outputs to close:
// something it left running may hold them open forever.
func (f *forwarding) finish() {
	for _, file := range f.streams.outputs {
		_ = file.SetReadDeadline(time.Unix(1, 0))
	}
	f.copies.Wait()
	for kind, file := range f.streams.outputs {
		drain(file, f.conn.Writer(kind))
	}
}

// drain sends what is there now, and no more: the rest is of a writer that will not stop.
func drain(file *os.File, to io.Writer) {
	_ = control(file, func(fd int) error {
		left, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		buf := make([]byte, 64<<10)
		for err == nil && left > 0 {
			var n int
			n, err = unix.Read(fd, buf[:min(left, len(buf))])
			if n <= 0 {
				break
			}
			left -= n
			_, err = to.Write(buf[:n])
		}
		return err
	})
}

// control calls do with the file's descriptor, and leaves the file as fit for deadlines as it is; Fd would not.
func control(file *os.File, do func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = do(int(fd)) })
	return errors.Join(err, result)
}
